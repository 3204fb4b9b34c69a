"""Ray Data under the recognizer's training: batches of a worker in the order of its schedule."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import DataContext
from ray.data.collate_fn import ArrowBatchCollateFn

from jobs.reader import read
from jobs.trainer import IN_ORDER
from raypipe.config.augment import AugmentConfig
from raypipe.config.train import TrainConfig
from raypipe.device_decode import DeviceDecoder
from raypipe.schedule import Schedule, Steps
from raypipe.train_rows import RowGroups
from raypipe.training import Batch, decode_batch, pack_batch, unpack_batch

# Two windows are read at a time: the one that is trained on, and the next.
_READERS, READER_CPUS = 2, 0.25
# To start Ray Data takes a second or two, 20 s where the cores are busy, so epochs of small sets
# share a start. Of a large one the positions of so many images are in memory, 8 bytes each.
_IMAGES = 4_000_000


class Feed:
    """Micro-batches of one worker, epoch after epoch, from wherever a training is."""

    def __init__(
        self,
        rows: RowGroups,
        schedule: Schedule,
        steps: Steps,
        config: TrainConfig,
        *,
        rank: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._rows = ray.put(rows)
        self._schedule, self._steps, self._config = schedule, steps, config
        self._rank, self._seed, self._pin_memory = rank, seed, device.type == "cuda"
        self._threads = max(1, int(config.cpus_per_worker))
        self._decoder = (
            DeviceDecoder(device, self._threads) if config.decoder == "nvimgcodec" else None
        )

    def batches(self, epoch: int, place: int) -> Iterator[Batch]:
        """Micro-batches from a place of an epoch on, to the end of the training."""
        while epoch < self._config.epochs:
            parts: list[pa.Table] = []
            images = 0
            while epoch < self._config.epochs and images < _IMAGES:
                windows = self._schedule.windows(epoch)
                mine = self._steps.of_worker(windows, self._rank, place)
                parts += [_table(part, epoch) for part in mine]
                images += sum(map(len, mine))
                epoch, place = epoch + 1, 0
            yield from self._read(parts)

    def _read(self, parts: list[pa.Table]) -> Iterator[Batch]:
        context = DataContext.get_current()
        context.execution_options = IN_ORDER
        context.enable_progress_bars = False
        rows = ray.data.from_arrow(parts).map_batches(
            read,
            fn_kwargs={"rows": self._rows},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=READER_CPUS,
            compute=ray.data.TaskPoolStrategy(_READERS),
        )
        augment, seed = self._config.augment, self._seed
        collate = _Pack(augment, seed) if self._decoder else _Decode(augment, seed, self._threads)
        batches = rows.iter_torch_batches(
            batch_size=self._steps.micro,
            prefetch_batches=self._config.prefetch_batches,
            collate_fn=collate,
            device="cpu",  # fingerprints look at the positions here, and the step moves the rest
            pin_memory=self._pin_memory,
        )
        for batch in batches:
            yield unpack_batch(batch, self._decoder) if self._decoder else batch


def _table(positions: np.ndarray, epoch: int) -> pa.Table:
    epochs = np.full(len(positions), epoch, np.int32)
    return pa.table({"position": positions, "epoch": epochs})


class _Decode(ArrowBatchCollateFn):
    """Decodes in threads beside the training step."""

    def __init__(self, augment: AugmentConfig, seed: int, threads: int) -> None:
        self._augment, self._seed, self._threads = augment, seed, threads

    def __call__(self, batch: pa.Table) -> dict[str, torch.Tensor]:
        return decode_batch(batch, self._augment, self._seed, self._threads)


class _Pack(ArrowBatchCollateFn):
    """Leaves images encoded, for the worker's device."""

    def __init__(self, augment: AugmentConfig, seed: int) -> None:
        self._augment, self._seed = augment, seed

    def __call__(self, batch: pa.Table) -> dict[str, torch.Tensor]:
        return pack_batch(batch, self._augment, self._seed)
