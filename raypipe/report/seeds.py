"""One pass over the evidence of references from a text-to-image model, keeping what is shown."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raypipe.faceset import FaceSet
from raypipe.screening import IN_GALLERY, NOT_UNIQUE
from raypipe.search import nearest
from raypipe.templates import template

TRIES_USED_UP, SURPLUS = "seed:tries_used_up", "seed:surplus"
QUALITY = ("seed:small", "seed:blurred", "seed:turned", "seed:drawing")
# How far a picture or an identity came.
DRAWN, ONE_FACE, GOOD, TAKEN, UNKNOWN, UNIQUE = range(6)
_LEFT_AT = {SURPLUS: GOOD, IN_GALLERY: TAKEN, NOT_UNIQUE: UNKNOWN}
_COLUMNS = ["identity_id", "rejected", "seed.attributes", "seed.tries.list.element.rejected"]
_SCREENED = ["nearest", "nearest_similarity", "nearest_threshold"]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An identity that was drawn, and the identity that it is most like."""

    identity_id: str
    nearest: str
    similarity: float
    threshold: float


@dataclass(kw_only=True)
class Seeded:
    """What became of the identities that were drawn.

    Attributes:
        tries: pictures by reason, None for those that passed the gates.
        outcomes: identities by reason, None for those that are left.
        pictures: of them, how many came at least as far as each of the six steps.
        identities: the same of identities.
        drawn: (attribute, value) → identities drawn.
        admitted: the same of those that are left.
        left: identity_id of those that are left, in order.
        examples: reason → the first pictures refused for it: identity_id and place among the tries.
        closest: the pair most alike of an identity that is left and any other one that is.
        over: of the identities that are not unique, the one least like the other.
    """

    tries: Counter[str | None] = field(default_factory=Counter)
    outcomes: Counter[str | None] = field(default_factory=Counter)
    pictures: list[int] = field(default_factory=lambda: [0] * (UNIQUE + 1))
    identities: list[int] = field(default_factory=lambda: [0] * (UNIQUE + 1))
    drawn: Counter[tuple[str, str]] = field(default_factory=Counter)
    admitted: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: list[str] = field(default_factory=list)
    examples: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    closest: Pair | None = None
    over: Pair | None = None


def scan(face_set: FaceSet, number: int) -> Seeded:
    """Reads what was measured on every picture, and no picture.

    Args:
        face_set: of the screening job, or, where that has not been run, of the seed job.
        number: examples to keep of every reason.
    """
    found = Seeded()
    pairs: list[Pair] = []  # of identities that are left
    others: dict[str, float] = {}  # all that are left, drawn or not → similarity to the nearest one
    for table in face_set.tables([*_COLUMNS, *(f"screen.{name}" for name in _SCREENED)]):
        for row in table.to_pylist():
            screen = row["screen"] or {}
            compared = screen.get("nearest") is not None
            if compared and row["rejected"] is None:
                others[row["identity_id"]] = screen["nearest_similarity"]
            if row["seed"] is None:
                continue
            _count(found, row, number)
            if compared:
                _compare(found, row, screen, pairs)
    found.left.sort()
    found.closest = _closest(face_set, pairs, others)
    return found


def _count(found: Seeded, row: dict[str, Any], number: int) -> None:
    reasons = [one["rejected"] for one in row["seed"]["tries"]]
    steps = [GOOD if r is None else ONE_FACE if r in QUALITY else DRAWN for r in reasons]
    furthest = max(steps, default=DRAWN)
    outcome = row["rejected"]
    if furthest == GOOD:
        furthest = UNIQUE if outcome is None else _LEFT_AT.get(outcome, GOOD)
    found.tries.update(reasons)
    found.outcomes[outcome] += 1
    for step in range(furthest + 1):
        found.identities[step] += 1
        found.pictures[step] += sum(came >= step for came in steps) if step <= GOOD else 1
    found.drawn.update(row["seed"]["attributes"])
    if outcome is None:
        found.admitted.update(row["seed"]["attributes"])
        found.left.append(row["identity_id"])
    for place, reason in enumerate(reasons):
        if reason is not None:
            shown = found.examples.setdefault(reason, [])
            shown.append((row["identity_id"], place))
            if len(shown) > number:
                shown.remove(max(shown))


def _compare(found: Seeded, row: dict[str, Any], screen: dict[str, Any], pairs: list[Pair]) -> None:
    pair = Pair(
        identity_id=row["identity_id"],
        nearest=screen["nearest"],
        similarity=screen["nearest_similarity"],
        threshold=screen["nearest_threshold"],
    )
    if row["rejected"] is None:
        pairs.append(pair)
    elif row["rejected"] == NOT_UNIQUE:
        refused = [found.over, pair] if found.over else [pair]
        found.over = min(refused, key=lambda one: (one.similarity, one.identity_id))


def _closest(face_set: FaceSet, pairs: list[Pair], others: dict[str, float]) -> Pair | None:
    """The pair most alike of an identity that was drawn and another one, both left.

    Screening notes the nearest identity, which may have been refused. Who has such a one, and may
    be nearer to somebody else than the best pair known, is searched again: among those left that
    may be as near.
    """
    known = [pair for pair in pairs if pair.nearest in others]
    best = min(known, key=lambda pair: (-pair.similarity, pair.identity_id), default=None)
    least = best.similarity if best else -np.inf
    open_ = {
        pair.identity_id: pair.threshold
        for pair in pairs
        if pair.nearest not in others and pair.similarity > least
    }
    if not open_:
        return best
    names, rows = [], []
    for item in face_set.iter_embeddings():
        if others.get(item.identity_id, -np.inf) > least:
            names.append(item.identity_id)
            rows.append(template(item.person))
    if len(names) < 2:
        return best
    templates = np.stack(rows)
    places = np.flatnonzero([name in open_ for name in names])
    similarity, index = nearest(templates[places], templates, 2)
    for place, values, near in zip(places, similarity, index, strict=True):
        other = int(near[0] == place)  # the first is itself, or a copy of it
        if values[other] > (best.similarity if best else -np.inf):
            best = Pair(
                identity_id=names[place],
                nearest=names[near[other]],
                similarity=float(values[other]),
                threshold=open_[names[place]],
            )
    return best
