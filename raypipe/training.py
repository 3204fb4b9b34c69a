"""Training a recognizer: one epoch after another over a set in a fixed order."""

import hashlib
import io
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, distributed, nn

from raypipe.config.train import TrainConfig
from raypipe.errors import UserError
from raypipe.heads import make_head
from raypipe.images import ImageError, decode
from raypipe.models.iresnet import EMBEDDING, iresnet
from raypipe.recognizer import SIDE, normalised
from raypipe.seeding import generator, torch_seed

Batch = dict[str, Tensor]
# Steps between two looks at the loss: a look waits for the device and for the other workers.
_LOOK_EVERY = 50


class DivergedError(UserError):
    """The loss is no number any more; trying again would end there again."""


class Recognition(nn.Module):
    """A network and its head; the forward pass gives what a step needs."""

    def __init__(self, config: TrainConfig, classes: int, seed: int) -> None:
        """Draws the weights from the seed, the same on every worker."""
        super().__init__()
        torch.manual_seed(torch_seed(seed, "train", stream="weights"))
        self.network = iresnet(config.depth, width=config.width, dropout=config.dropout)
        self.head = make_head(config, EMBEDDING, classes)
        self.low_precision = config.precision == "bfloat16"

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The head's mean loss of a batch, and how many images are nearest to their own class.

        Args:
            images: uint8 (N, 112, 112, 3), RGB.
            labels: int64 (N,).
        """
        kind = images.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=self.low_precision):
            embeddings = self.network(normalised(images))
        return self.head.loss(embeddings, labels)


def decode_batch(table: pa.Table, *, seed: int, epoch: int, flip: bool) -> Batch:
    """Decodes rows of a training set.

    Whether an image is mirrored depends on the seed, the epoch and its position, not on who
    decodes it.

    Args:
        table: columns image (struct with `bytes`), label and position.

    Returns:
        images uint8 (N, 112, 112, 3), labels int64 (N,), positions int64 (N,).

    Raises:
        UserError: where an image cannot be decoded or is not 112×112, naming its position.
    """
    images = np.empty((table.num_rows, SIDE, SIDE, 3), np.uint8)
    positions = table["position"].to_pylist()
    for row, (position, image) in enumerate(zip(positions, table["image"], strict=True)):
        source = f"training set, position {position}"
        try:
            pixels = decode(image["bytes"].as_py() or b"", source=source)
        except ImageError as error:
            raise UserError(f"{error}; run `raypipe verify` on the set and make it anew") from None
        if pixels.shape != (SIDE, SIDE, 3):
            height, width = pixels.shape[:2]
            raise UserError(f"{source}: {width}×{height} pixels, training needs {SIDE}×{SIDE}")
        if flip and generator(seed, "train", position, f"flip {epoch}").random() < 0.5:
            pixels = pixels[:, ::-1]
        images[row] = pixels
    labels = np.asarray(table["label"].to_numpy(), np.int64)
    return {
        "images": torch.from_numpy(images),
        "labels": torch.from_numpy(labels.copy()),
        "positions": torch.tensor(positions, dtype=torch.int64),
    }


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Convolutions, linear layers and head with weight decay; BN, PReLU and biases without."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(module: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with momentum over `parameter_groups`."""
    groups = parameter_groups(module, config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def learning_rate(config: TrainConfig, epoch: int, step: int, steps: int) -> float:
    """Rate of a step (all counted from 0): linear warm-up, then a tenth after each milestone."""
    rate = config.lr * 0.1 ** sum(epoch >= milestone for milestone in config.milestones)
    done = epoch + (step + 1) / steps
    return rate * min(1.0, done / config.warmup_epochs) if config.warmup_epochs else rate


def _filled(batches: Iterable[Batch], size: int) -> Iterator[tuple[Batch, int]]:
    """Batches of one size, with how many of their images are new.

    The last one is filled up with the end of the one before: batch norm would take the statistics
    of a handful of images for those of the set, and leaving them out would lose the same images in
    every epoch.
    """
    previous: Batch | None = None
    for batch in batches:
        new = len(batch["labels"])
        if new < size and previous is not None:
            kept = {name: values[new - size :] for name, values in previous.items()}
            batch = {name: torch.cat([kept[name], values]) for name, values in batch.items()}
        yield batch, new
        previous = batch


def _summed(values: Tensor) -> Tensor:
    """Sum over the workers."""
    if distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def train_epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    *,
    config: TrainConfig,
    epoch: int,
    steps: int,
    on_step: Callable[[int, int], None],
) -> dict[str, Any]:
    """Trains one epoch, in the order the batches come.

    Args:
        module: a `Recognition`, or DistributedDataParallel around one.
        batches: what `decode_batch` returns, in pinned memory for a GPU, positions rising.
        epoch: counted from 0.
        steps: batches of an epoch on each worker.
        on_step: called with (steps done, images done on this worker).

    Returns:
        Over all workers: loss (mean over the steps), accuracy, images (filled-up ones not counted),
        images_per_second; of this worker: images_here, order (SHA-256 of its positions, 8 bytes
        each, little-endian), learning_rate (of the last step), seconds, wait_seconds (for batches),
        step_seconds.

    Raises:
        DivergedError: on every worker at once, where the loss is no number any more.
    """
    inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
    assert isinstance(inner, Recognition)
    device = inner.head.weight.device
    module.train()
    order, last, rate, waited = hashlib.sha256(), -1, 0.0, 0.0
    images = seen = 0
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the losses, of right images
    start = idle = time.perf_counter()
    for step, (batch, new) in enumerate(_filled(batches, config.batch_size)):
        waited += time.perf_counter() - idle
        positions = batch["positions"][-new:].numpy()
        assert positions[0] > last, f"out of order: {positions[0]} after {last}"
        assert np.all(np.diff(positions) > 0), "out of order within a batch"
        order.update(positions.astype("<i8").tobytes())
        last = int(positions[-1])
        images += new
        rate = learning_rate(config, epoch, step, steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        pixels = batch["images"].to(device, non_blocking=True)
        batch_loss, right = module(pixels, batch["labels"].to(device, non_blocking=True))
        optimizer.zero_grad()
        batch_loss.backward()
        nn.utils.clip_grad_norm_(inner.network.parameters(), config.clip)
        optimizer.step()
        sums[0] += batch_loss.detach()
        sums[1] += right
        seen += len(batch["labels"])
        if (step + 1) % _LOOK_EVERY == 0:
            _check(_summed(sums.clone()), config, epoch, step)
        on_step(step + 1, images)
        idle = time.perf_counter()
    seconds = time.perf_counter() - start
    counts = sums.new_tensor([step + 1, seen, images])
    sums, counts = _summed(sums), _summed(counts)
    _check(sums, config, epoch, steps - 1)
    loss, accuracy = (sums / counts[:2]).tolist()
    total = int(counts[2].item())
    return {
        "loss": loss,
        "accuracy": accuracy,
        "images": total,
        "images_here": images,
        "order": order.hexdigest(),
        "learning_rate": rate,
        "images_per_second": total / seconds,
        "seconds": seconds,
        "wait_seconds": waited,
        "step_seconds": seconds - waited,
    }


def _check(sums: Tensor, config: TrainConfig, epoch: int, step: int) -> None:
    if not torch.isfinite(sums[0]):
        raise DivergedError(
            f"train: the loss is no number any more in epoch {epoch + 1}, by step {step + 1}; "
            f"lower train.lr ({config.lr:g}) or raise train.warmup_epochs "
            f"({config.warmup_epochs:g})"
        )


def pack_state(
    module: Recognition, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]]
) -> bytes:
    """Everything training goes on from: network, head, optimizer, and the epochs so far.

    The rate is a function of the epoch, so the number of epochs in the history is the state of the
    schedule; the random numbers of an epoch are seeded at its start.
    """
    buffer = io.BytesIO()
    state = {
        "network": module.network.state_dict(),
        "head": module.head.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": history,
    }
    torch.save(state, buffer)
    return buffer.getvalue()


def read_state(data: bytes) -> dict[str, Any]:
    """What `pack_state` packed, on the CPU; holds tensors, numbers and text, and no code is run."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def unpack_state(
    data: bytes, module: Recognition, optimizer: torch.optim.Optimizer
) -> list[dict[str, Any]]:
    """Restores network, head and optimizer; returns the history."""
    state = read_state(data)
    module.network.load_state_dict(state["network"])
    module.head.load_state_dict(state["head"])
    optimizer.load_state_dict(state["optimizer"])
    return state["history"]
