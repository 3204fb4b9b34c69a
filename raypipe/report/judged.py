"""One pass over the evidence of the judging job, keeping only what the report shows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.faceset import FaceSet
from raypipe.judging.panel import COMBINED

_ROWS = 256  # read at a time: each has a verdict for every image and expert
_TEXTS, _CHARACTERS, _NAMES = 40, 200, 5  # of problems: kept apart, of each, identities of each
OTHER_PROBLEMS = "other problems"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How two experts agree over the images that both speak of.

    Attributes:
        both: number of these images.
        share: of these, with the same vote; NaN where there are none.
        kappa: Cohen's, as `raypipe.judging.fusion.kappa` defines it.
    """

    both: int
    share: float
    kappa: float


@dataclass(kw_only=True)
class Judged:
    """What the judging job found.

    Attributes:
        experts: in the order of the configuration.
        identities: that were judged, by why the vision model was asked; "" where it was not.
        images: of these, likewise.
        unjudged: identities that were not judged.
        sheets: images of faces that the vision model was shown.
        shown: identities on them.
        faces: images of identities on them.
        problems: identities that the vision model did not judge, or only in part, by why.
        examples: a few of these.
        votes: images by what each expert and all together said: 1 (somebody else), 0, -1 (nothing).
        restored: images that cleaning had taken out, and the experts together did not.
        chosen: a few identities over which the experts disagree.
    """

    experts: tuple[str, ...]
    identities: Counter[str] = field(default_factory=Counter)
    images: Counter[str] = field(default_factory=Counter)
    unjudged: int = 0
    sheets: int = 0
    shown: int = 0
    faces: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    votes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    restored: int = 0
    chosen: list[str] = field(default_factory=list)

    def spoke(self, expert: int) -> int:
        """Images that an expert said something of; all together come after the last one."""
        return sum(number for votes, number in self.votes.items() if votes[expert] >= 0)

    def named(self, expert: int) -> int:
        """Images that it called an outlier."""
        return sum(number for votes, number in self.votes.items() if votes[expert] == 1)

    def agreement(self, first: int, second: int) -> Agreement:
        """How two experts agree."""
        said = np.zeros((2, 2))
        for votes, number in self.votes.items():
            if votes[first] >= 0 and votes[second] >= 0:
                said[votes[first], votes[second]] += number
        if not (both := said.sum()):
            return Agreement(both=0, share=float("nan"), kappa=float("nan"))
        same = float(np.trace(said) / both)
        chance = float(said.sum(axis=0) @ said.sum(axis=1) / both**2)
        kappa = 1.0 if chance == 1.0 else (same - chance) / (1 - chance)
        return Agreement(both=int(both), share=same, kappa=kappa)


class _Disputes:
    """The identities with most disagreement, those with a reason in words first; half of them with
    a restored image, where there are so many of both kinds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._best: dict[bool, list[tuple[bool, int, str]]] = {True: [], False: []}

    def add(self, identity_id: str, images: int, *, reasoned: bool, restored: bool) -> None:
        best = self._best[restored]
        best.append((not reasoned, -images, identity_id))
        best.sort()
        del best[self._limit :]

    def chosen(self) -> list[str]:
        restored, others = self._best[True], self._best[False]
        half = self._limit // 2
        found = restored[: max(half, self._limit - len(others))]
        found += others[: self._limit - len(found)]
        return [name for _, _, name in found]


@dataclass(frozen=True, kw_only=True)
class _Votes:
    """The images of some rows.

    Attributes:
        said: int (n, experts + 1), as the keys of `Judged.votes`.
        row: int (n,), where its identity stands.
        reasoned: bool (n,), whether an expert gave a reason.
    """

    said: np.ndarray
    row: np.ndarray
    reasoned: np.ndarray

    @property
    def disputed(self) -> np.ndarray:
        """bool (n,), whether the experts disagree."""
        each = self.said[:, :-1]
        return (each == 0).any(axis=1) & (each == 1).any(axis=1)


def _fields(structs: pa.StructArray) -> dict[str, pa.Array]:
    return dict(zip([part.name for part in structs.type], structs.flatten(), strict=True))


def _read(lists: pa.ListArray, experts: Sequence[str]) -> _Votes:
    """Verdicts to votes, without a Python object for each: all together speak last of an image."""
    columns = _fields(lists.flatten())
    found = pc.index_in(columns["expert"], value_set=pa.array([*experts, COMBINED], pa.string()))
    expert = found.fill_null(-1).to_numpy(zero_copy_only=False)
    last = expert == len(experts)
    image, known = np.cumsum(last) - last, expert >= 0
    said = np.full((int(last.sum()), len(experts) + 1), -1)
    outlier = columns["outlier"].to_numpy(zero_copy_only=False)
    said[image[known], expert[known]] = outlier[known] >= 0.5
    reasoned = np.zeros(len(said), bool)
    worded = pc.utf8_length(columns["reason"]).fill_null(0).to_numpy(zero_copy_only=False) > 0
    reasoned[image[worded]] = True
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(len(lengths)), lengths)[last]
    return _Votes(said=said, row=row, reasoned=reasoned)


def _note(found: Judged, identity_id: str, row: dict[str, Any], images: int) -> None:
    """Adds what is known of an identity that was judged."""
    asked = row["asked"] or ""
    found.identities[asked] += 1
    found.images[asked] += images
    if row["sheets"]:
        found.sheets += row["sheets"]
        found.shown += 1
        found.faces += images
    found.restored += len(row["restored"])
    if row["problem"]:
        text = row["problem"][:_CHARACTERS]
        if text not in found.problems and len(found.problems) >= _TEXTS:
            text = OTHER_PROBLEMS
        found.problems[text] += 1
        if found.problems[text] <= _NAMES:
            found.examples.setdefault(text, []).append(identity_id)


def scan(face_set: FaceSet, experts: Sequence[str], limit: int) -> Judged:
    """Reads the evidence of every row, and no image.

    Args:
        experts: that speak, in the order of the configuration.
        limit: identities to choose over which they disagree.
    """
    found, disputes = Judged(experts=tuple(experts)), _Disputes(limit)
    for table in face_set.tables(["identity_id", "judge"], rows=_ROWS):
        columns = _fields(table["judge"].combine_chunks())
        votes = _read(columns.pop("verdicts"), experts)
        patterns, numbers = np.unique(votes.said, axis=0, return_counts=True)
        for pattern, number in zip(patterns.tolist(), numbers.tolist(), strict=True):
            found.votes[tuple(pattern)] += number
        size, disputed, names = table.num_rows, votes.disputed, table["identity_id"].to_pylist()
        images = np.bincount(votes.row, minlength=size)
        about = np.bincount(votes.row[disputed], minlength=size)
        worded = np.bincount(votes.row[disputed & votes.reasoned], minlength=size)
        for k, row in enumerate(pa.table(columns).to_pylist()):
            if row["sheets"] is None:  # no evidence
                found.unjudged += 1
                continue
            _note(found, names[k], row, int(images[k]))
            if about[k]:
                restored = bool(row["restored"])
                disputes.add(names[k], int(about[k]), reasoned=bool(worded[k]), restored=restored)
    found.chosen = disputes.chosen()
    return found
