"""Training CemiFace: every image of a face set is both what is painted and whom it is painted of.

Losses as published (arXiv 2409.18876, section 3): the mean squared error of the noise (of the
velocity, where that is what the network finds), and for the picture x̂0 that it leaves, with c the
cosine of its feature and the image's own and γ = t / T, (1 − γ) (1 − c)² + γ (m − c)². So little
noise asks for the person itself, and much noise for somebody at the similarity m.
"""

import io
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import functional as F

from raypipe.config.cemiface_training import CemiFaceTrainingConfig
from raypipe.feature_training import Batch, ImageDecoder, learning_rate, train_steps
from raypipe.generator_losses import FaceFeatures
from raypipe.images import encode_png
from raypipe.models.cemiface import (
    STEPS,
    CemiFace,
    Sizes,
    enlarge,
    noise_schedule,
    published,
    small,
)
from raypipe.models.vec2face import to_pixels
from raypipe.seeding import generator, torch_seed

_JOB = "train_cemiface"
_SHOWN = (1.0, 0.7, 0.4, 0.1, -0.2)  # similarities of a grid's rows
_SHOWN_STEPS = 20  # of DDIM
_HEAVIEST = 10.0  # weight of the similarity losses


def sizes(config: CemiFaceTrainingConfig, vector: int) -> Sizes:
    """The sizes of a new network for features of a length."""
    return small(vector) if config.size == "small" else published(vector)


def similarities(config: CemiFaceTrainingConfig) -> np.ndarray:
    """The grid that similarities are drawn from, ascending, float32."""
    count = int((1 - config.lowest) / config.interval + 1e-6) + 1
    return (1 - config.interval * np.arange(count)[::-1]).astype(np.float32)


def decode_batch(
    table: pa.Table, *, seed: int, epoch: int, decoder: ImageDecoder, grid: np.ndarray
) -> Batch:
    """Decodes a batch of `feature_training.image_rows`, and draws a similarity for each image.

    What is drawn depends on the seed, the epoch and the image, not on who decodes it.

    Returns:
        images uint8 (N, side, side, 3), vectors float32 (N, D), similarity float32 (N,).

    Raises:
        UserError: where an image cannot be decoded, naming it.
    """
    names, images = decoder(table)
    drawn = [grid[generator(seed, name, epoch, _JOB).integers(len(grid))] for name in names]
    vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False))
    return {
        "images": torch.from_numpy(images),
        "vectors": torch.from_numpy(vectors),
        "similarity": torch.from_numpy(np.array(drawn, np.float32)),
    }


def clean_images(noisy: Tensor, found: Tensor, kept: Tensor, prediction: str) -> Tensor:
    """x̂0: pictures without their noise, clipped to [-1, 1] as DCFace does.

    Args:
        noisy: (B, 3, H, W).
        found: their noise or velocity, as `prediction` (of `Sizes`) says, (B, 3, H, W).
        kept: ᾱ of each picture's time, (B,).
    """
    kept = kept.reshape(-1, 1, 1, 1)
    if prediction == "v_prediction":
        return (kept.sqrt() * noisy - (1 - kept).sqrt() * found).clamp(-1, 1)
    return ((noisy - (1 - kept).sqrt() * found) / kept.sqrt()).clamp(-1, 1)


def similarity_losses(
    cosines: Tensor, wanted: Tensor, times: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Means of (1 − γ) (1 − c)² and of γ (m − c)², each 0-d; their sum is the published SimMat.

    Args:
        cosines: c, (B,).
        wanted: m, (B,).
        times: t, (B,); γ = t / 1000.
        weights: of the images, (B,); published: 1.
    """
    share = times / STEPS
    return (
        (weights * (1 - share) * (1 - cosines) ** 2).mean(),
        (weights * share * (wanted - cosines) ** 2).mean(),
    )


def similarity_weights(kept: Tensor, prediction: str) -> Tensor:
    """What the similarity losses of images at different times weigh, (B,).

    The squared error of a velocity is that of the noise divided by ᾱ. Where the network finds
    velocities, dividing the similarity losses by ᾱ too keeps the published balance at every time,
    but at most tenfold: with a hundredfold the error of velocity rose from 0.10 to 0.16.

    Args:
        kept: ᾱ, (B,).
    """
    if prediction == "v_prediction":
        return (1 / kept).clamp(max=_HEAVIEST)
    return torch.ones_like(kept)


class Training:
    """Network, optimizer and losses of a run on one worker.

    Args:
        network: on the CPU.
        embedder: as `raypipe.embedders.open_embedder` gives it, on this worker's device.
        steps: batches of an epoch on each worker.
        cpu: compute on the CPU though there is a GPU.
        rank: of this worker.

    Raises:
        UserError: where the embedder passes no gradients.
    """

    def __init__(
        self,
        config: CemiFaceTrainingConfig,
        network: CemiFace,
        embedder: object,
        *,
        seed: int,
        steps: int,
        cpu: bool,
        rank: int,
    ) -> None:
        self.config, self.steps, self._seed, self._rank = config, steps, seed, rank
        self.accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulate,
        )
        self._device = self.accelerator.device
        self.faces = FaceFeatures(embedder).to(self._device)
        self._kept = noise_schedule().alphas_cumprod.to(self._device)
        self.network = network
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.lr)
        self._wrapped, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.average = _average(network, config.ema)
        self.average.to(self._device)

    def learning_rate(self, epoch: int, step: int) -> float:
        """Rate of a step (both counted from 0): linear warm-up, then constant or half a cosine."""
        config = self.config
        return learning_rate(
            epoch + step / self.steps,
            warmup=config.warmup_epochs,
            epochs=config.epochs,
            highest=config.lr,
            final=config.lr if config.final_lr is None else config.final_lr,
        )

    def train_period(
        self,
        batches: Iterable[Batch],
        *,
        epoch: int,
        first_step: int,
        on_step: Callable[[int, str], None],
    ) -> dict[str, Any]:
        """Trains an epoch or a part of it.

        Args:
            batches: what `decode_batch` returns.
            epoch: counted from 0.
            first_step: steps of the epoch before, on this worker.
            on_step: called now and then with (images done on this worker, the losses in words).

        Returns:
            As `feature_training.train_steps` does.

        Raises:
            DivergedError: where a loss is no number any more.
        """
        # Batches left over at the end make no update of their own.
        self.accelerator.step = 0
        self.optimizer.zero_grad()

        def train_step(batch: Batch, step: int) -> tuple[dict[str, Tensor], float]:
            rate = self.learning_rate(epoch, step)
            with self.accelerator.accumulate(self._wrapped):
                return self._step(batch, epoch, step, rate), rate

        return train_steps(
            batches,
            train_step,
            first_step=first_step,
            on_step=on_step,
            mistake=f"{_JOB}: a loss is no number any more in epoch {epoch + 1}; "
            f"lower cemiface.lr ({self.config.lr:g})",
        )

    def _step(self, batch: Batch, epoch: int, step: int, rate: float) -> dict[str, Tensor]:
        """One batch: gradients, and an update where enough have gathered; the losses."""
        config = self.config
        vectors, wanted, images = (
            batch[name].to(self._device, non_blocking=True)
            for name in ("vectors", "similarity", "images")
        )
        clean = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        number = epoch * self.steps + step
        random = torch.Generator(self._device)
        random.manual_seed(torch_seed(self._seed, _JOB, number, f"noise {self._rank}"))
        noise = torch.randn(clean.shape, generator=random, device=self._device)
        times = torch.randint(STEPS, (len(clean),), generator=random, device=self._device)
        kept = self._kept[times]
        share = kept.reshape(-1, 1, 1, 1)
        noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
        prediction = self.network.sizes.prediction
        target = noise
        if prediction == "v_prediction":
            target = share.sqrt() * noise - (1 - share).sqrt() * clean
        with self.accelerator.autocast():
            found = self._wrapped(noisy, times, vectors, wanted).float()
        parts = {"noise": F.mse_loss(found, target)}
        total = parts["noise"]
        if config.similarity_weight:
            # Not in half precision: where all features share a large part, the cosine of what is
            # left of them would be rounding.
            few = slice(math.ceil(config.similarity_share * len(clean)))
            left = clean_images(noisy[few], found[few], kept[few], prediction)
            made, _ = self.faces(enlarge(left))
            asked = self.network.direction(vectors[few])
            cosines = (self.network.direction(made) * asked).sum(1)
            parts["own"], parts["wanted"] = similarity_losses(
                cosines, wanted[few], times[few], similarity_weights(kept[few], prediction)
            )
            total = total + config.similarity_weight * (parts["own"] + parts["wanted"])
        self.accelerator.backward(total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(self._wrapped.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.average.step(self.network.parameters())
        return parts

    def pack(self, history: list[dict[str, Any]]) -> bytes:
        """Everything training goes on from; the rate is a function of the steps in the history."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": history,
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def unpack(self, data: bytes) -> list[dict[str, Any]]:
        """Restores what `pack` packed; returns the history."""
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.average.to(self._device)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        return state["history"]

    @torch.inference_mode()
    def grid(self, people: Batch, seed: int) -> bytes:
        """A PNG: in each column an image, and under it five made from its feature by the average
        so far, at similarities from 1 down to -0.2, from the same noise.

        Args:
            people: images and vectors of a batch.
        """
        side, vectors = self.network.sizes.side, people["vectors"].to(self._device)
        noise = torch.from_numpy(
            np.stack(
                [
                    generator(seed, f"person-{k}", stream="grid").standard_normal(
                        (3, side, side), np.float32
                    )
                    for k in range(len(vectors))
                ]
            )
        ).to(self._device)
        given = people["images"].permute(0, 3, 1, 2).float() / 127.5 - 1
        self.average.store(self.network.parameters())
        self.average.copy_to(self.network.parameters())
        with self.accelerator.autocast():
            made = self.network.sample(
                vectors.repeat(len(_SHOWN), 1),
                torch.tensor(_SHOWN, device=self._device).repeat_interleave(len(vectors)),
                noise.repeat(len(_SHOWN), 1, 1, 1),
                _SHOWN_STEPS,
            )
        self.average.restore(self.network.parameters())
        rows = np.concatenate([to_pixels(enlarge(given)), to_pixels(made)])
        rows = rows.reshape(1 + len(_SHOWN), len(vectors), *rows.shape[1:])
        return encode_png(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))


def _average(network: CemiFace, decay: float) -> EMAModel:
    # diffusers counts an update less and has a decay of (1 + n) / (10 + n) without the warm-up.
    return EMAModel(
        network.parameters(), decay=decay, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4
    )


def read_state(data: bytes, network: CemiFace) -> list[dict[str, Any]]:
    """Gives a network the averaged weights of what `Training.pack` packed; returns the history."""
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    average = _average(network, 0.0)
    average.load_state_dict(state["average"])
    average.copy_to(network.parameters())
    return state["history"]
