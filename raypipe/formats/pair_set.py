"""A verification set in memory, and what every one must be."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypipe.errors import UserError

FOLDS = 10


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """P pairs as a file holds them.

    Attributes:
        images: 2P encoded images; pair i is images[2i] and images[2i + 1].
        issame: bool (P,), whether both show one person.
        folds: int32 (P,), where the file states them; else None, which means ten contiguous folds.
        ids: what the file calls each image, where it does.
        groups: a group of people for each pair, P, None where it is not known; None where the file
            states none.
    """

    images: list[bytes]
    issame: np.ndarray
    folds: np.ndarray | None = None
    ids: list[str] | None = None
    groups: list[str | None] | None = None


def contiguous(pairs: int, folds: int = FOLDS) -> np.ndarray:
    """int32 (pairs,): the fold of each pair, as scikit-learn's KFold(folds, shuffle=False) cuts."""
    parts = np.array_split(np.arange(pairs), folds)
    return np.repeat(np.arange(folds, dtype=np.int32), [len(part) for part in parts])


def checked(images: Sequence[bytes], issame: np.ndarray, path: str) -> np.ndarray:
    """The truth values, where there are two images to each of them and no image is empty.

    Raises:
        UserError: elsewhere.
    """
    if len(images) != 2 * len(issame):
        raise UserError(
            f"{path}: {len(images):,} images for {len(issame):,} pairs; each pair needs two"
        )
    if not len(issame):
        raise UserError(f"{path}: no pairs")
    for i, image in enumerate(images):
        if not image:
            raise UserError(f"{path}: image {i} (pair {i // 2}) is empty")
    return issame
