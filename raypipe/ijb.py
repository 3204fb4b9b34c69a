"""1:1 verification of IJB-B (Whitelam et al. 2017) and IJB-C (Maze et al. 2018).

Compared are templates, sets of images of one person. The protocol is that of published ArcFace
numbers (insightface, recognition/arcface_torch/eval_ijbc.py) with its defaults, there called
N1D1F1: a feature is f(image) + f(mirrored image), keeps its length, and is weighted by the
detector's score. How the operating point is chosen is told at `operating_point`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from raypipe.formats.ijb import TemplatePairs
from raypipe.verification import unit

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # as published
_PAIRS_PER_BLOCK = 8192  # two blocks of 512 float64 are 67 MB


def template_features(pairs: TemplatePairs, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Features of templates.

    The images of a medium within a template are averaged, so that a video counts as one
    photograph; the media are summed, and the sum is scaled to unit length.

    Args:
        blocks: float (n, D) each, together the flip sums of the N images in their order; one is
            held at a time.

    Returns:
        float64 (T, D), of length one; a template of zeros stays zero.
    """
    _, medium, shown = np.unique(
        np.stack([pairs.templates, pairs.media], axis=1),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    weights = pairs.scores / shown[medium]
    sums, start = np.zeros((0, 0)), 0
    for block in blocks:
        here = slice(start, start + len(block))
        if start == 0:
            sums = np.zeros((int(pairs.templates.max()) + 1, block.shape[1]))
        # Only the templates of these images: to add to all of them takes longer than the network.
        rows, row = np.unique(pairs.templates[here], return_inverse=True)
        sums[rows] += csr_array((weights[here], (row, np.arange(len(row))))) @ block
        start += len(block)
    return unit(sums)


def cosines(features: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine of each pair of unit features.

    Args:
        features: float64 (T, D).
        first, second: int (P,), rows of them.

    Returns:
        float64 (P,) in [-1, 1], but for rounding.
    """
    scores = np.empty(len(first))
    for start in range(0, len(first), _PAIRS_PER_BLOCK):
        here = slice(start, start + _PAIRS_PER_BLOCK)
        np.einsum("ij,ij->i", features[first[here]], features[second[here]], out=scores[here])
    return scores


@dataclass(frozen=True, kw_only=True)
class Roc:
    """ROC curve of K points, from (0, 0) to (1, 1).

    Attributes:
        fars: float64 (K,), false accept rates, rising.
        tars: float64 (K,), true accept rates, rising.
        thresholds: float64 (K,), falling from infinity: a pair is accepted at or above it.
    """

    fars: np.ndarray
    tars: np.ndarray
    thresholds: np.ndarray

    @property
    def auc(self) -> float:
        """Area under the curve; pairs of equal score count half."""
        return float(np.trapezoid(self.tars, self.fars))


def roc_curve(scores: np.ndarray, same: np.ndarray) -> Roc:
    """The curve of exact scores, the same as scikit-learn's `roc_curve` with its defaults.

    Pairs of equal score are accepted together. Of scores that follow each other with equally many
    pairs of either kind only the last is a point, for the others lie on a straight line; the points
    are those that published code chooses from (`drop_intermediate`).

    Args:
        scores: float64 (P,), higher for one person.
        same: bool (P,), of both kinds.
    """
    order = np.argsort(scores)[::-1]
    true = np.cumsum(same[order], dtype=np.int32)
    ranked = scores[order]
    del order  # 8 bytes a pair
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of equal scores
    true = true[last]
    false = last.astype(np.int32) + 1 - true
    kept = np.ones(len(last), bool)
    kept[1:-1] = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
    false, true = np.append(0, false[kept]), np.append(0, true[kept])
    return Roc(
        fars=false / false[-1],
        tars=true / true[-1],
        thresholds=np.append(np.inf, ranked[last[kept]]),
    )


def operating_point(roc: Roc, far: float) -> tuple[float, float, float]:
    """The point of a curve whose false accept rate is nearest to one asked for.

    Published numbers are read off like that, neither interpolated nor bounded: the rate reached can
    be above the one asked for. Of equally near rates the higher is taken, and of points with one
    rate the highest true accept rate.

    Returns:
        True accept rate, false accept rate reached, threshold.
    """
    away = np.abs(roc.fars - far)
    point = len(away) - 1 - int(away[::-1].argmin())
    return float(roc.tars[point]), float(roc.fars[point]), float(roc.thresholds[point])
