"""How many references screening would let in, and which of them are needed.

It decides as `raypipe.screening.decide` does. References come last in its order, so who of the
others stays hangs on them only through the threshold: the others are compared with each other once,
and then only references with them.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.impostors import Calibration, calibrate_set
from raypipe.screening import IN_GALLERY, NOT_UNIQUE, greedy
from raypipe.search import nearest, pairs_above

# Fisher's z below the threshold from which pairs of others are listed: it moves less than that when
# references join them.
_SLACK = 0.02


@dataclass(frozen=True, kw_only=True)
class People:
    """Identities that are compared with each other, in the order of their priority.

    Attributes:
        templates: float32 (N, D), unit length.
        halves: float64 (N,), as `raypipe.screening.SEARCHED` has them.
    """

    templates: np.ndarray
    halves: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Others:
    """Whom references must not be.

    Attributes:
        people: those who are in no gallery.
        least: similarity from which pairs of them are listed.
        pairs: i, j and similarity of these pairs.
    """

    people: People
    least: float
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray]

    def staying(self, threshold: float) -> np.ndarray:
        """Templates of those who stay at a threshold, float32 (M, D)."""
        if threshold < self.least:
            i, j, similarity = pairs_above(self.people.templates, threshold)
        else:
            i, j, similarity = self.pairs
        near = similarity >= threshold
        gone = greedy(i[near], j[near], similarity[near])
        return np.delete(self.people.templates, list(gone), axis=0)


def others(
    searched: pa.Table, galleries: Mapping[str, Calibration], *, rate: float, first: str
) -> Others:
    """Compares everybody but the references with each other.

    Args:
        searched: rows of `raypipe.screening.SEARCHED` in any order, without references.
        galleries, rate, first: as `raypipe.screening.decide` takes them.

    Raises:
        UserError: where there are too few identities for the rate.
    """
    source, index, name = (searched[c].to_pylist() for c in ("source", "index", "identity_id"))
    order = sorted(range(len(name)), key=lambda i: (source[i] != first, index[i], name[i]))
    searched = searched.take(pa.array(order, pa.int64()))
    people = _people(searched, ~_in_gallery(searched, galleries))
    threshold = calibrate_set(people.templates, people.halves, rate).threshold
    least = float(np.tanh(np.arctanh(min(threshold, 1 - 1e-6)) - _SLACK))
    return Others(people=people, least=least, pairs=pairs_above(people.templates, least))


def admission(
    searched: pa.Table,
    known: Others,
    galleries: Mapping[str, Calibration],
    *,
    number: int,
    rate: float,
) -> dict[str, Any]:
    """How many references screening would let in, and how many of them are needed.

    The threshold is measured on all who are compared, so it moves a little when some are left out:
    the last one needed is searched for, with a threshold for each guess.

    Args:
        searched: rows of `raypipe.screening.SEARCHED` in any order, references alone.
        known: everybody else.
        galleries: name → calibration, in the order of the columns.
        number: identities asked for.
        rate: as `raypipe.screening.decide` takes it.

    Returns:
        As JSON: "admitted", "refused" (reason → number), and "last", the index of the last
        reference that is needed, none where there are not enough.
    """
    searched = searched.sort_by("index")
    indexes = searched["index"].to_pylist()
    taken = _in_gallery(searched, galleries)
    too_few, enough = 0, len(indexes)  # references, the first of all
    compared, best = enough, None
    while True:
        reasons = np.where(taken[:compared], IN_GALLERY, "").astype(object)
        new = _people(searched.slice(0, compared), ~taken[:compared])
        reasons[np.flatnonzero(~taken[:compared])[_not_unique(new, known, rate)]] = NOT_UNIQUE
        admitted = np.flatnonzero(reasons == "")
        refused = Counter(reason for reason in reasons if reason)
        found = {"admitted": len(admitted), "refused": dict(refused), "last": None}
        if len(admitted) >= number:
            enough, best = compared, {**found, "last": indexes[compared - 1]}
            guess = int(admitted[number - 1]) + 1
            if guess == compared:
                return best
        else:
            if best is None:
                return found
            too_few = compared
            missing = number - len(admitted)
            guess = compared + math.ceil(missing * compared / max(len(admitted), 1))
        if enough - too_few <= 1:
            return best
        compared = min(max(guess, too_few + 1), enough - 1)


def _not_unique(new: People, known: Others, rate: float) -> np.ndarray:
    """Positions of references that are somebody else or an earlier reference."""
    if not len(new.templates):
        return np.zeros(0, np.int64)
    everybody = np.concatenate([known.people.templates, new.templates])
    halves = np.concatenate([known.people.halves, new.halves])
    threshold = calibrate_set(everybody, halves, rate).threshold
    gone = nearest(new.templates, known.staying(threshold), 1)[0][:, 0] >= threshold
    left = np.flatnonzero(~gone)
    gone[left[list(greedy(*pairs_above(new.templates[left], threshold)))]] = True
    return np.flatnonzero(gone)


def _people(searched: pa.Table, chosen: np.ndarray) -> People:
    flat = searched["template"].combine_chunks().flatten().to_numpy()
    templates = flat.reshape(len(searched), -1) if len(searched) else np.zeros((0, 1), np.float32)
    halves = searched["halves"].to_numpy(zero_copy_only=False)
    return People(templates=templates[chosen], halves=halves[chosen])


def _in_gallery(searched: pa.Table, galleries: Mapping[str, Calibration]) -> np.ndarray:
    """Whether identities reach the threshold of a gallery, bool (N,)."""
    thresholds = np.array([calibration.threshold for calibration in galleries.values()])
    flat = searched["similarities"].combine_chunks().flatten().to_numpy()
    similarities = flat.reshape(len(searched), len(thresholds)).astype(np.float64)
    return (similarities >= thresholds).any(axis=1)
