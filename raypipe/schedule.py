"""Which images an epoch of training sees, in which order, on which worker.

The published curriculum of HGF puts synthetic identities first in a list, and the official trainer
sorts the list and shuffles it (HaiyuWu/iccv2025-fr-competition, data_loader_train_lmdb.py). Here
the order is a function of configuration, seed and epoch alone, so that it can be printed, tested,
and taken up in the middle by any number of workers.

A position is the place of an image in the set, from 0; a place is where it comes in an epoch.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypipe.config.curriculum import CurriculumConfig
from raypipe.seeding import generator


def admitted(config: CurriculumConfig, sizes: Sequence[int], epochs: int) -> np.ndarray:
    """Share of every phase that is in every epoch of a paced schedule.

    The pacing function is the polynomial one of Wu et al., "When do curricula work?" (ICLR 2021),
    section 3: after t of T epochs the easiest b + (1 - b) (t / (a T))^p of all images are in, with
    b = start, a = full_at, p = power. A phase fades from the epoch on after the one in which the
    next phase is first in as a whole: (1 - fade) of it, of that the same share again, and so on.

    Args:
        sizes: images of the phases, easy to hard.

    Returns:
        float64 (epochs, phases), in [0, 1].
    """
    ends = np.cumsum(sizes)
    time = np.arange(epochs) / (config.full_at * epochs)
    count = ends[-1] * (config.start + (1 - config.start) * np.minimum(time, 1) ** config.power)
    shares = np.clip((count[:, None] - (ends - sizes)) / np.maximum(sizes, 1), 0, 1)
    whole = np.cumsum(shares == 1, axis=0)  # epochs that a phase has been in as a whole
    fading = np.maximum(whole[:, 1:] - 1, 0)
    shares[:, :-1] *= (1 - config.fade) ** fading
    return shares


class Schedule:
    """The order of every epoch.

    Attributes:
        sizes: images of the phases.
    """

    def __init__(
        self,
        config: CurriculumConfig,
        phases: np.ndarray,
        row_groups: np.ndarray,
        *,
        epochs: int,
        seed: int,
    ) -> None:
        """Keeps what the orders depend on.

        Args:
            phases: int (images,), phase of every position, from 0, easy to hard.
            row_groups: int64, rising, from 0: first position of every row group of the set.
        """
        self._config = config
        self._row_groups = row_groups
        self._seed = seed
        order = np.argsort(phases, kind="stable")
        self.sizes = np.bincount(phases).tolist()
        self._members = np.split(order, np.cumsum(self.sizes)[:-1])
        if config.schedule == "paced":
            self._admitted = admitted(config, self.sizes, epochs)

    def windows(self, epoch: int) -> list[np.ndarray]:
        """The positions of an epoch (from 0), int64, in order, cut where shuffling is cut."""
        match self._config.schedule:
            case "mixed":
                parts = [np.concatenate(self._members)]
            case "sequential":
                parts = self._members
            case "paced":
                chosen = [self._in_epoch(phase, epoch) for phase in range(len(self.sizes))]
                parts = [np.concatenate(chosen)]
        shuffled = (self._shuffled(part, epoch, number) for number, part in enumerate(parts))
        return [window for part in shuffled for window in part if len(window)]

    def epoch(self, epoch: int) -> np.ndarray:
        """All positions of an epoch in their order, int64."""
        return np.concatenate(self.windows(epoch))

    def length(self, epoch: int) -> int:
        """Images of an epoch."""
        if self._config.schedule != "paced":
            return sum(self.sizes)
        return sum(self._count(phase, epoch) for phase in range(len(self.sizes)))

    def _count(self, phase: int, epoch: int) -> int:
        return round(self.sizes[phase] * float(self._admitted[epoch, phase]))

    def _in_epoch(self, phase: int, epoch: int) -> np.ndarray:
        """What a paced epoch has of a phase. As it comes in, what is in stays in; as it fades,
        every epoch draws anew, so that nothing is gone for good."""
        count = self._count(phase, epoch)
        reached = self._admitted[: epoch + 1, phase].max() == 1
        rng = generator(self._seed, "", epoch if reached else 0, stream=f"train:admitted {phase}")
        return self._members[phase][rng.permutation(self.sizes[phase])[:count]]

    def _shuffled(self, part: np.ndarray, epoch: int, number: int) -> list[np.ndarray]:
        rng = generator(self._seed, "", epoch, stream=f"train:order {number}")
        part = np.sort(part)
        if len(part) > self._config.window:
            group = np.searchsorted(self._row_groups, part, side="right") - 1
            part = part[np.argsort(rng.permutation(len(self._row_groups))[group], kind="stable")]
        windows = np.split(part, range(self._config.window, len(part), self._config.window))
        return [rng.permutation(window) for window in windows]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How the order of an epoch is dealt to workers.

    Micro-batch k of an epoch, k from 0, holds places k·micro to (k+1)·micro - 1 and goes to worker
    k mod workers. Accumulate · workers micro-batches make a step. So a step is of the same images
    whatever the number of workers, where that number divides the micro-batches of a step.

    Attributes:
        micro: images a worker takes through the network at once.
        workers: how many there are.
        accumulate: micro-batches of a step on each worker.
    """

    micro: int
    workers: int
    accumulate: int

    @classmethod
    def of(cls, batch_size: int, micro: int, workers: int) -> "Steps":
        """Steps of as near to `batch_size` images as so many workers can make them, in
        micro-batches of at most `micro` images and at least two, which batch norm needs."""
        micro = min(micro, max(2, batch_size // workers))
        accumulate = max(1, round(batch_size / (micro * workers)))
        return cls(micro=micro, workers=workers, accumulate=accumulate)

    @property
    def total(self) -> int:
        """Images of a step."""
        return self.micro * self.workers * self.accumulate

    def count(self, images: int) -> int:
        """Steps that so many images make; the last one is filled up."""
        return -(-images // self.total)

    def of_worker(self, windows: list[np.ndarray], rank: int, start: int = 0) -> list[np.ndarray]:
        """What a worker takes of an epoch, from a place on.

        The last step is filled up from the beginning of the epoch: batch norm would take the
        statistics of a handful of images for those of the set, and leaving them out would lose
        images.

        Args:
            windows: of the epoch, as `Schedule.windows` returns them.
            start: places that are done with.

        Returns:
            Its positions, int64, in order, cut as the windows are; together micro · accumulate for
            every step.
        """
        whole = np.concatenate(windows)
        left = len(whole) - start
        fill = np.resize(whole, self.count(left) * self.total - left)
        ends = np.cumsum([len(window) for window in windows]) - start
        parts = np.split(np.concatenate([whole[start:], fill]), np.maximum(ends, 0))
        places = np.split(np.arange(left + len(fill)), np.maximum(ends, 0))
        mine = (
            part[place // self.micro % self.workers == rank]
            for part, place in zip(parts, places, strict=True)
        )
        return [part for part in mine if len(part)]


def fingerprint(place: int, positions: np.ndarray) -> int:
    """A number in [0, 2^62) that says which images stood at a place of an epoch and after it.

    Those of all micro-batches add up, modulo 2^62, to a number of the epoch, whoever took them.

    Args:
        place: of the first.
        positions: int64 (N,).
    """
    data = np.int64(place).tobytes() + positions.astype("<i8").tobytes()
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little") >> 2


def add_fingerprints(one: int, other: int) -> int:
    """The sum of two fingerprints."""
    return (one + other) % 2**62


def epoch_fingerprint(schedule: Schedule, steps: Steps, epoch: int) -> int:
    """What the fingerprints of all micro-batches of an epoch have to add up to."""
    total = 0
    windows = schedule.windows(epoch)
    order = [np.concatenate(steps.of_worker(windows, rank)) for rank in range(steps.workers)]
    for rank, positions in enumerate(order):
        for number, micro in enumerate(positions.reshape(-1, steps.micro)):
            place = (number * steps.workers + rank) * steps.micro
            total = add_fingerprints(total, fingerprint(place, micro))
    return total
