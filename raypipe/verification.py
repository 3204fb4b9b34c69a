"""Face verification: are two photographs the same person?

The protocol is that of LFW (Huang et al. 2007, "unrestricted, labelled outside data") as every
published ArcFace number is computed (insightface, recognition/arcface_torch/eval/verification.py):
an embedding is f(image) + f(mirrored image), scaled to unit length; a pair is accepted where the
squared distance of its embeddings is below a threshold; the threshold of each fold is chosen on the
other folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypipe.errors import UserError
from raypipe.formats.pair_set import contiguous
from raypipe.formats.verification import load

THRESHOLDS = np.arange(0, 4, 0.01)  # squared distances of unit vectors lie in [0, 4]
FAR_THRESHOLDS = np.arange(0, 4, 0.001)
_CURVE_POINTS = 200
_BINS = 100


@dataclass(kw_only=True)
class Pairs:
    """A verification set of P pairs.

    Attributes:
        first, second: encoded images, P each.
        same: bool (P,), whether both show one person.
        folds: int (P,), rising; the folds are the protocol.
        groups: a group of people for each pair, P, None where it is not known; None where the set
            states none.
    """

    name: str
    first: list[bytes]
    second: list[bytes]
    same: np.ndarray
    folds: np.ndarray
    groups: list[str | None] | None = None


def read_pairs(path: str, name: str) -> Pairs:
    """Reads a verification set in any format of `raypipe.formats.verification`.

    Where the file states no folds, they are ten contiguous ones, as every published reader of
    `.bin` cuts them (scikit-learn's KFold(10, shuffle=False)).

    Raises:
        UserError: where the file is missing or no verification set, there are fewer than two folds,
            they are not in order, or one lacks a kind of pair.
    """
    called = f"verification set {name!r}"
    try:
        found = load(path)
    except UserError as error:
        raise UserError(f"{called}: {error}") from error
    same, folds = found.issame, found.folds
    hint = ""
    if folds is None:
        folds = contiguous(len(same))
        hint = (
            f"; {path} states no folds, so they are ten contiguous parts of its {len(same):,} "
            "pairs, and sorting or cutting it changes the protocol"
        )
    numbers = np.unique(folds)
    if len(numbers) < 2 or np.any(np.diff(folds) < 0):
        raise UserError(f"{called}: {path}: its folds must rise and have several values")
    for fold in numbers:
        mine = same[folds == fold]
        if mine.all() or not mine.any():
            raise UserError(f"{called}: {path}: fold {fold} needs genuine and impostor pairs{hint}")
    return Pairs(
        name=name,
        first=found.images[0::2],
        second=found.images[1::2],
        same=same,
        folds=folds,
        groups=found.groups,
    )


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Scales embeddings (N, D) to length one, float64; a zero vector stays zero."""
    embeddings = embeddings.astype(np.float64)
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return embeddings / np.where(lengths == 0, 1, lengths)


def squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Squared Euclidean distance of each pair of unit vectors (P, D): float64 (P,) in [0, 4]."""
    return np.square(first - second).sum(axis=1)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What the protocol says of a set.

    Attributes:
        accuracies: share of right decisions in each fold; at `thresholds`, the squared distance
            with the best accuracy on the other folds (the lowest of several).
        tars: false accept rate → (mean, standard deviation, mean false accept rate reached) of the
            true accept rate over the folds.
        auc: area under the ROC curve; probability that a genuine pair is closer than an impostor.
        roc: (false accept rate, true accept rate) points, rising, thinned to about 200.
    """

    accuracies: list[float]
    thresholds: list[float]
    tars: dict[float, tuple[float, float, float]]
    auc: float
    roc: list[tuple[float, float]]


def verify(
    distances: np.ndarray, same: np.ndarray, folds: np.ndarray, fars: Sequence[float]
) -> Verification:
    """Runs the protocol.

    Args:
        distances: squared distances (P,).
        same: bool (P,).
        folds: int (P,), the fold of each pair; with pairs in ten folds of equal size that is
            scikit-learn's KFold(10, shuffle=False).
        fars: false accept rates to report the true accept rate at. The threshold is interpolated
            between steps of 0.001 on the other folds (0 where they never reach the rate).
    """
    _, folds = np.unique(folds, return_inverse=True)
    accuracies, thresholds = _accuracies(distances, same, folds)
    genuine, impostor = distances[same], distances[~same]
    false, true = _curve(genuine, impostor)
    return Verification(
        accuracies=accuracies,
        thresholds=thresholds,
        tars={far: _tar(distances, same, folds, far) for far in fars},
        auc=float(np.trapezoid(true, false)),
        roc=thinned(false, true),
    )


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """What the protocol says of a group of people.

    Attributes:
        accuracy: share of right decisions, each at the threshold of its fold, which the pairs of
            all groups together chose.
        tar, far: shares of the group's genuine and impostor pairs that are accepted at these
            thresholds; None where it has no such pairs. Comparing them between groups is comparing
            them at one threshold, as NIST does (Grother et al. 2019, NISTIR 8280).
        tars: false accept rate → (true accept rate, false accept rate reached) at the group's own
            threshold: the highest at which no more of its impostor pairs are accepted. Empty where
            it has only one kind of pair.
    """

    genuine: int
    impostor: int
    accuracy: float
    tar: float | None
    far: float | None
    tars: dict[float, tuple[float, float]]


def by_group(
    distances: np.ndarray,
    same: np.ndarray,
    folds: np.ndarray,
    groups: Sequence[str | None],
    thresholds: Sequence[float],
    fars: Sequence[float],
) -> dict[str, GroupResult]:
    """The results of each group, by name; pairs without a group are in none.

    Args:
        distances: squared distances (P,).
        same: bool (P,).
        folds: int (P,).
        groups: of each pair, P.
        thresholds: of each fold in rising order, as `verify` found them.
        fars: false accept rates to report the true accept rate at.
    """
    _, folds = np.unique(folds, return_inverse=True)
    accepted = distances < np.asarray(thresholds)[folds]
    found = {}
    for name in sorted({group for group in groups if group is not None}):
        mine = np.array([group == name for group in groups])
        genuine, impostor = mine & same, mine & ~same
        both = bool(genuine.any() and impostor.any())
        found[name] = GroupResult(
            genuine=int(genuine.sum()),
            impostor=int(impostor.sum()),
            accuracy=float(np.mean(accepted[mine] == same[mine])),
            tar=float(np.mean(accepted[genuine])) if genuine.any() else None,
            far=float(np.mean(accepted[impostor])) if impostor.any() else None,
            tars=_bounded(*_curve(distances[genuine], distances[impostor]), fars) if both else {},
        )
    return found


def _bounded(
    false: np.ndarray, true: np.ndarray, fars: Sequence[float]
) -> dict[float, tuple[float, float]]:
    """The last point of a curve whose false accept rate is not above each of those asked for."""
    last = np.searchsorted(false, np.asarray(fars) * (1 + 1e-12), side="right") - 1
    return {far: (float(true[i]), float(false[i])) for far, i in zip(fars, last, strict=True)}


def _accepted(distances: np.ndarray, folds: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """int (folds, thresholds): pairs of each fold whose distance is below each threshold."""
    return np.stack(
        [
            np.searchsorted(np.sort(distances[folds == fold]), thresholds, side="left")
            for fold in range(folds.max() + 1)
        ]
    )


def _others(per_fold: np.ndarray) -> np.ndarray:
    """Sum over all other folds, for each fold."""
    return per_fold.sum(axis=0) - per_fold


def _accuracies(
    distances: np.ndarray, same: np.ndarray, folds: np.ndarray
) -> tuple[list[float], list[float]]:
    """Accuracy of each fold, and the threshold that the other folds chose for it."""
    accepted_right = _accepted(distances[same], folds[same], THRESHOLDS)
    accepted_wrong = _accepted(distances[~same], folds[~same], THRESHOLDS)
    impostors = np.bincount(folds[~same])[:, None]
    right = accepted_right + impostors - accepted_wrong
    best = _others(right).argmax(axis=1)
    share = right[np.arange(len(right)), best] / np.bincount(folds)
    return share.tolist(), THRESHOLDS[best].tolist()


def _tar(
    distances: np.ndarray, same: np.ndarray, folds: np.ndarray, far: float
) -> tuple[float, float, float]:
    """Mean and deviation of the true accept rate at a false accept rate, and the rate reached."""
    wrong = _others(_accepted(distances[~same], folds[~same], FAR_THRESHOLDS))
    counts = np.bincount(folds[~same])
    tars, fars = [], []
    for fold, below in enumerate(wrong):
        rates = below / (counts.sum() - counts[fold])
        # np.interp takes the last of several thresholds with one rate; scipy's interp1d, which the
        # published code uses, refuses them in its later versions.
        threshold = np.interp(far, rates, FAR_THRESHOLDS) if rates[-1] >= far else 0.0
        mine = folds == fold
        tars.append(np.mean(distances[mine & same] < threshold))
        fars.append(np.mean(distances[mine & ~same] < threshold))
    return float(np.mean(tars)), float(np.std(tars)), float(np.mean(fars))


def _curve(genuine: np.ndarray, impostor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true accept rates at every distance that occurs, from (0, 0) to (1, 1)."""
    steps = np.unique(np.concatenate([genuine, impostor]))
    true = np.searchsorted(np.sort(genuine), steps, side="right") / len(genuine)
    false = np.searchsorted(np.sort(impostor), steps, side="right") / len(impostor)
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def thinned(false: np.ndarray, true: np.ndarray) -> list[tuple[float, float]]:
    """About 200 points of a ROC curve, half of them even in the rate and half in its logarithm.

    Args:
        false, true: float (K,), false and true accept rates, rising from (0, 0) to (1, 1).
    """
    half = _CURVE_POINTS // 2
    least = false[false > 0].min()
    wanted = np.concatenate([np.linspace(0, 1, half), np.geomspace(least, 1, half)])
    # The last point with at most that false accept rate: the highest true accept rate there.
    index = np.unique(np.searchsorted(false, wanted * (1 + 1e-12), side="right") - 1)
    return [(float(false[i]), float(true[i])) for i in index]


def histogram(distances: np.ndarray, same: np.ndarray) -> dict[str, list[float] | list[int]]:
    """Counts of genuine and impostor pairs in 100 bins of cosine similarity, from -1 to 1.

    For unit vectors the cosine is 1 - distance / 2.
    """
    cosines = np.clip(1 - distances / 2, -1, 1)
    edges = np.linspace(-1, 1, _BINS + 1)
    return {
        "edges": edges.tolist(),
        "genuine": np.histogram(cosines[same], edges)[0].tolist(),
        "impostor": np.histogram(cosines[~same], edges)[0].tolist(),
    }
