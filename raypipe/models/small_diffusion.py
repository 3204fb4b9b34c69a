"""A Stable Diffusion small enough for CPUs: the parts of a diffusers pipeline, of any weights."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from raypipe.config.diffusion_training import DiffusionTrainingConfig

LATENTS = 4  # channels, as in Stable Diffusion
DOWN = 4  # times that the autoencoder makes a side shorter
TOKENS = 32  # of a prompt; captions of the small grammar have 20
_HEADS = 4
_SPECIAL, _END = ("<|startoftext|>", "<|endoftext|>"), "</w>"  # of CLIP's tokenizer
# Of Stable Diffusion (scheduler/scheduler_config.json of its published pipelines).
_NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}


@dataclass(kw_only=True)
class Parts:
    """Networks and tokenizer of a pipeline.

    Attributes:
        vae: AutoencoderKL.
        unet: UNet2DConditionModel.
        text: CLIPTextModel.
        tokenizer: CLIPTokenizer.
    """

    # diffusers and transformers load lazily, and so tell a type checker nothing of their classes.
    vae: Any
    unet: Any
    text: Any
    tokenizer: Any


def noise_schedule() -> Any:
    """How much noise a step has (a DDPMScheduler); the UNet learns to predict it."""
    return DDPMScheduler(**_NOISE, clip_sample=False)


def _tokenizer(sentences: Iterable[str]) -> CLIPTokenizer:
    """A tokenizer for which most words of sentences are a token each.

    Its merges put the words together letter by letter. Those that `tokenizers` learns come in
    another order every time, and the networks of all workers must agree on them.
    """
    bare = CLIPTokenizer().backend_tokenizer
    words = {
        word
        for sentence in sentences
        for word, _ in bare.pre_tokenizer.pre_tokenize_str(bare.normalizer.normalize_str(sentence))
    }
    merges: dict[tuple[str, str], None] = {}
    for word in sorted(words):
        letters = [*word[:-1], f"{word[-1]}{_END}"]
        for place in range(1, len(letters)):
            merges["".join(letters[:place]), letters[place]] = None
    letters = sorted(ByteLevel.alphabet())
    tokens = [*_SPECIAL, *letters, *(f"{letter}{_END}" for letter in letters)]
    tokens += [first + second for first, second in merges]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(dict.fromkeys(tokens))},
        merges=list(merges),  # type: ignore[arg-type]
        model_max_length=TOKENS,
    )


def build(config: DiffusionTrainingConfig, sentences: Iterable[str]) -> Parts:
    """New networks, drawn from torch's generator.

    Args:
        sentences: whose words the tokenizer learns; other words are spelt in pieces.
    """
    tokenizer = _tokenizer(sentences)
    unet = UNet2DConditionModel(
        sample_size=config.side // DOWN,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=tuple(config.unet_channels),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=config.text_width,
        attention_head_dim=_HEADS,
    )
    vae = AutoencoderKL(
        sample_size=config.side,
        latent_channels=LATENTS,
        block_out_channels=tuple(config.vae_channels),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=_HEADS,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    return Parts(vae=vae, unet=unet, text=text, tokenizer=tokenizer)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids, int64 (N, TOKENS), as the pipeline makes them."""
    return tokenizer(
        captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def pipeline(parts: Parts) -> Any:
    """The parts as a StableDiffusionPipeline. It has no safety checker: it paints faces alone."""
    return StableDiffusionPipeline(
        vae=parts.vae,
        text_encoder=parts.text,
        tokenizer=parts.tokenizer,
        unet=parts.unet,
        scheduler=DPMSolverMultistepScheduler(**_NOISE, solver_order=2),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(parts: Parts, folder: str, dtype: torch.dtype) -> None:
    """Writes a folder that diffusers loads, with weights as safetensors of a type."""
    disable_progress_bar()  # of a file that is written in a moment
    for module in (parts.vae, parts.unet, parts.text):
        torch.nn.Module.to(module, dtype)  # diffusers' own warns of an empty list
    pipeline(parts).save_pretrained(folder, safe_serialization=True)
    for module in (parts.vae, parts.unet, parts.text):
        module.float()


def files(folder: str) -> list[str]:
    """Paths of all files of a folder relative to it, in order."""
    return sorted(
        os.path.relpath(os.path.join(root, name), folder)
        for root, _, names in os.walk(folder)
        for name in names
    )
