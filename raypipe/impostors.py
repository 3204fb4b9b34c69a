"""Thresholds between one person and two, from comparisons of people known to differ.

The comparisons are of the kind that the threshold is for: templates of gallery people with single
faces of other gallery people; templates of identities with each other. Where the wanted false match
rate is too rare to be counted, the tail is extrapolated: Fisher's z of the cosine is taken as
normal above its 95th percentile, with the standard deviation that gives the mean excess found
there. For X normal, P(X > u) = p and a = (u - mean) / sd, that excess is sd (φ(a) / p - a), by the
inverse Mills ratio. A generalised Pareto law, with one number more to fit, misses the rate further
(`python benchmarks/leakage.py` measures both on parts of a set against the whole).

A gallery may hold a person under two names, a set may have an identity twice. Such pairs would pass
for impostors and lift the threshold over everybody, so pairs as similar as one person are left out
and named.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from raypipe.errors import UserError
from raypipe.templates import Gallery, unit

BIN = 0.0025
_BINS = round(2 / BIN)
_TAIL = 0.05  # share of the impostor comparisons that the tail law is fitted to
_TAIL_MAX = 10_000  # and no more comparisons than this
_TAIL_MIN = 10  # comparisons that anything is measured on at least
_NEAR_ONE = 0.999999  # cosines beyond it have no use for their Fisher's z
_REACH = 0.01  # the law is trusted down to this many expected false matches among the comparisons
_PEOPLE = 200  # templates compared at least
_COMPARISONS = 3 * 10**7  # and at most as many more as make so many comparisons
RATE = "screen.false_match_rate"
_BLOCK = 2**24  # similarities in memory at once


@dataclass
class Histogram:
    """Counts of cosines in bins of width `BIN` over [-1, 1]."""

    counts: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def add(self, similarities: np.ndarray) -> "Histogram":
        """Counts more; NaN is left out."""
        finite = similarities[np.isfinite(similarities)]
        places = np.clip(((finite + 1) / BIN).astype(np.int64), 0, _BINS - 1)
        self.counts += np.bincount(places, minlength=_BINS)
        return self

    def to_json(self) -> dict[str, Any]:
        """{"start": left edge of the first bin that is not empty, "width", "counts": [...]}."""
        full = np.flatnonzero(self.counts)
        first, last = (int(full[0]), int(full[-1]) + 1) if len(full) else (0, 0)
        return {
            "start": round(first * BIN - 1, 6),
            "width": BIN,
            "counts": self.counts[first:last].tolist(),
        }


class Impostors:
    """Collects impostor similarities: how many, their histogram, and the largest of them.

    Args:
        rate: false match rate that a threshold is wanted for.
        most: comparisons that will come, at most.
    """

    def __init__(self, rate: float, most: int) -> None:
        self._rate = rate
        self._room = max(_TAIL_MAX, int(2 * rate * most)) + 1
        self._top = np.empty(0, np.float32)
        self.pairs = 0
        self.histogram = Histogram()

    def add(self, similarities: np.ndarray) -> None:
        """Takes more float32 similarities, any shape."""
        similarities = similarities.ravel()
        self.pairs += len(similarities)
        self.histogram.add(similarities)
        top = np.concatenate([self._top, similarities])
        if len(top) > self._room:
            top = np.partition(top, len(top) - self._room)[-self._room :]
        self._top = top

    def threshold(self, what: str, remedy: str, key: str = RATE) -> float:
        """Cosine that a share `rate` of the comparisons reaches, to 6 decimals.

        Counted where at least 10 of the comparisons reach it; else extrapolated from the top 5 %
        (see the module), down to 0.01 expected matches among the comparisons made.

        Args:
            what: what was compared, for the error.
            remedy: what would give more comparisons, for the error.
            key: of the configuration, that holds the rate, for the error.

        Raises:
            UserError: where the comparisons are too few for the rate.
        """
        least = max(_REACH / self._rate, _TAIL_MIN)
        if self.pairs < least:
            hint = ""
            if self.pairs >= _TAIL_MIN:
                unit_place = 10.0 ** np.floor(np.log10(_REACH / self.pairs))
                lowest = np.ceil(_REACH / self.pairs / unit_place) * unit_place
                hint = f"set {key} to {lowest:.1g} or more, or "
            raise UserError(
                f"{key.split('.')[0]}: {what}: {self.pairs} comparisons of different people cannot "
                f"resolve a false match rate of {self._rate:g}, which needs {least:.0f}; "
                f"{hint}{remedy}"
            )
        top = np.sort(self._top.astype(np.float64))[::-1]
        wanted = self._rate * self.pairs
        if wanted >= 10:
            place = int(wanted)
            return round(float(top[place - 1 : place + 1].mean()), 6)
        count = min(max(int(np.ceil(_TAIL * self.pairs)), 30), _TAIL_MAX, self.pairs - 1)
        z = np.arctanh(np.clip(top[: count + 1], -_NEAR_ONE, _NEAR_ONE))
        normal, share = NormalDist(), count / self.pairs
        start = normal.inv_cdf(1 - share)
        spread = (z[:count].mean() - z[count]) / (normal.pdf(start) / share - start)
        beyond = z[count] + spread * (normal.inv_cdf(1 - self._rate) - start)
        return round(float(np.tanh(beyond)), 6)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold and what it rests on.

    Attributes:
        threshold: cosine from which two are one person.
        pairs: impostor comparisons made.
        impostor, genuine: histograms of comparisons of two people, and of one.
        recognised: share of the genuine comparisons that reach the threshold, None without any:
            what part of leaks like the gallery's own photographs is found.
        same: pairs of positions of people (or identities) so similar that they were taken for one
            person and left out.
    """

    threshold: float
    pairs: int
    impostor: Histogram
    genuine: Histogram
    recognised: float | None
    same: list[tuple[int, int]]

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """For leakage.json; `names` are those of the positions in `same`."""
        return {
            "threshold": self.threshold,
            "impostor_pairs": self.pairs,
            "recognised": self.recognised,
            "one_person": [[names[i], names[j]] for i, j in self.same],
            "impostor": self.impostor.to_json(),
            "genuine": self.genuine.to_json(),
        }


def _law(similarities: np.ndarray) -> tuple[float, float]:
    """Median and robust standard deviation (1.4826 median absolute deviations) after Fisher's z."""
    z = np.arctanh(np.clip(similarities, -_NEAR_ONE, _NEAR_ONE))
    middle = float(np.median(z))
    return middle, 1.4826 * float(np.median(np.abs(z - middle)))


def _alike(genuine: np.ndarray, templates: np.ndarray) -> float:
    """Cosine from which two people are taken for one while calibrating.

    As near as one person: no more than 3 standard deviations below the median of the genuine
    comparisons; and unlike two: more than 4 above the median of the templates' cosines. Both are
    robust, so neither a few wrong labels nor a few people under two names move them. Infinite where
    there is too little.
    """
    some = templates[:: -(-len(templates) // 1000)]
    different = (some @ some.T)[np.triu_indices(len(some), 1)]
    if min(len(genuine), len(different)) < _TAIL_MIN:
        return np.inf
    (same, within), (two, between) = _law(genuine), _law(different)
    return float(np.tanh(max(same - 3 * within, two + 4 * between)))


def _sample(order: np.ndarray, compared_with: int) -> np.ndarray:
    """The first of `order`, as many as keep the number of comparisons bounded."""
    return order[: max(_PEOPLE, _COMPARISONS // compared_with)]


def _finish(
    impostors: Impostors,
    genuine: np.ndarray,
    same: set[tuple[int, int]],
    what: str,
    remedy: str,
    key: str = RATE,
) -> Calibration:
    threshold = impostors.threshold(what, remedy, key)
    return Calibration(
        threshold=threshold,
        pairs=impostors.pairs,
        impostor=impostors.histogram,
        genuine=Histogram().add(genuine),
        recognised=round(float((genuine >= threshold).mean()), 6) if len(genuine) else None,
        same=sorted(same),
    )


def calibrate_gallery(gallery: Gallery, rate: float, key: str = RATE) -> Calibration:
    """The threshold between an identity's template and a gallery face.

    Impostor: the template of a gallery person and a face of another person. Genuine: a face and the
    template of the other faces of its person. Where there are many people, those with the most
    faces are taken, whose templates are most like an identity's.

    Args:
        rate: share of comparisons of different people that may reach the threshold.
        key: of the configuration, that holds the rate, for the error.

    Raises:
        UserError: where the gallery is too small for the rate.
    """
    faces = gallery.faces.astype(np.float64)
    starts = np.flatnonzero(np.diff(gallery.people, prepend=-1))
    counts = np.diff(starts, append=len(faces))
    sums = np.add.reduceat(faces, starts, axis=0)
    several = counts[gallery.people] > 1
    others = unit(sums[gallery.people[several]] - faces[several])
    genuine = (faces[several] * others).sum(axis=1)
    alike = _alike(genuine, unit(sums))
    chosen = np.sort(_sample(np.argsort(-counts, kind="stable"), len(faces)))
    templates = unit(sums[chosen])
    impostors = Impostors(rate, len(chosen) * len(faces))
    same: set[tuple[int, int]] = set()
    step = max(_BLOCK // len(faces), 1)
    for start in range(0, len(chosen), step):
        own = chosen[start : start + step]
        similarity = (templates[start : start + step] @ faces.T).astype(np.float32)
        one = np.add.reduceat(similarity, starts, axis=1) / counts >= alike
        one[np.arange(len(own)), own] = True
        for row, person in np.argwhere(one).tolist():
            if (mine := int(own[row])) != person:
                same.add((min(mine, person), max(mine, person)))
        impostors.add(similarity[~one[:, gallery.people]])
    return _finish(
        impostors,
        genuine,
        same,
        f"gallery {gallery.name!r} ({len(counts)} people, {len(faces)} faces)",
        "give a gallery with more faces",
        key,
    )


def calibrate_set(templates: np.ndarray, genuine: np.ndarray, rate: float) -> Calibration:
    """The threshold between the templates of two identities of the set.

    Args:
        templates: float32 (N, D), unit length.
        genuine: (N,), `halves` of every identity, NaN where there is none.
        rate: share of comparisons of different identities that may reach the threshold.

    Raises:
        UserError: where the set is too small for the rate.
    """
    genuine = genuine[np.isfinite(genuine)]
    alike = _alike(genuine, templates.astype(np.float64))
    total = len(templates)
    spread = np.argsort(
        np.arange(total) * 0.6180339887498949 % 1, kind="stable"
    )  # evenly, any count
    chosen = np.sort(_sample(spread, max(total, 1)))
    rank = np.full(total, total)  # so that a pair of chosen ones counts once
    rank[chosen] = np.arange(len(chosen))
    impostors = Impostors(rate, len(chosen) * total)
    same: set[tuple[int, int]] = set()
    double = templates.astype(np.float64)
    step = max(_BLOCK // max(total, 1), 1)
    for start in range(0, len(chosen), step):
        own = chosen[start : start + step]
        similarity = (double[own] @ double.T).astype(np.float32)
        other = rank > rank[own][:, None]
        one = other & (similarity >= alike)
        for row, identity in np.argwhere(one).tolist():
            mine = int(own[row])
            same.add((min(mine, identity), max(mine, identity)))
        impostors.add(similarity[other & ~one])
    return _finish(impostors, genuine, same, f"{total} identities", "give more identities")
