"""The networks of diffusion pipelines, for counting their operations.

The published ones by the configuration files of their repositories on the hub
(stabilityai/stable-diffusion-xl-base-1.0, stable-diffusion-v1-5/stable-diffusion-v1-5).
"""

from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from raypipe.diffusion_files import SHIPPED
from raypipe.models.loading import shipped

_TOKENS = 77
_XL_UNET: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
_CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
_CLIP_G: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
}


class _Encoders(nn.Module):
    """The text encoders of a pipeline, one prompt through all of them."""

    def __init__(self, configs: list[CLIPTextConfig]) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(CLIPTextModel(config) for config in configs)

    def forward(self, input_ids: torch.Tensor) -> None:
        for encoder in self.encoders:
            encoder(input_ids=input_ids)


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """A network "PIPELINE:unet", "PIPELINE:vae" or "PIPELINE:text", and what it is called with."""
    pipeline, _, part = name.partition(":")
    if part == "unet":
        unet: Any = UNet2DConditionModel.from_config(_config(pipeline, part)).eval()
        config = unet.config
        inputs: dict[str, Any] = {
            "sample": torch.empty(1, config.in_channels, config.sample_size, config.sample_size),
            "timestep": torch.tensor(1),
            "encoder_hidden_states": torch.empty(1, _tokens(pipeline), config.cross_attention_dim),
        }
        if config.addition_embed_type:
            inputs["added_cond_kwargs"] = {
                "text_embeds": torch.empty(1, 1280),
                "time_ids": torch.empty(1, 6),
            }
        return unet, inputs
    if part == "vae":
        vae: Any = AutoencoderKL.from_config(_config(pipeline, part)).eval()
        side = _config(pipeline, "unet")["sample_size"]
        return vae.decoder, {"sample": torch.empty(1, vae.config.latent_channels, side, side)}
    assert part == "text", name
    ids = torch.zeros(1, _tokens(pipeline), dtype=torch.int64)
    return _Encoders(_text_configs(pipeline)).eval(), {"input_ids": ids}


def _config(pipeline: str, part: str) -> Any:
    if pipeline == "face_diffusion":
        kind: Any = UNet2DConditionModel if part == "unet" else AutoencoderKL
        return kind.load_config(shipped(f"{SHIPPED}/{part}"))
    if part == "vae":
        return _VAE
    return _XL_UNET if pipeline == "stable-diffusion-xl" else _UNET


def _text_configs(pipeline: str) -> list[CLIPTextConfig]:
    if pipeline == "face_diffusion":
        return [CLIPTextConfig.from_pretrained(shipped(f"{SHIPPED}/text_encoder"))]
    large = pipeline == "stable-diffusion-xl"
    return [CLIPTextConfig(**sizes) for sizes in ([_CLIP_L, _CLIP_G] if large else [_CLIP_L])]


def _tokens(pipeline: str) -> int:
    if pipeline == "face_diffusion":
        return int(_text_configs(pipeline)[0].max_position_embeddings)
    return _TOKENS
