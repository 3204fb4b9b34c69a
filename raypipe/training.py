"""Training a recognizer: the network, its head, and a step of both on every worker."""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, distributed, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raypipe import batch_augment
from raypipe.batch_augment import augment
from raypipe.batch_decode import decode_faces
from raypipe.config.augment import AugmentConfig
from raypipe.config.train import TrainConfig
from raypipe.device_decode import DeviceDecoder, pack
from raypipe.errors import UserError
from raypipe.heads import make_head
from raypipe.images import encode_png
from raypipe.models.iresnet import EMBEDDING
from raypipe.models.recognizers import make_recognizer
from raypipe.recognizer import SIDE
from raypipe.schedule import Steps, add_fingerprints, fingerprint
from raypipe.seeding import torch_seed
from raypipe.sharded_head import RowSGD, ShardedHead, read_shard, shard_file

Batch = dict[str, Tensor]
# Steps between two looks at the loss: a look waits for the device.
LOOK_EVERY = 50
STATE = "state.pt"
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DivergedError(UserError):
    """The loss is no number any more; trying again would end there again.

    Attributes:
        epoch, place: of the first image of the step, both from 0.
    """

    def __init__(self, message: str, epoch: int, place: int) -> None:
        super().__init__(message)
        self.epoch, self.place = epoch, place


def decode_batch(table: pa.Table, config: AugmentConfig, seed: int, threads: int = 1) -> Batch:
    """Decodes rows of a training set and draws how each image is augmented.

    What is drawn depends on the seed, the epoch and the position, not on who decodes it.

    Args:
        table: columns image (struct with `bytes`), label, position, and epoch, the same in all
            rows.

    Returns:
        images uint8 (N, 112, 112, 3), labels int64 (N,), positions int64 (N,), and what
        `batch_augment.draw` returns.

    Raises:
        UserError: where an image cannot be decoded or is not 112×112, naming its position.
    """
    sources = _sources(table["position"].to_numpy())
    images = decode_faces(_blobs(table), sources, threads=threads)
    return {"images": images, **_around_images(table, config, seed)}


def pack_batch(table: pa.Table, config: AugmentConfig, seed: int) -> Batch:
    """As `decode_batch`, with the images encoded, for `unpack_batch`."""
    return {**pack(_blobs(table)), **_around_images(table, config, seed)}


def unpack_batch(batch: Batch, decoder: DeviceDecoder) -> Batch:
    """What `pack_batch` returned, with the images decoded on the decoder's device.

    Raises:
        UserError: as `decode_batch`.
    """
    rest = dict(batch)
    sources = _sources(rest["positions"].numpy())
    images = decoder.decode(rest.pop("encoded"), rest.pop("sizes"), sources)
    return {"images": images, **rest}


def _blobs(table: pa.Table) -> list[bytes]:
    return [image["bytes"].as_py() or b"" for image in table["image"]]


def _sources(positions: np.ndarray) -> list[str]:
    return [f"training set, position {position}" for position in positions.tolist()]


def _around_images(table: pa.Table, config: AugmentConfig, seed: int) -> Batch:
    positions = table["position"].to_numpy()
    epoch = table["epoch"][0].as_py()
    return {
        "labels": torch.from_numpy(table["label"].to_numpy().astype(np.int64)),
        "positions": torch.from_numpy(positions.astype(np.int64)),
        **batch_augment.draw(config, seed, epoch, positions),
    }


def check_colours(device: torch.device) -> None:
    """Sends a known picture the way of all images, and looks at what a network would see.

    Raises:
        AssertionError: where channels are swapped, rows or columns exchanged, or values scaled
            otherwise than (x / 255 - 0.5) / 0.5.
    """
    known = np.zeros((SIDE, SIDE, 3), np.uint8)
    known[:56, :, 0], known[:, 56:, 2] = 255, 51
    rows = {"image": [{"bytes": encode_png(known)}], "label": [0], "position": [0], "epoch": [0]}
    batch = decode_batch(pa.table(rows), AugmentConfig.preset("none"), 0)
    seen = augment(to_device(batch, device)).cpu()
    expected = torch.full((1, 3, SIDE, SIDE), -1.0)
    expected[0, 0, :56], expected[0, 2, :, 56:] = 1.0, -0.6
    wrong = (seen - expected).abs().max().item()
    assert wrong < 1e-6, f"train: a known picture reaches the network changed by {wrong:g}"


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Starts moving everything but the positions, which are looked at on the CPU."""
    return {
        name: values if name == "positions" else values.to(device, non_blocking=True)
        for name, values in batch.items()
    }


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Convolutions and linear layers with weight decay; BN, PReLU and biases without."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def learning_rate(config: TrainConfig, done: float, total: int) -> float:
    """Rate of a step.

    Rises linearly from zero in the warm-up, then falls to a tenth after each milestone, or
    linearly to zero at the end (`decay`). It is proportional to the images of a step: Goyal et al.,
    "Accurate, large minibatch SGD" (2017), section 2.1.

    Args:
        done: epochs that are done after the step, in (0, config.epochs].
        total: images of a step over all workers.
    """
    rate = config.lr * total / config.lr_batch
    if done < config.warmup_epochs:
        return rate * done / config.warmup_epochs
    if config.decay == "linear":
        return rate * (config.epochs - done) / (config.epochs - config.warmup_epochs)
    return rate * 0.1 ** sum(done > milestone for milestone in config.milestones)


@dataclass(kw_only=True)
class Progress:
    """How far a training is, and what the epoch it is in has shown so far.

    Attributes:
        epoch: from 0.
        place: images of its order that are done with.
        steps: in this epoch.
        loss: sum over the steps, penalty of the head included.
        right: images nearest to their own class, of all workers.
        seen: images that went through the network, filled-up ones included, of all workers.
        fingerprint: of what was seen, by `raypipe.schedule.fingerprint`.
        seconds: of the epoch; wait_seconds of them for batches.
        rate: learning rate of the last step.
    """

    epoch: int = 0
    place: int = 0
    steps: int = 0
    loss: float = 0.0
    right: int = 0
    seen: int = 0
    fingerprint: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    rate: float = 0.0

    def record(self, images: int, workers: int) -> dict[str, Any]:
        """The line of a finished epoch in the history."""
        return {
            "epoch": self.epoch + 1,
            "loss": self.loss / self.steps,
            "accuracy": self.right / self.seen,
            "images": images,
            "steps": self.steps,
            "workers": workers,
            "order": f"{self.fingerprint:016x}",
            "learning_rate": self.rate,
            "images_per_second": images / self.seconds,
            "seconds": self.seconds,
            "wait_seconds": self.wait_seconds,
            "step_seconds": self.seconds - self.wait_seconds,
        }


class Training:
    """Network, head and optimizers on a worker, and how far they are.

    Attributes:
        network: the recognizer, trained in mixed precision: float32 weights.
        head: this worker's classes.
        progress: how far it is; the same on every worker, after `settle`.
        history: a line for every epoch that is done.
    """

    def __init__(
        self, config: TrainConfig, classes: int, seed: int, steps: Steps, device: torch.device
    ) -> None:
        """Draws the weights from the seed, the same on every worker.

        Raises:
            UserError: where settings do not go together on so many workers.
        """
        if config.class_share < 1 and steps.accumulate > 1:
            raise UserError(
                f"train.class_share: {config.class_share:g} draws classes for every pass, and "
                f"batch_size {config.batch_size} needs {steps.accumulate} passes of {steps.micro} "
                "images; raise micro_batch or the number of workers"
            )
        self._config, self._seed, self._steps, self._device = config, seed, steps, device
        self._rank = distributed.get_rank() if distributed.is_initialized() else 0
        torch.manual_seed(torch_seed(seed, "train", stream="weights"))
        self.network = make_recognizer(
            config.network,
            depth=config.depth,
            width=config.width,
            se=config.se,
            dropout=config.dropout,
        ).to(device)
        whole = make_head(config, EMBEDDING, classes)
        self.head = ShardedHead(whole, share=config.class_share, seed=seed).to(device)
        self._module: nn.Module = self.network
        if steps.workers > 1:
            # As in arcface_torch: every worker keeps its own batch-norm statistics, the first
            # one's count.
            self._module = nn.parallel.DistributedDataParallel(
                self.network, forward_sync_buffers=False, gradient_as_bucket_view=True
            )
        self._optimizers = self._make_optimizers()
        self._scaler = _scaler(config.precision == "float16", steps.workers, device)
        self._ema: AveragedModel | None = None
        if config.ema and self._rank == 0:
            average = get_ema_multi_avg_fn(config.ema)
            self._ema = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        self._reset()

    def _make_optimizers(self) -> list[torch.optim.Optimizer]:
        config, momentum, decay = self._config, self._config.momentum, self._config.weight_decay
        groups = parameter_groups(self.network, decay)
        if config.class_share < 1:
            sgd = torch.optim.SGD(groups, config.lr, momentum)
            rows = RowSGD(self.head, lr=config.lr, momentum=momentum, weight_decay=decay)
            return [sgd, rows]
        # Together, so that a step that overflows in one of them is left out in both.
        groups.append({"params": [self.head.head.weight], "weight_decay": decay})
        return [torch.optim.SGD(groups, config.lr, momentum)]

    def _reset(self) -> None:
        """What is summed up on the device until `settle`: losses, images that were right."""
        self._sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        self._seen = self._own = 0
        self._bad = torch.full((), -1, device=self._device)

    def run_epoch(
        self,
        batches: Iterator[Batch],
        images: int,
        *,
        stop_after: int | None = None,
        on_step: Callable[[Progress], None] | None,
    ) -> bool:
        """Trains to the end of the epoch, or for some steps.

        Args:
            batches: micro-batches of this worker from the place on where the training is, in
                pinned memory for a GPU.
            images: of the epoch.
            stop_after: steps.
            on_step: called after every step; losses and images are summed up in `settle` only.

        Returns:
            Whether the epoch is at its end; `progress` is settled then.

        Raises:
            DivergedError: on every worker at once, where the loss is no number any more.
        """
        self.network.train()
        progress, steps = self.progress, self._steps
        left = steps.count(images - progress.place)
        start = perf_counter()
        for _ in range(min(left, stop_after or left)):
            self._step(batches, images)
            progress.place += steps.total
            progress.steps += 1
            now = perf_counter()
            progress.seconds, start = progress.seconds + now - start, now
            if progress.steps % LOOK_EVERY == 0:
                self._check()
            if on_step:
                on_step(progress)
        start = perf_counter()
        self.settle()
        progress.seconds += perf_counter() - start
        return progress.place >= images

    def _step(self, batches: Iterator[Batch], images: int) -> None:
        progress, steps = self.progress, self._steps
        done = progress.epoch + min(1.0, (progress.place + steps.total) / images)
        progress.rate = learning_rate(self._config, done, steps.total)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = progress.rate
        for number in range(steps.accumulate):
            start = perf_counter()
            batch = next(batches)
            progress.wait_seconds += perf_counter() - start
            micro = number * steps.workers + self._rank
            place = progress.place + micro * steps.micro
            self._own = add_fingerprints(self._own, fingerprint(place, batch["positions"].numpy()))
            self._seen += len(batch["positions"])
            torch.manual_seed(torch_seed(self._seed, "train", progress.epoch, f"dropout {place}"))
            self._backward(to_device(batch, self._device), last=number + 1 == steps.accumulate)
        for optimizer in self._optimizers:
            self._scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self._config.clip)
        if self._config.precision != "float16":  # there a step with such a gradient is left out
            self._note(norm)
        for optimizer in self._optimizers:
            self._scaler.step(optimizer)
        self._scaler.update()
        if self._ema is not None:
            self._ema.update_parameters(self.network)

    def _backward(self, batch: Batch, *, last: bool) -> None:
        """Adds the gradients of a micro-batch; after the last one workers exchange them."""
        alone = not isinstance(self._module, nn.parallel.DistributedDataParallel)
        module = self._module
        if not alone and not last:
            with module.no_sync():  # type: ignore[operator]
                return self._forward(batch).backward()
        return self._forward(batch).backward()

    def _forward(self, batch: Batch) -> Tensor:
        low = _TYPES[self._config.precision]
        with torch.autocast(self._device.type, low, enabled=low != torch.float32):
            embeddings = self._module(augment(batch))
        if self._steps.workers > 1:
            # DistributedDataParallel divides by the number of workers; the head has the whole sum.
            embeddings.register_hook(lambda gradient: gradient * self._steps.workers)
        loss, right = self.head(embeddings, batch["labels"])
        loss = loss / self._steps.accumulate
        self._sums[0] += loss.detach()
        self._sums[1] += right
        self._note(loss.detach())
        return self._scaler.scale(loss)

    def _note(self, value: Tensor) -> None:
        """Remembers the first step with a value that is no number, without waiting for it."""
        new = (self._bad < 0) & ~torch.isfinite(value)
        self._bad = self._bad.where(~new, self.progress.place)

    def _check(self) -> None:
        place = int(self._bad)
        if place < 0:
            return
        config, epoch = self._config, self.progress.epoch
        raise DivergedError(
            f"train: the loss is no number any more in epoch {epoch + 1}, step "
            f"{place // self._steps.total + 1}; lower train.lr ({config.lr:g}) or raise "
            f"train.warmup_epochs ({config.warmup_epochs:g})",
            epoch,
            place,
        )

    def settle(self) -> None:
        """Takes what all workers summed up into `progress`; every worker has to call it.

        Raises:
            DivergedError: as `run_epoch`.
        """
        self._check()
        # The loss is the same on all workers; the rest is added up. int64 wraps as it should.
        counts = torch.stack([self._sums[1].long(), self._sums.new_tensor(self._seen).long()])
        counts = torch.cat([counts, torch.tensor([self._own], device=self._device)])
        if self._steps.workers > 1:
            distributed.all_reduce(counts)
        right, seen, own = counts.tolist()
        self.progress.loss += float(self._sums[0])
        self.progress.right += right
        self.progress.seen += seen
        self.progress.fingerprint = add_fingerprints(self.progress.fingerprint, own)
        self._reset()

    def loss_so_far(self) -> float:
        """Sum of the losses of the epoch's steps; waits for the device."""
        return self.progress.loss + float(self._sums[0])

    def end_epoch(self, images: int) -> dict[str, Any]:
        """Writes the epoch down, and goes on to the next."""
        record = self.progress.record(images, self._steps.workers)
        self.history.append(record)
        self.progress = Progress(epoch=self.progress.epoch + 1)
        return record

    def weights(self) -> dict[str, Tensor]:
        """What the training is for, on the first worker: the network, or its moving average."""
        network = self.network if self._ema is None else self._ema.module
        return {name: value.contiguous().cpu() for name, value in network.state_dict().items()}

    def pack(self) -> dict[str, bytes]:
        """Everything that training goes on from, as files; every worker has its own part.

        The rate is a function of the progress and random numbers are seeded for every micro-batch,
        so neither has a state.
        """
        weight = self.head.head.weight
        momentum = self._optimizers[-1].state[weight].get("momentum_buffer")
        shard = {"weight": weight.detach()} | ({} if momentum is None else {"momentum": momentum})
        files = {shard_file(self.head.start, self.head.stop): _packed(shard)}
        if self._rank == 0:
            others = {k: v for k, v in self.head.state_dict().items() if k != "head.weight"}
            files[STATE] = _packed(
                {
                    "network": self.network.state_dict(),
                    "ema": None if self._ema is None else self._ema.state_dict(),
                    "momentum": {
                        name: self._optimizers[0].state[weight].get("momentum_buffer")
                        for name, weight in self.network.named_parameters()
                    },
                    "scaler": self._scaler.state_dict(),
                    "head": others,
                    "progress": asdict(self.progress),
                    "history": self.history,
                }
            )
        return files

    def unpack(self, names: Iterable[str], read: Callable[[str], bytes]) -> None:
        """Goes on from what any number of workers packed.

        Args:
            names: of all files.
            read: a file by its name; those of other workers' classes are not read.
        """
        state = read_state(read(STATE))
        self.network.load_state_dict(state["network"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        for name, weight in self.network.named_parameters():
            self._set_momentum(self._optimizers[0], weight, state["momentum"][name])
        self._scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        self.history = state["history"]
        head = self.head
        shard = read_shard(names, lambda name: read_state(read(name)), head.start, head.stop)
        head.load_state_dict({**state["head"], "head.weight": shard["weight"]})
        self._set_momentum(self._optimizers[-1], head.head.weight, shard.get("momentum"))

    def _set_momentum(
        self, optimizer: torch.optim.Optimizer, weight: Tensor, momentum: Tensor | None
    ) -> None:
        if momentum is not None:  # before the first step there is none
            optimizer.state[weight]["momentum_buffer"] = momentum.to(self._device)


def _packed(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def read_state(data: bytes) -> dict[str, Any]:
    """What `pack` packed, on the CPU; holds tensors, numbers and text, and no code is run."""
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _scaler(enabled: bool, workers: int, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss in float16; all workers leave out a step where one of them overflows."""
    if enabled and workers > 1:
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type)
    return torch.amp.GradScaler(device.type, enabled=enabled)
