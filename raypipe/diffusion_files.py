"""The files of a diffusion pipeline: where they are, whether all are there, and their digest.

A hub is asked only for what is not in its cache, and gives up after seconds.
"""

import hashlib
import math
import os
import re
from collections.abc import Callable

from raypipe import storage
from raypipe.config.diffusion import FILES, DiffusionConfig, LoraConfig, SecondPassConfig
from raypipe.errors import UserError, first_line
from raypipe.models.loading import shipped
from raypipe.node_cache import from_hub, local, local_folder

INDEX = "model_index.json"
SHIPPED = "face_diffusion"
FIELD = "seeds.diffusion"  # what errors call the configuration
_HUB = "hf://"
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHTS = ".safetensors"
_WEIGHTLESS = ("Scheduler", "Processor", "Extractor")  # in the names of classes
_TEXTS = (".json", ".txt", ".model")  # configurations and vocabularies


def model_name(config: DiffusionConfig) -> str:
    """What a pipeline is called, wherever its folder lies."""
    model = (config.model or SHIPPED).removeprefix(_HUB)
    if storage.is_uri(model) or os.path.isdir(model):
        return model.rstrip("/").rpartition("/")[2]
    return model


def resolve(config: DiffusionConfig) -> str:
    """The folder of the pipeline on this node; the files of a hub id or of a URI are fetched where
    they are not yet.

    Raises:
        UserError: where there is no such folder, and no hub that has it can be reached.
    """
    from diffusers import DiffusionPipeline

    model = (config.model or shipped(SHIPPED)).removeprefix(_HUB)
    if os.path.isdir(model):
        return model
    if storage.is_uri(model):
        try:
            return local_folder(model, _names(model, config.variant))
        except UserError as error:
            raise UserError(f"{FIELD}.model: {error}") from error

    def fetch(cached: bool) -> str:
        return str(
            DiffusionPipeline.download(
                model,
                revision=config.revision,
                variant=config.variant,
                use_safetensors=True,
                local_files_only=cached,
            )
        )

    return _from_hub(f"{FIELD}.model", model, config.revision, fetch)


def resolve_file(field: str, part: LoraConfig | SecondPassConfig) -> str:
    """The path of a LoRA's or an adapter's file on this node, fetched where it is not yet here.

    Args:
        field: what errors call it.

    Raises:
        UserError: where there is no such file, and no hub that has it can be reached.
    """
    from huggingface_hub import hf_hub_download

    path = part.path if isinstance(part, LoraConfig) else part.adapter
    if os.path.isfile(path):
        return path
    name = part.weight_name
    if storage.is_uri(path):
        try:
            return local(path if path.endswith(FILES) else storage.join(path, name or ""))
        except UserError as error:
            raise UserError(f"{field}: {error}") from error
    if os.path.isdir(path) and name is not None:
        if os.path.isfile(inner := os.path.join(path, name)):
            return inner
        raise UserError(f"{field}: {inner}: no such file")

    def fetch(cached: bool) -> str:
        assert name is not None
        return hf_hub_download(path, name, local_files_only=cached)

    return _from_hub(field, path if name else "", None, fetch, shown=path)


def _from_hub(
    field: str,
    hub_id: str,
    revision: str | None,
    fetch: Callable[[bool], str],
    shown: str | None = None,
) -> str:
    """What `fetch` finds in the cache (True), or else on the hub (False)."""
    if not _HUB_ID.fullmatch(hub_id):
        raise UserError(f"{field}: {shown or hub_id}: no such file or folder here")
    try:
        return from_hub(hub_id, revision, fetch)
    except UserError as error:
        raise UserError(
            f"{field}: {hub_id!r} is no folder here, {error}; give the path of a folder, or fetch "
            "it where there is a network"
        ) from error


def parts(folder: str) -> dict[str, tuple[str, str]]:
    """Name to library and class of every part of a pipeline.

    Raises:
        UserError: where its `model_index.json` is missing or none.
    """
    path = storage.join(folder, INDEX)
    try:
        index = storage.read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); expected the folder of a pipeline in "
            "the format of diffusers"
        ) from error
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise UserError(f"{path}: names no pipeline class of diffusers")
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    }


def pipeline_files(folder: str, variant: str | None) -> list[str]:
    """Names in the folder of all files that a pipeline is loaded from, in order.

    Raises:
        UserError: where one of its parts is not there, or not whole.
    """
    names = _names(folder, variant)
    for name in names:
        if name.endswith(_WEIGHTS):
            _check_whole(os.path.join(folder, name))
    return names


def _names(folder: str, variant: str | None) -> list[str]:
    """As `pipeline_files`, of a local folder or a URI, and no file but the index is opened."""
    found = [INDEX]
    for part, (_, kind) in parts(folder).items():
        entries = storage.listdir(storage.join(folder, part))
        if not entries:
            raise UserError(f"{folder}: the part {part!r} that {INDEX} names is missing")
        names = [entry.name for entry in entries]
        weights = _weights(names, variant)
        _check(f"{folder}: the part {part!r}", kind, names, weights)
        texts = [name for name in names if name.endswith(_TEXTS)]
        found += [f"{part}/{name}" for name in [*texts, *weights]]
    return sorted(found)


def _weights(names: list[str], variant: str | None) -> list[str]:
    """The weight files among names: those of the variant, else those of none."""
    files = [name for name in names if name.endswith(_WEIGHTS)]
    chosen = [name for name in files if variant and f".{variant}" in name]
    return chosen or [name for name in files if "." not in name.removesuffix(_WEIGHTS)]


def _check(where: str, kind: str, names: list[str], weights: list[str]) -> None:
    """Refuses a part without what diffusers would not miss, or not name."""
    if "Tokenizer" in kind:
        # Without its vocabulary a tokenizer is made that knows no word.
        pieces = {"vocab.json", "merges.txt"} <= set(names)
        if not pieces and not any(n.endswith((".model", "tokenizer.json")) for n in names):
            raise UserError(
                f"{where} has no vocabulary: expected tokenizer.json, a .model file, or vocab.json "
                "and merges.txt"
            )
        if "tokenizer_config.json" not in names:
            raise UserError(f"{where} has no tokenizer_config.json")
    elif not weights and not any(word in kind for word in _WEIGHTLESS):
        raise UserError(f"{where} has no {_WEIGHTS} file; other weight files are not read")


def _check_whole(path: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({first_line(error)}); fetch it again"
        ) from error


def stored_numbers(path: str) -> int:
    """How many floating-point numbers a safetensors file holds; only its header is read."""
    from safetensors import safe_open

    found = 0
    with safe_open(path, framework="pt") as file:
        for name in file.offset_keys():
            tensor = file.get_slice(name)
            if tensor.get_dtype().startswith(("F", "BF")):
                found += math.prod(tensor.get_shape())
    return found


def weights_files(config: DiffusionConfig, *, second_pass: bool = False) -> dict[str, str]:
    """Name to path of every file that the weights of a pass come from.

    Raises:
        UserError: where one is missing.
    """
    folder = resolve(config)
    found = {name: os.path.join(folder, name) for name in pipeline_files(folder, config.variant)}
    field, lora = f"{FIELD}.lora", config.lora
    if second_pass:
        assert config.second_pass is not None
        field, lora = f"{FIELD}.second_pass.lora", config.second_pass.lora
        found["adapter"] = resolve_file(f"{FIELD}.second_pass.adapter", config.second_pass)
    if lora is not None:
        found["lora"] = resolve_file(field, lora)
    return found


def digest(config: DiffusionConfig, *, second_pass: bool = False) -> str:
    """Hex SHA-256 over the names and the contents of `weights_files`, in the order of the names."""
    found = hashlib.sha256()
    for name, path in sorted(weights_files(config, second_pass=second_pass).items()):
        found.update(f"{name}\0{storage.sha256_file(path)}\n".encode())
    return found.hexdigest()
