"""Identities that are one person: an exact search over centres, and a fixed choice of who stays."""

from dataclasses import asdict, dataclass

import numpy as np

from raypipe import storage
from raypipe.search import pairs_above


@dataclass(frozen=True, kw_only=True)
class Double:
    """An identity with others that are the same person.

    Attributes:
        others: their identity_ids, in the order of their indices.
        similarity: largest cosine to one of their centres.
        stays: whether this one is kept.
    """

    others: list[str]
    similarity: float
    stays: bool


def find_doubles(
    names: list[str], index: np.ndarray, kept: np.ndarray, centres: np.ndarray, threshold: float
) -> dict[str, Double]:
    """Finds identities that are one person and says which one stays.

    Identities are taken by falling number of kept images, then by rising index; one stays unless
    one that stays is the same person. The result does not depend on the order of the arguments.

    Args:
        names: identity_id of n identities.
        index: int (n,), position in the source, unique.
        kept: int (n,), images kept.
        centres: float32 (n, D), unit vectors in the calibrated space.
        threshold: cosine from which two centres are one person.

    Returns:
        identity_id → what was found; identities without doubles are left out.
    """
    order = np.lexsort((index, -kept))
    left, right, similarity = pairs_above(centres[order], threshold)
    near: dict[int, list[tuple[int, float]]] = {}
    for a, b, value in zip(left.tolist(), right.tolist(), similarity.tolist(), strict=True):
        near.setdefault(a, []).append((b, value))
        near.setdefault(b, []).append((a, value))
    staying: set[int] = set()
    result: dict[str, Double] = {}
    for place in sorted(near):
        stays = all(other not in staying for other, _ in near[place])
        if stays:
            staying.add(place)
        others = sorted((int(index[order[other]]), names[order[other]]) for other, _ in near[place])
        result[names[order[place]]] = Double(
            others=[name for _, name in others],
            similarity=max(value for _, value in near[place]),
            stays=stays,
        )
    return result


def save_doubles(path: str, doubles: dict[str, Double]) -> None:
    """Writes them as JSON."""
    storage.write_json(path, {name: asdict(double) for name, double in doubles.items()})


def load_doubles(path: str) -> dict[str, Double]:
    """Reads what `save_doubles` wrote."""
    return {name: Double(**value) for name, value in storage.read_json(path).items()}
