"""Training a small Stable Diffusion: an autoencoder, then a UNet and a text encoder on its codes.

As Rombach et al., "High-resolution image synthesis with latent diffusion models" (CVPR 2022): the
autoencoder with a small divergence from a normal law, the UNet by predicting the noise, with empty
captions now and then for classifier-free guidance (Ho and Salimans 2022). All pictures are held in
memory: 12 kB each at 64×64.
"""

import io
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn import functional as F

from raypipe import generator_losses as losses
from raypipe.config.diffusion_training import DiffusionTrainingConfig
from raypipe.errors import UserError
from raypipe.identities import from_table
from raypipe.images import ImageError, decode, encode_png, resize
from raypipe.models.small_diffusion import LATENTS, Parts, noise_schedule, pipeline, tokenize
from raypipe.portraits import SIZE, Portraits
from raypipe.seeding import generator, torch_seed

_JOB = "train_diffusion"
_ENCODED = 256  # pictures encoded at once
_CLIP = 1.0  # longest gradient, as in diffusers' train_text_to_image.py
_LOOK_EVERY = 20  # steps between two looks at the losses
_GUIDANCE, _STEPS = 3.0, 20  # of the pictures that training shows


class Prepare:
    """Turns rows of a face set into a row for each picture: pixels and measures.

    Pictures that are rejected or of too low quality are left out.
    """

    def __init__(self, config: DiffusionTrainingConfig) -> None:
        torch.set_num_threads(1)
        self._config = config
        self._portraits = Portraits()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Columns: name, pixels (side × side × 3 bytes, RGB), and a float64 for each attribute.

        Raises:
            UserError: where an image cannot be decoded, naming it.
        """
        config = self._config
        names, crops = [], []
        for identity in from_table(table):
            if identity.rejected is None:
                for image in identity.kept:
                    names.append(f"{identity.identity_id}/{image.image_id}")
                    crops.append(_crop(image.data, names[-1]))
        schema = pa.schema(
            [
                ("name", pa.string()),
                ("pixels", pa.binary()),
                *((name, pa.float64()) for name in config.attributes),
            ]
        )
        if not crops:
            return schema.empty_table()
        stack = np.stack(crops)
        keep = np.ones(len(stack), bool)
        if config.min_quality is not None:
            keep = self._portraits.measure("quality", stack) >= config.min_quality
        kept = np.flatnonzero(keep)
        if not len(kept):
            return schema.empty_table()
        side = (config.side, config.side)
        columns: dict[str, Any] = {
            "name": [names[i] for i in kept],
            "pixels": [resize(stack[i], side).tobytes() for i in kept],
        }
        for name, attribute in config.attributes.items():
            columns[name] = self._portraits.measure(attribute.measure, stack[kept])
        return pa.table(columns, schema=schema)


def _crop(data: bytes, name: str) -> np.ndarray:
    try:
        rgb = decode(data, source=name)
    except ImageError as error:
        raise UserError(f"{error}; run `raypipe embed` on the set, which marks it") from None
    return rgb if rgb.shape[:2] == (SIZE, SIZE) else resize(rgb, (SIZE, SIZE))


class _Autoencoding(nn.Module):
    """The autoencoder's forward pass, as one module that a distributed wrapper can hold."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Decoded pictures and the mean divergence of their codes from a normal law."""
        law = self.vae.encode(images).latent_dist
        return self.vae.decode(law.mean + law.std * noise).sample, law.kl().mean()


class _Denoising(nn.Module):
    """UNet and text encoder, likewise."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.unet: Any = parts.unet
        self.text: Any = parts.text

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """The noise in codes."""
        return self.unet(noisy, times, self.text(tokens)[0]).sample


class Training:
    """Networks, optimizers and pictures of a run on one worker.

    Args:
        parts: networks on the CPU.
        embedder: of the perceptual loss, on this worker's device.
        pixels: this worker's pictures, uint8 (N, side, side, 3).
        captions: what is said of them, N of them.
        cpu: compute on the CPU though there is a GPU.
        rank: of this worker.

    Raises:
        UserError: where the embedder passes no gradients, or there are fewer pictures than a batch
            has.
    """

    def __init__(
        self,
        config: DiffusionTrainingConfig,
        parts: Parts,
        embedder: object,
        pixels: np.ndarray,
        captions: list[str],
        *,
        seed: int,
        cpu: bool,
        rank: int,
    ) -> None:
        largest = max(config.batch_size, config.vae_batch_size)
        if len(pixels) < largest:
            raise UserError(
                f"train_diffusion: a worker has {len(pixels):,} pictures, and a batch {largest}; "
                "take a larger set or a smaller batch"
            )
        self.config, self.parts, self._seed, self._rank = config, parts, seed, rank
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=config.precision)
        self._device = self.accelerator.device
        self._pixels = torch.from_numpy(pixels).to(self._device)
        self._tokens = tokenize(parts.tokenizer, captions).to(self._device)
        self._empty = tokenize(parts.tokenizer, [""]).to(self._device)
        self._faces = losses.FaceFeatures(embedder).to(self._device)
        self._latents: Tensor | None = None
        self._schedule = noise_schedule()
        self._autoencoding, self._vae_optimizer = self.accelerator.prepare(
            _Autoencoding(parts.vae), torch.optim.AdamW(parts.vae.parameters(), config.vae_lr)
        )
        denoising = _Denoising(parts)
        self._denoising, self._optimizer = self.accelerator.prepare(
            denoising, torch.optim.AdamW(denoising.parameters(), config.lr)
        )
        self._ema = {
            "vae": EMAModel(parts.vae.parameters(), decay=config.ema, foreach=True),
            "unet": EMAModel(denoising.parameters(), decay=config.ema, foreach=True),
        }
        for average in self._ema.values():
            average.to(self._device)

    def train_period(self, first: int, last: int, on_step: Callable[[int, str], None]) -> dict:
        """Makes the updates `first` to `last` − 1, counted over both phases.

        Args:
            on_step: called now and then with (updates done, the losses in words).

        Returns:
            The mean of every loss, "step" (`last`), "seconds" and "images_per_second" (of this
            worker).

        Raises:
            UserError: where a loss is no number any more.
        """
        sums: dict[str, Tensor] = {}
        pictures, began = 0, time.perf_counter()
        for step in range(first, last):
            parts = self._vae_step(step) if step < self.config.vae_steps else self._step(step)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach()
            pictures += self._batch_size(step)
            if (step + 1) % _LOOK_EVERY == 0:
                on_step(
                    step + 1, ", ".join(f"{k} {float(v.detach()):.4f}" for k, v in parts.items())
                )
        means = {name: float(value) / (last - first) for name, value in sums.items()}
        if not all(math.isfinite(value) for value in means.values()):
            raise UserError(
                f"train_diffusion: a loss is no number any more before update {last}; "
                "take a lower diffusion.lr or diffusion.vae_lr"
            )
        seconds = time.perf_counter() - began
        return {
            **means,
            "step": last,
            "seconds": seconds,
            "images_per_second": pictures / seconds,
        }

    def _batch_size(self, step: int) -> int:
        config = self.config
        return config.vae_batch_size if step < config.vae_steps else config.batch_size

    def _batch(self, step: int) -> Tensor:
        """Which pictures an update sees: every epoch all of them, in an order of its own."""
        size = self._batch_size(step)
        number = step if step < self.config.vae_steps else step - self.config.vae_steps
        epoch, place = divmod(number, len(self._pixels) // size)
        stream = f"order {size} {self._rank}"
        order = generator(self._seed, _JOB, epoch, stream).permutation(len(self._pixels))
        return torch.from_numpy(order[place * size : (place + 1) * size]).to(self._device)

    def _random(self, step: int) -> torch.Generator:
        seed = torch_seed(self._seed, _JOB, step, f"noise {self._rank}")
        return torch.Generator(self._device).manual_seed(seed)

    def _images(self, batch: Tensor) -> Tensor:
        return self._pixels[batch].permute(0, 3, 1, 2).float() / 127.5 - 1

    def _vae_step(self, step: int) -> dict[str, Tensor]:
        config = self.config
        images = self._images(self._batch(step))
        side = config.side // 4
        noise = torch.randn(
            (len(images), LATENTS, side, side), generator=self._random(step), device=self._device
        )
        with self.accelerator.autocast():
            made, divergence = self._autoencoding(images, noise)
            found = {"pixels": F.l1_loss(made.float(), images), "kl": divergence.float()}
            total = found["pixels"] + config.kl * found["kl"]
            if config.perceptual:
                maps = [self._faces(_enlarged(x))[1] for x in (made.float(), images)]
                found["perceptual"] = losses.feature_distance(*maps)
                total = total + config.perceptual * found["perceptual"]
        self._update(self._vae_optimizer, self._autoencoding, total, step, "vae")
        return found

    def _step(self, step: int) -> dict[str, Tensor]:
        config = self.config
        if self._latents is None:
            self._latents = self._encode()
        batch, random = self._batch(step), self._random(step)
        codes = self._latents[batch]
        noise = torch.randn(codes.shape, generator=random, device=self._device)
        steps = self._schedule.config.num_train_timesteps
        times = torch.randint(steps, (len(codes),), generator=random, device=self._device)
        silent = torch.rand(len(codes), 1, generator=random, device=self._device) < config.unsaid
        tokens = torch.where(silent, self._empty, self._tokens[batch])
        noisy = self._schedule.add_noise(codes, noise, times)
        with self.accelerator.autocast():
            found = F.mse_loss(self._denoising(noisy, times, tokens).float(), noise)
        self._update(self._optimizer, self._denoising, found, step - config.vae_steps, "unet")
        return {"noise": found}

    def _update(
        self, optimizer: Any, module: nn.Module, total: Tensor, step: int, part: str
    ) -> None:
        """One update: the rate rises, then falls to 0 along a cosine."""
        config = self.config
        vae = part == "vae"
        rate, steps = (config.vae_lr, config.vae_steps) if vae else (config.lr, config.steps)
        if step < config.warmup_steps:
            rate *= (step + 1) / config.warmup_steps
        else:
            share = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
            rate *= 0.5 * (1 + math.cos(math.pi * share))
        for group in optimizer.param_groups:
            group["lr"] = rate
        self.accelerator.backward(total)
        self.accelerator.clip_grad_norm_(module.parameters(), _CLIP)
        optimizer.step()
        optimizer.zero_grad()
        self._ema[part].step(self.accelerator.unwrap_model(module).parameters())

    @torch.no_grad()
    def _encode(self) -> Tensor:
        """Codes of all pictures by the averaged autoencoder, scaled to a variance of 1; the scale
        becomes a part of the autoencoder, as in Stable Diffusion."""
        vae = self.parts.vae
        self._ema["vae"].copy_to(vae.parameters())
        codes = torch.cat(
            [
                vae.encode(self._images(part)).latent_dist.mean
                for part in torch.arange(len(self._pixels), device=self._device).split(_ENCODED)
            ]
        )
        spread = self.accelerator.gather(codes.var().reshape(1)).mean().sqrt()
        vae.register_to_config(scaling_factor=float(1 / spread))
        return codes / spread

    def pack(self, history: list[dict[str, Any]]) -> bytes:
        """Everything that training goes on from."""
        state = {
            "vae": self.parts.vae.state_dict(),
            "denoising": self.accelerator.unwrap_model(self._denoising).state_dict(),
            "vae_optimizer": self._vae_optimizer.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "ema": {name: average.state_dict() for name, average in self._ema.items()},
            "scaling_factor": self.parts.vae.config.scaling_factor,
            "history": history,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def unpack(self, data: bytes) -> list[dict[str, Any]]:
        """Restores what `pack` packed; returns the history."""
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self.parts.vae.load_state_dict(state["vae"])
        self.accelerator.unwrap_model(self._denoising).load_state_dict(state["denoising"])
        self._vae_optimizer.load_state_dict(state["vae_optimizer"])
        self._optimizer.load_state_dict(state["optimizer"])
        for name, average in self._ema.items():
            average.load_state_dict(state["ema"][name])
            average.to(self._device)
        return state["history"]

    @torch.inference_mode()
    def grid(self, captions: list[str], seed: int) -> bytes:
        """A PNG: decoded pictures of the set above themselves while the autoencoder is trained;
        afterwards a picture of each caption, four times."""
        if self._latents is None:
            images = self._images(torch.arange(min(8, len(self._pixels)), device=self._device))
            made = self.parts.vae(images).sample
            rows = torch.stack([images, made.clamp(-1, 1)]).cpu()
            pixels = ((rows + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).numpy()
        else:
            painted = paint(self.parts, captions * 4, seed)
            pixels = painted.reshape(4, len(captions), *painted.shape[1:])
        rows, columns, side = pixels.shape[:3]
        joined = pixels.transpose(0, 2, 1, 3, 4).reshape(rows * side, columns * side, 3)
        return encode_png(np.ascontiguousarray(joined))


def paint(parts: Parts, captions: list[str], seed: int, device: str | None = None) -> np.ndarray:
    """Pictures of captions, uint8 (N, side, side, 3)."""
    drawing = pipeline(parts)
    drawing.set_progress_bar_config(disable=True)
    random = [
        torch.Generator("cpu").manual_seed(torch_seed(seed, _JOB, i, "grid"))
        for i in range(len(captions))
    ]
    side = parts.vae.config.sample_size
    images = drawing(
        captions,
        height=side,
        width=side,
        num_inference_steps=_STEPS,
        guidance_scale=_GUIDANCE,
        generator=random,
        output_type="np",
    ).images
    return (images * 255).round().astype(np.uint8)


def read_state(data: bytes, parts: Parts) -> list[dict[str, Any]]:
    """The averaged networks of a packed training, copied into `parts`; returns the history."""
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    parts.vae.load_state_dict(state["vae"])
    denoising = _Denoising(parts)
    denoising.load_state_dict(state["denoising"])
    for name, module in (("vae", parts.vae), ("unet", denoising)):
        average = EMAModel(module.parameters())
        average.load_state_dict(state["ema"][name])
        average.copy_to(module.parameters())
    parts.vae.register_to_config(scaling_factor=state["scaling_factor"])
    return state["history"]


def _enlarged(images: Tensor) -> Tensor:
    """Pictures at the size that embedders take."""
    return F.interpolate(images, size=SIZE, mode="bilinear", align_corners=False)
