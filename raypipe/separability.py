"""Separability: how many of the identities drawn so far are people of their own.

A generator that keeps drawing the same people gives fewer and fewer new ones: the curve of unique
identities over identities drawn bends. What counts as unique hangs on the threshold, so the curve
is counted at the calibrated one and at some below and above it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.screening import greedy
from raypipe.search import nearest, pairs_above

SEPARABILITY = "separability.json"  # of the screening job
_STEPS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # from the calibrated threshold, in standard deviations
_POINTS = 20  # of a curve
BLOCK = 1024  # identities decided together: at most half a million pairs of them are listed
_NEAR_ONE = 0.999999  # cosines beyond it have no use for their Fisher's z


def _highest(templates: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Similarity of rows to the nearest of others, float32 (R,); -inf where there are none."""
    if not len(rows) or not len(others):
        return np.full(len(rows), -np.inf, np.float32)
    return nearest(templates[rows], templates[others], 1)[0][:, 0]


def curves(
    templates: np.ndarray,
    thresholds: Sequence[float],
    points: Sequence[int],
    *,
    block: int = BLOCK,
) -> np.ndarray:
    """How many identities are unique among those drawn first.

    Uniqueness is decided as screening does: in order, and each that is as similar as the threshold
    to an earlier one that stays is refused (`raypipe.screening.greedy`). So an identity's fate does
    not depend on later ones, and one pass serves all points.

    Identities are decided in blocks. Each block is first compared with the earlier ones that stay
    at any threshold; only who is near one of them is compared again, at each threshold, with those
    that stay there. So no list of pairs is longer than a block's own, however alike the identities
    are: memory is that of two copies of the templates.

    Args:
        templates: float32 (N, D), unit rows in the order in which they were drawn.
        thresholds: cosines, T of them.
        points: P numbers of identities drawn, from 0 to N.
        block: identities decided together.

    Returns:
        int64 (T, P): unique identities.
    """
    stays = np.zeros((len(thresholds), len(templates)), bool)
    for start in range(0, len(templates), block):
        rows = np.arange(start, min(start + block, len(templates)))
        upper = _highest(templates, rows, np.flatnonzero(stays.any(axis=0)))
        for here, threshold in zip(stays, map(float, thresholds), strict=True):
            near = upper >= threshold
            gone = np.zeros(len(rows), bool)
            gone[near] = _highest(templates, rows[near], np.flatnonzero(here)) >= threshold
            left = rows[~gone]
            here[left] = True
            here[left[list(greedy(*pairs_above(templates[left], threshold)))]] = False
    unique = np.zeros((len(thresholds), len(templates) + 1), np.int64)
    stays.cumsum(axis=1, out=unique[:, 1:])
    return unique[:, list(points)]


def _median(values: np.ndarray, counts: np.ndarray) -> float:
    """Lower median of values that occur so many times."""
    order = np.argsort(values)
    total = counts[order].cumsum()
    return float(values[order][np.searchsorted(total, total[-1] / 2)])


def around(unique: Mapping[str, Any]) -> list[float]:
    """The calibrated threshold between two that are looser and two that are stricter.

    They are half a standard deviation of the comparisons of two identities apart in Fisher's z,
    whatever range of cosines an embedder uses. For a normal law half a standard deviation is about
    a factor of ten in the false match rate: 1 - Φ(4.26) is 1e-5, and 1 - Φ(3.76) is 8.5e-5. The
    deviation is 1.4826 median absolute deviations, as in `raypipe.impostors`.

    Args:
        unique: that part of `leakage.json`.

    Returns:
        Five cosines, smallest first, to 6 decimals.
    """
    impostor = unique["impostor"]
    counts = np.asarray(impostor["counts"], np.int64)
    middles = impostor["start"] + impostor["width"] * (np.arange(len(counts)) + 0.5)
    z = np.arctanh(middles)
    deviation = 1.4826 * _median(np.abs(z - _median(z, counts)), counts)
    calibrated = np.arctanh(min(unique["threshold"], _NEAR_ONE))
    return [round(float(np.tanh(calibrated + step * deviation)), 6) for step in _STEPS]


def measure(searched: pa.Table, source: str, unique: Mapping[str, Any]) -> dict[str, Any]:
    """The curves of the identities of a source, whatever else they were refused for.

    Args:
        searched: rows of `raypipe.screening.SEARCHED` in any order.
        source: of the identities, at least one of them.
        unique: that part of `leakage.json`, not None.

    Returns:
        As JSON: "calibrated" (the threshold of screening), "thresholds" (T cosines, smallest
        first), "drawn" (P numbers of identities, increasing) and "unique" (T lists of P numbers).
    """
    chosen = searched.filter(pc.equal(searched["source"], source)).sort_by("index")
    flat = chosen["template"].combine_chunks().flatten().to_numpy()
    templates = flat.reshape(len(chosen), -1)
    points = np.unique(np.linspace(0, len(chosen), _POINTS + 1).round().astype(np.int64)).tolist()
    thresholds = around(unique)
    return {
        "calibrated": unique["threshold"],
        "thresholds": thresholds,
        "drawn": points,
        "unique": curves(templates, thresholds, points).tolist(),
    }
