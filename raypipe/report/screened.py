"""One pass over the evidence of the screening job, keeping only what the report shows."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from raypipe.faceset import FaceSet
from raypipe.identities import ScreenEvidence
from raypipe.screening import IN_GALLERY, NOT_UNIQUE


@dataclass(frozen=True, kw_only=True)
class Row:
    """An identity without its images."""

    identity_id: str
    rejected: str | None
    evidence: ScreenEvidence


@dataclass(kw_only=True)
class Screened:
    """What the screening job found.

    Attributes:
        galleries: names of the galleries.
        unchecked: admitted identities that were not compared with any gallery.
        refused: identities that are in a gallery, the most similar first, at most `limit`.
        closest: admitted identities nearest to their gallery threshold, the nearest first.
        repeated: identities too much like another one, the most similar first, at most `limit`.
        refused_total, repeated_total: how many there are of each.
        compared: identities that were compared with a gallery.
        admitted: those of them that were not refused for being in one.
        above: admitted identities whose similarity reaches the threshold; 0 unless something broke.
    """

    galleries: list[str]
    unchecked: int = 0
    refused: list[Row] = field(default_factory=list)
    closest: list[Row] = field(default_factory=list)
    repeated: list[Row] = field(default_factory=list)
    refused_total: int = 0
    repeated_total: int = 0
    compared: int = 0
    admitted: int = 0
    above: int = 0


def _rows(face_set: FaceSet) -> Iterator[Row]:
    for table in face_set.tables(["identity_id", "rejected", "screen"]):
        for row in table.to_pylist():
            yield Row(
                identity_id=row["identity_id"],
                rejected=row["rejected"],
                evidence=ScreenEvidence(**(row["screen"] or {})),
            )


def margin(row: Row) -> float:
    """How far the nearest gallery face lies above its threshold."""
    return (row.evidence.gallery_similarity or 0.0) - (row.evidence.gallery_threshold or 0.0)


class _Top:
    """The rows with the largest keys, ties by identity_id."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._heap: list[tuple[float, str, Row]] = []

    def add(self, key: float, row: Row) -> None:
        heapq.heappush(self._heap, (key, row.identity_id, row))
        if len(self._heap) > self._limit:
            heapq.heappop(self._heap)

    def rows(self) -> list[Row]:
        return [row for _, _, row in sorted(self._heap, key=lambda item: (-item[0], item[1]))]


def scan(face_set: FaceSet, galleries: list[str], limit: int, calls: int) -> Screened:
    """Reads the evidence of every row, and no image.

    Args:
        galleries: names of the galleries.
        limit: refused identities and refused pairs to keep.
        calls: closest admitted identities to keep.
    """
    found = Screened(galleries=galleries)
    refused, closest, repeated = _Top(limit), _Top(calls), _Top(limit)
    for row in _rows(face_set):
        evidence = row.evidence
        if evidence.gallery is not None and evidence.gallery_similarity is not None:
            found.compared += 1
            if row.rejected == IN_GALLERY:
                found.refused_total += 1
                refused.add(margin(row), row)
            elif row.rejected is None:
                found.admitted += 1
                found.above += margin(row) >= 0
                closest.add(margin(row), row)
        elif row.rejected is None:
            found.unchecked += 1
        if row.rejected == NOT_UNIQUE:
            found.repeated_total += 1
            repeated.add(evidence.nearest_similarity or 0.0, row)
    found.refused, found.closest, found.repeated = refused.rows(), closest.rows(), repeated.rows()
    return found
