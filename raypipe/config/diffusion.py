"""Configuration of the text-to-image pipeline that draws references."""

from typing import Literal

from pydantic import Field, model_validator

from raypipe.config.base import Licence, Settings

# What a file of weights ends with; a path that ends otherwise is a folder or the id of a hub.
FILES = (".safetensors", ".bin")


class LoraConfig(Settings):
    """Low-rank changes of the weights, merged into them before anything is drawn."""

    path: str = Field(
        description="a .safetensors file, a folder (paths or URIs) or a hub id, such as "
        "latent-consistency/lcm-lora-sdxl for few steps"
    )
    weight_name: str | None = Field(
        None, description="the .safetensors file of a folder or a hub id"
    )
    scale: float = Field(1.0, description="strength of the change; 0 changes nothing")

    @model_validator(mode="after")
    def _one_safe_file(self) -> "LoraConfig":
        name = _named(self.path, self.weight_name)
        if not name.endswith(".safetensors"):
            raise ValueError(f"{name!r}: only .safetensors are read; convert the file")
        return self


class SecondPassConfig(Settings):
    """Renders the face of a reference again, at another pose, with the identity kept.

    The published pipeline (generate_id.py of github.com/Ferry-Li/datacv_fr) does it with InstantID,
    LCM-LoRA, 10 steps, guidance 1 and an adapter scale of 0.95 to 1; here it is an IP-Adapter
    FaceID, which diffusers loads itself.
    """

    adapter: str = Field(
        description="IP-Adapter FaceID: a .safetensors or .bin file, a folder (paths or URIs) or a "
        "hub id, such as h94/IP-Adapter-FaceID; its features are those of `embedder` (published: "
        "w600k_r50.onnx of insightface, 512 numbers)"
    )
    weight_name: str | None = Field(
        None, description="file of a folder or a hub id, such as ip-adapter-faceid_sdxl.bin"
    )
    scale: float = Field(1.0, ge=0, description="how much the face counts beside the prompt")
    redraw: list[str] = Field(
        ["pose", "expression", "camera", "light", "background"],
        min_length=1,
        description="attributes of the grammar that are drawn anew; the prompt keeps all others, "
        "and an exclusion between one drawn anew and one kept is not looked at",
    )
    steps: int = Field(10, ge=1, description="denoising steps")
    guidance: float = Field(
        1.0, ge=0, description="weight of the prompt (classifier-free guidance); 1 and less: none"
    )
    scheduler: str | None = Field(
        None, description="as in the first pass, such as LCMScheduler; none: that of the first pass"
    )
    lora: LoraConfig | None = Field(
        None, description="instead of the first pass's, such as LCM-LoRA; none: no change"
    )

    @model_validator(mode="after")
    def _file_named(self) -> "SecondPassConfig":
        name = _named(self.adapter, self.weight_name)
        if not name.endswith(FILES):
            raise ValueError(f"{name!r}: expected a .safetensors or .bin file")
        return self


class DiffusionConfig(Settings):
    """A pipeline of diffusers that draws pictures of prompts."""

    model: str | None = Field(
        None,
        description="folder of a text-to-image pipeline in the format of diffusers, a path or URI, "
        "or its hub id, such as stabilityai/stable-diffusion-xl-base-1.0; none: the small one that "
        "ships with raypipe",
    )
    revision: str | None = Field(
        None, description="branch, tag or commit of a hub id; none: the main branch"
    )
    variant: str | None = Field(
        None, description="variant of the weight files, such as fp16; none: those without one"
    )
    scheduler: str | None = Field(
        None,
        description="class of diffusers that takes the denoising steps, such as "
        "DPMSolverMultistepScheduler, or LCMScheduler for an LCM-LoRA; none: the pipeline's own",
    )
    steps: int = Field(30, ge=1, description="denoising steps; published: 30")
    guidance: float = Field(
        7.5,
        ge=0,
        description="weight of the prompt (classifier-free guidance); 1 and less: none, at half "
        "the time, and the negative prompt counts for nothing; published: 7.5",
    )
    width: int | None = Field(
        None, ge=8, multiple_of=8, description="of a picture in pixels; none: the pipeline's own"
    )
    height: int | None = Field(
        None, ge=8, multiple_of=8, description="of a picture in pixels; none: the pipeline's own"
    )
    batch_size: int = Field(
        8,
        ge=1,
        description="pictures of a model batch, always as many: what is missing is filled up, so "
        "that rounding does not depend on how many pictures are drawn at once",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float16", description="precision on a GPU; a CPU always computes in float32"
    )
    lora: LoraConfig | None = Field(None, description="changes of the weights; none: no change")
    compile: bool = Field(
        False, description="compile the denoiser and the decoder: a minute or more at the start"
    )
    attention_slicing: bool = Field(
        False, description="compute attention in slices: slower, with less memory; first pass only"
    )
    cpu_offload: Literal["none", "model", "sequential"] = Field(
        "none",
        description="keep weights in the memory of the host and move them to the GPU when needed: "
        "whole models, or layer by layer (much slower)",
    )
    licence: Licence = None
    second_pass: SecondPassConfig | None = Field(
        None, description="render each face again at another pose; none: references are as drawn"
    )

    @model_validator(mode="after")
    def _both_sides(self) -> "DiffusionConfig":
        if (self.width is None) != (self.height is None):
            raise ValueError("give both width and height, or neither")
        return self


def _named(path: str, weight_name: str | None) -> str:
    """Name of the file that a path and a name in it stand for."""
    if path.endswith(FILES):
        return path
    if weight_name is None:
        raise ValueError(f"{path!r} is no file of weights: give its weight_name")
    return weight_name
