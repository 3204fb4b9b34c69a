"""Training Vec2Face: every image of a face set is painted from its own feature."""

import io
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from raypipe import generator_losses as losses
from raypipe.config.generator import GeneratorConfig, Losses
from raypipe.feature_training import Batch, ImageDecoder, learning_rate, train_steps
from raypipe.images import encode_png
from raypipe.models.vec2face import Vec2Face, to_pixels
from raypipe.models.vec2face_sizes import INFERENCE, Masking
from raypipe.seeding import generator, torch_seed

SIDE = 112  # pixels
_BETAS = (0.9, 0.99)  # published: vec2face.py
_PER_UPDATE = 112  # published: images that the base rate is for


def decode_batch(
    table: pa.Table,
    *,
    seed: int,
    epoch: int,
    decoder: ImageDecoder,
    masking: Masking,
    tokens: int,
) -> Batch:
    """Decodes a batch of `image_rows`, and draws which tokens are masked.

    What is masked depends on the seed, the epoch and the image, not on who decodes it.

    Returns:
        images uint8 (N, 112, 112, 3), vectors float32 (N, D), noise float32 (N, tokens), rates
        float64 (N,).

    Raises:
        UserError: where an image cannot be decoded, naming it.
    """
    names, images = decoder(table)
    drawn = [
        masking.draw(generator(seed, name, epoch, "train_generator"), tokens) for name in names
    ]
    vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False))
    return {
        "images": torch.from_numpy(images),
        "vectors": torch.from_numpy(vectors),
        "noise": torch.from_numpy(np.stack([noise for noise, _ in drawn])),
        "rates": torch.tensor([rate for _, rate in drawn], dtype=torch.float64),
    }


class Generation(nn.Module):
    """The forward pass of a training step, as one module that a distributed wrapper can hold."""

    def __init__(self, network: Vec2Face, drop_rate: float) -> None:
        super().__init__()
        self.network = network
        self.drop_rate = drop_rate

    def forward(
        self, vectors: Tensor, noise: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.network.forward_train(vectors, noise, rates, drop_rate=self.drop_rate)


class Training:
    """Network, discriminator, optimizers and losses of a run on one worker.

    Args:
        network: on the CPU.
        embedder: as `raypipe.embedders.open_embedder` gives it, on this worker's device.
        vectors: some features of the set, float32 (n, D); their mean is the centre.
        steps: batches of an epoch on each worker.
        cpu: compute on the CPU though there is a GPU.

    Raises:
        UserError: where the embedder passes no gradients, or the perceptual network does not load.
    """

    def __init__(
        self,
        config: GeneratorConfig,
        network: Vec2Face,
        embedder: object,
        vectors: np.ndarray,
        *,
        seed: int,
        steps: int,
        cpu: bool,
    ) -> None:
        self.config = config
        self.steps = steps
        self.network = network
        self.accelerator = Accelerator(
            cpu=cpu,
            mixed_precision=config.precision,
            gradient_accumulation_steps=config.accumulate,
        )
        device = self.accelerator.device
        images = config.batch_size * config.accumulate * self.accelerator.num_processes
        self.rate = config.base_lr * images / _PER_UPDATE
        self.faces = losses.FaceFeatures(embedder).to(device)
        self.perceptual = (
            losses.LPIPS.from_checkpoint(config.perceptual).to(device)
            if config.perceptual
            else None
        )
        self.centre = torch.from_numpy(vectors.mean(0)).to(device)
        self.generation, self.optimizer = self.accelerator.prepare(
            Generation(network, config.mask_lowest), self._optimizer(network)
        )
        self.discriminator: nn.Module | None = None
        if config.weight("gan") and config.gan_from < config.epochs:
            torch.manual_seed(torch_seed(seed, "train_generator", stream="discriminator"))
            discriminator = losses.Discriminator()
            self.discriminator, self.gan_optimizer = self.accelerator.prepare(
                discriminator, self._optimizer(discriminator)
            )

    def _optimizer(self, module: nn.Module) -> torch.optim.AdamW:
        trained = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=self.rate, betas=_BETAS)

    def learning_rate(self, epoch: int, step: int) -> float:
        """Rate of a step (both counted from 0): linear warm-up, then half a cosine."""
        config = self.config
        return learning_rate(
            epoch + step / self.steps,
            warmup=config.warmup_epochs,
            epochs=config.epochs,
            highest=self.rate,
            final=config.min_lr,
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
        config = self.config
        self.generation.train(config.dropout)
        # Batches left over at the end make no update of their own.
        self.accelerator.step = 0
        self.optimizer.zero_grad()
        modules = [self.generation]
        if self.discriminator is not None:
            self.gan_optimizer.zero_grad()
            modules.append(self.discriminator)

        def train_step(batch: Batch, step: int) -> tuple[dict[str, Tensor], float]:
            rate = self.learning_rate(epoch, step)
            with self.accelerator.accumulate(*modules):
                return self._step(batch, epoch, step, rate), rate

        return train_steps(
            batches,
            train_step,
            first_step=first_step,
            on_step=on_step,
            mistake=f"train_generator: a loss is no number any more in epoch {epoch + 1}; "
            f"lower generator.base_lr ({config.base_lr:g})",
        )

    def _step(self, batch: Batch, epoch: int, step: int, rate: float) -> dict[str, Tensor]:
        """One batch: gradients, and an update where enough have gathered; the losses."""
        config, device = self.config, self.accelerator.device
        vectors = batch["vectors"].to(device)
        wanted = batch["images"].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with self.accelerator.autocast():
            made, tokens, targets = self.generation(
                vectors, batch["noise"].to(device), batch["rates"].to(device)
            )
            weights = {name: config.weight(name) for name in Losses.model_fields}
            parts = {"pixels": F.mse_loss(made, wanted)}
            if weights["ssim"]:
                parts["ssim"] = 1 - losses.ssim(made, wanted)
            if weights["token"]:
                parts["token"] = F.mse_loss(tokens.float(), targets.float())
            if weights["perceptual"] and self.perceptual is not None:
                parts["perceptual"] = self.perceptual(made, wanted)
            if step % config.identity_every == 0:
                made_features, made_maps = self.faces(made)
                parts["identity"] = losses.identity_distance(made_features, vectors)
                weights["identity"] *= config.identity_every
                if weights["centred"]:
                    parts["centred"] = losses.identity_distance(
                        made_features - self.centre, vectors - self.centre
                    )
                    weights["centred"] *= config.identity_every
                if weights["perceptual"] and self.perceptual is None:
                    with torch.no_grad():
                        wanted_maps = self.faces(wanted)[1]
                    parts["perceptual"] = losses.feature_distance(made_maps, wanted_maps)
                    weights["perceptual"] *= config.identity_every
            total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
            if self.discriminator is not None and epoch >= config.gan_from:
                parts["gan"] = self._adversarial(made)
                last = self.network.im_decoder.conv_out.weight
                factor = losses.adaptive_weight(total, parts["gan"], last)
                total = total + weights["gan"] * factor * parts["gan"]
        self.accelerator.backward(total)
        self._update(self.optimizer, self.generation, rate)
        if "gan" in parts:
            assert self.discriminator is not None
            with self.accelerator.autocast():
                parts["discriminator"] = losses.discriminator_loss(
                    self.discriminator(wanted), self.discriminator(made.detach())
                )
            self.accelerator.backward(parts["discriminator"])
            self._update(self.gan_optimizer, self.discriminator, rate)
        return parts

    def _adversarial(self, made: Tensor) -> Tensor:
        """− mean logit of made images; the discriminator gets no gradient from it."""
        assert self.discriminator is not None
        plain = self.accelerator.unwrap_model(self.discriminator).requires_grad_(False)
        loss = -plain(made).mean()
        plain.requires_grad_(True)
        return loss

    def _update(self, optimizer: Any, module: nn.Module, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        if self.accelerator.sync_gradients:
            self.accelerator.clip_grad_norm_(module.parameters(), self.config.clip)
        optimizer.step()
        optimizer.zero_grad()

    def pack(self, history: list[dict[str, Any]]) -> bytes:
        """Everything training goes on from; the rate is a function of the steps in the history."""
        state: dict[str, Any] = {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": history,
        }
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        if self.discriminator is not None:
            plain = self.accelerator.unwrap_model(self.discriminator)
            state["discriminator"] = plain.state_dict()
            state["gan_optimizer"] = self.gan_optimizer.state_dict()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def unpack(self, data: bytes) -> list[dict[str, Any]]:
        """Restores what `pack` packed; returns the history."""
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        if self.discriminator is not None:
            plain = self.accelerator.unwrap_model(self.discriminator)
            plain.load_state_dict(state["discriminator"])
            self.gan_optimizer.load_state_dict(state["gan_optimizer"])
        return state["history"]

    @torch.inference_mode()
    def grid(self, people: Batch, seed: int) -> bytes:
        """A PNG: in each column an image, and under it four made from its feature.

        Args:
            people: images and vectors of a batch.
        """
        self.network.eval()
        vectors, device = people["vectors"], self.accelerator.device
        rows = [people["images"].numpy()]
        for number in range(4):
            drawn = [
                INFERENCE.draw(generator(seed, f"person-{k}", number, "grid"), self._tokens)
                for k in range(len(vectors))
            ]
            noise = torch.from_numpy(np.stack([noise for noise, _ in drawn])).to(device)
            rates = torch.tensor([rate for _, rate in drawn], device=device)
            rows.append(to_pixels(self.network(vectors.to(device), noise, rates)))
        return encode_png(np.concatenate([np.concatenate(list(row), axis=1) for row in rows]))

    @property
    def _tokens(self) -> int:
        return self.network.sizes.side**2


def read_state(data: bytes, network: Vec2Face) -> list[dict[str, Any]]:
    """Gives a network the weights of what `Training.pack` packed; returns the history."""
    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    network.load_state_dict(state["network"])
    return state["history"]
