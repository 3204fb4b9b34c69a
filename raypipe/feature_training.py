"""What the trainings of generators share: images with their features, and periods of steps."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import from_table
from raypipe.images import ImageError, decode, resize

Batch = dict[str, Tensor]
COLUMNS = pa.schema(
    [
        ("identity_id", pa.string()),
        ("image_id", pa.string()),
        ("data", pa.binary()),
        ("vector", pa.list_(pa.float32())),
    ]
)
_FITTED = 20_000  # features that the whitening and the centre are taken from, at most
_LOOK_EVERY = 20  # steps between two looks at the losses
_ROOM = 2 << 30  # bytes of decoded pixels that a worker keeps


class DivergedError(UserError):
    """The loss is no number any more; trying again would end there again."""


def image_rows(table: pa.Table) -> pa.Table:
    """Rows of a face set to one row for each image to train on: kept, and with a feature."""
    rows = [
        {
            "identity_id": identity.identity_id,
            "image_id": image.image_id,
            "data": image.data,
            "vector": image.embedding,
        }
        for identity in from_table(table)
        if identity.rejected is None
        for image in identity.kept
        if image.embedding is not None
    ]
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def features(face_set: FaceSet) -> tuple[np.ndarray, int]:
    """Features of the images to train on, float32 (n, D), at most 20,000; and how many there are.

    Raises:
        UserError: where there are none, or not all have one length.
    """
    found: list[np.ndarray] = []
    images = 0
    for item in face_set.iter_embeddings():
        kept = [i for i, reason in enumerate(item.image_rejected) if reason is None]
        if item.rejected is not None or not kept:
            continue
        images += len(kept)
        if sum(map(len, found)) < _FITTED:
            found.append(item.embeddings[kept])
    lengths = {vectors.shape[1] for vectors in found}
    if len(lengths) != 1:
        raise UserError(
            f"{face_set.root}: training needs features of one length, found "
            f"{sorted(lengths) or 'none'}; run `raypipe embed`, and train on its result"
        )
    return np.concatenate(found), images


class ImageDecoder:
    """Decodes images, and keeps the pixels: later epochs of a set with room in memory decode none.

    Args:
        side: of the pixels it gives.
        room: bytes of pixels to keep at most.
    """

    def __init__(self, side: int, room: int = _ROOM) -> None:
        self.side, self._room = side, room
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, table: pa.Table) -> tuple[list[str], np.ndarray]:
        """Names ("identity_id/image_id") and pixels, uint8 (N, side, side, 3), of `image_rows`.

        Raises:
            UserError: where an image cannot be decoded, naming it.
        """
        people, files = (table[name].to_pylist() for name in ("identity_id", "image_id"))
        names = [f"{person}/{file}" for person, file in zip(people, files, strict=True)]
        return names, np.stack(
            [self._pixels(name, table["data"], k) for k, name in enumerate(names)]
        )

    def _pixels(self, name: str, data: pa.ChunkedArray, row: int) -> np.ndarray:
        if (known := self._kept.get(name)) is not None:
            return known
        try:
            pixels = decode(data[row].as_py(), source=name)
        except ImageError as error:
            raise UserError(f"{error}; run `raypipe embed` on the set, which marks it") from None
        if pixels.shape[:2] != (self.side, self.side):
            pixels = resize(pixels, (self.side, self.side))
        if (len(self._kept) + 1) * pixels.nbytes <= self._room:
            self._kept[name] = pixels
        return pixels


def learning_rate(
    done: float, *, warmup: float, epochs: float, highest: float, final: float
) -> float:
    """The rate after some epochs: linear warm-up, then half a cosine down to the final one.

    Args:
        done: epochs so far, with their fractions.
        warmup: epochs in which the rate rises from 0 to the highest.
    """
    if done < warmup:
        return highest * done / warmup
    share = (done - warmup) / (epochs - warmup)
    return final + (highest - final) * 0.5 * (1 + math.cos(math.pi * share))


def train_steps(
    batches: Iterable[Batch],
    train_step: Callable[[Batch, int], tuple[dict[str, Tensor], float]],
    *,
    first_step: int,
    on_step: Callable[[int, str], None],
    mistake: str,
) -> dict[str, Any]:
    """Trains an epoch or a part of it.

    Args:
        batches: each with `vectors`, one for each image.
        train_step: (batch, step of the epoch) → its losses, 0-d, and the rate.
        first_step: steps of the epoch before, on this worker.
        on_step: called now and then with (images done on this worker, the losses in words).
        mistake: what to say where a loss is no number any more.

    Returns:
        The mean of every loss over the steps that had it, images, learning_rate (of the last step),
        seconds, images_per_second (of this worker).

    Raises:
        DivergedError: where a loss is no number any more.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    images, rate = 0, 0.0

    def means() -> dict[str, float]:
        found = {name: (total / counts[name]).item() for name, total in sums.items()}
        if not all(map(math.isfinite, found.values())):
            raise DivergedError(f"{mistake} ({_said(found)})")
        return found

    began = time.perf_counter()
    for step, batch in enumerate(batches, first_step):
        losses, rate = train_step(batch, step)
        for name, value in losses.items():
            sums[name] = sums.get(name, 0) + value.detach()
            counts[name] = counts.get(name, 0) + 1
        images += len(batch["vectors"])
        if (step + 1) % _LOOK_EVERY == 0:
            on_step(images, _said(means()))
    found = means()  # waits for the device
    seconds = time.perf_counter() - began
    return {
        **found,
        "images": images,
        "learning_rate": rate,
        "seconds": seconds,
        "images_per_second": images / seconds,
    }


def _said(means: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in means.items())
