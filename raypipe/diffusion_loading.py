"""Pipelines of diffusers from their files, ready to draw. Nothing in the files is executed."""

import difflib
import os
from typing import Any

import torch

from raypipe.config.diffusion import DiffusionConfig, LoraConfig, SecondPassConfig
from raypipe.diffusion_files import (
    FIELD,
    INDEX,
    pipeline_files,
    resolve,
    resolve_file,
    stored_numbers,
)
from raypipe.errors import UserError, first_line


def load(config: DiffusionConfig, device: torch.device) -> Any:
    """The pipeline of the first pass, on its device.

    Raises:
        UserError: where files are missing, broken or do not fit, the scheduler is unknown, or the
            device has no GPU to offload from.
    """
    pipeline = _open(config, device)
    _set_scheduler(pipeline, f"{FIELD}.scheduler", config.scheduler)
    _merge_lora(pipeline, f"{FIELD}.lora", config.lora)
    if config.attention_slicing:
        pipeline.enable_attention_slicing()
    _place(pipeline, config, device)
    return pipeline


def load_second_pass(config: DiffusionConfig, device: torch.device) -> tuple[Any, int]:
    """The pipeline of the second pass, on its device, and the numbers of an embedding.

    Raises:
        UserError: likewise, or where the adapter is no IP-Adapter FaceID of this pipeline.
    """
    settings = config.second_pass
    assert settings is not None
    pipeline = _open(config, device)
    name = settings.scheduler or config.scheduler
    _set_scheduler(pipeline, f"{FIELD}.second_pass.scheduler", name)
    _merge_lora(pipeline, f"{FIELD}.second_pass.lora", settings.lora)
    # Slices of attention would replace the attention of the adapter.
    dimension = _add_adapter(pipeline, settings)
    _place(pipeline, config, device)
    return pipeline, dimension


def _open(config: DiffusionConfig, device: torch.device) -> Any:
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # it warns of torchvision, which nobody needs
    diffusers.utils.logging.disable_progress_bar()
    from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

    if config.cpu_offload != "none" and device.type == "cpu":
        raise UserError(
            f"{FIELD}.cpu_offload: {config.cpu_offload!r} moves weights between host and GPU, and "
            "there is no GPU; set it to none, or give the pool num_gpus"
        )
    folder = resolve(config)
    names = pipeline_files(folder, config.variant)
    kind = diffusers.DiffusionPipeline.load_config(folder)["_class_name"]
    known = [found.__name__ for found in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()]
    if kind not in known or "Control" in kind:
        raise UserError(
            f"{os.path.join(folder, INDEX)}: {kind} is no pipeline that diffusers draws pictures "
            "of text alone with; take one such as StableDiffusionPipeline"
        )
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            folder,
            dtype=torch.float32 if device.type == "cpu" else getattr(torch, config.dtype),
            variant=config.variant,
            use_safetensors=True,
            local_files_only=True,
        )
    except Exception as error:  # whatever diffusers and transformers raise at what does not fit
        raise UserError(
            f"{folder}: not a pipeline that diffusers can load ({first_line(error)})"
        ) from error
    _check_complete(pipeline, folder, names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _check_complete(pipeline: Any, folder: str, names: list[str]) -> None:
    """Refuses networks with weights that no file has: they would be drawn at random.

    Numbers are counted, not names: libraries rename, merge and split what older files hold.
    """
    for part, network in pipeline.components.items():
        if isinstance(network, torch.nn.Module):
            files = [n for n in names if n.startswith(f"{part}/") and n.endswith(".safetensors")]
            stored = sum(stored_numbers(os.path.join(folder, name)) for name in files)
            wanted = sum(weights.numel() for weights in network.parameters())
            if stored < wanted:
                raise UserError(
                    f"{folder}: the files of the part {part!r} hold {stored:,} weights, and its "
                    f"{type(network).__name__} has {wanted:,}"
                )


def _set_scheduler(pipeline: Any, field: str, name: str | None) -> None:
    import diffusers

    if name is None:
        return
    known = [found for found in dir(diffusers.schedulers) if found.endswith("Scheduler")]
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else "see the schedulers of diffusers"
        raise UserError(f"{field}: unknown scheduler {name!r}; {hint}")
    try:
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config)
    except Exception as error:  # of a package that is not installed, or settings it cannot take
        raise UserError(
            f"{field}: {name} cannot take the place of the pipeline's own "
            f"{type(pipeline.scheduler).__name__} ({first_line(error)})"
        ) from error


def _merge_lora(pipeline: Any, field: str, lora: LoraConfig | None) -> None:
    if lora is None:
        return
    path = resolve_file(field, lora)
    folder, name = os.path.split(path)
    try:
        pipeline.load_lora_weights(
            folder or ".",
            weight_name=name,
            use_safetensors=True,
            local_files_only=True,
            adapter_name="lora",
        )
        fits = bool(pipeline.get_list_adapters())
        if fits:
            pipeline.fuse_lora(lora_scale=lora.scale)
            pipeline.unload_lora_weights()
    except Exception as error:  # of diffusers, peft and safetensors
        raise UserError(
            f"{path}: not a LoRA of {type(pipeline).__name__} as it is here ({first_line(error)})"
        ) from error
    if not fits:
        raise UserError(
            f"{path}: not a LoRA of {type(pipeline).__name__} as it is here: none of its names is "
            "one of the pipeline's layers"
        )


def _add_adapter(pipeline: Any, settings: SecondPassConfig) -> int:
    """Puts an IP-Adapter FaceID into a pipeline; returns the numbers of its embeddings."""
    from diffusers.loaders import IPAdapterMixin

    if not issubclass(type(pipeline), IPAdapterMixin) or not hasattr(pipeline, "unet"):
        raise UserError(
            f"{FIELD}.second_pass: {type(pipeline).__name__} takes no IP-Adapter FaceID; take a "
            "Stable Diffusion or Stable Diffusion XL"
        )
    path = resolve_file(f"{FIELD}.second_pass.adapter", settings)
    state = _read_adapter(path)
    projection = state.get("image_proj", {})
    # FaceID Plus also looks at the picture, through a "perceiver_resampler".
    plus = any(name.startswith("perceiver_resampler") for name in projection)
    if plus or not {"proj.0.weight", "proj.2.weight", "norm.weight"} <= set(projection):
        raise UserError(
            f"{path}: not an IP-Adapter FaceID that takes an embedding alone, such as "
            "ip-adapter-faceid_sdxl.bin"
        )
    try:
        pipeline.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)
    except Exception as error:  # of diffusers and accelerate, at shapes and names
        raise UserError(
            f"{path}: an IP-Adapter of another model than this {type(pipeline).__name__} "
            f"({first_line(error)})"
        ) from error
    pipeline.set_ip_adapter_scale(settings.scale)
    # diffusers would mix the faces of a batch: it repeats what it is given (its issue 9813).
    pipeline.prepare_ip_adapter_image_embeds = _as_given
    return projection["proj.0.weight"].shape[1]


def _as_given(
    _image: None, embeds: list[torch.Tensor], device: torch.device, *_: Any
) -> list[torch.Tensor]:
    return [found.to(device) for found in embeds]


def _read_adapter(path: str) -> dict[str, Any]:
    """Tensors of an adapter, under "image_proj" and "ip_adapter"."""
    from safetensors.torch import load_file

    try:
        if not path.endswith(".safetensors"):
            # Published as .bin: a pickle, of which nothing but tensors is accepted.
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        state: dict[str, Any] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in load_file(path).items():
            group, _, rest = name.partition(".")
            state.setdefault(group, {})[rest] = tensor
        return state
    except Exception as error:  # whatever a broken or hostile file makes the parsers raise
        raise UserError(
            f"{path}: not weights that can be loaded safely ({first_line(error)})"
        ) from error


def _place(pipeline: Any, config: DiffusionConfig, device: torch.device) -> None:
    """Moves a pipeline to its device, and makes it as fast there as asked for."""
    denoiser = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    vae = getattr(pipeline, "vae", None)
    if device.type == "cuda":
        for module in (denoiser, vae):
            if module is not None:
                module.to(memory_format=torch.channels_last)
    if config.cpu_offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif config.cpu_offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
    if config.compile and denoiser is not None:
        denoiser.compile(dynamic=False)
    if config.compile and vae is not None:
        vae.decode = torch.compile(vae.decode, dynamic=False)
