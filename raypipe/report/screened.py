"""One pass over the evidence of the screening job, keeping only what the report shows."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from raypipe.faceset import FaceSet, ScreenEvidence

IN_GALLERY, NOT_UNIQUE = "screen:in_gallery", "screen:not_unique"
EDGES = np.linspace(-1.0, 1.0, 201)


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
        refused: identities that are in a gallery, the most similar first, at most `limit`.
        closest: admitted identities nearest to their gallery threshold, the nearest first.
        repeated: identities too much like another one, the most similar first, at most `limit`.
        refused_total, repeated_total: how many there are of each.
        compared: identities that were compared with a gallery.
        admitted: those of them that were not refused for being in one.
        above: admitted identities whose similarity reaches the threshold; 0 unless something is wrong.
        histograms: gallery → int64 (200,) counts over [-1, 1] of the nearest gallery similarity.
        thresholds: gallery → threshold.
    """

    refused: list[Row] = field(default_factory=list)
    closest: list[Row] = field(default_factory=list)
    repeated: list[Row] = field(default_factory=list)
    refused_total: int = 0
    repeated_total: int = 0
    compared: int = 0
    admitted: int = 0
    above: int = 0
    histograms: dict[str, np.ndarray] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)


def _rows(face_set: FaceSet) -> Iterator[Row]:
    for table in face_set.tables(["identity_id", "rejected", "screen"]):
        for row in table.to_pylist():
            if row["screen"]:
                yield Row(
                    identity_id=row["identity_id"],
                    rejected=row["rejected"],
                    evidence=ScreenEvidence(**row["screen"]),
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


def scan(face_set: FaceSet, limit: int, calls: int) -> Screened:
    """Reads the evidence of every row, and no image.

    Args:
        limit: refused identities and refused pairs to keep.
        calls: closest admitted identities to keep.
    """
    found = Screened()
    refused, closest, repeated = _Top(limit), _Top(calls), _Top(limit)
    for row in _rows(face_set):
        evidence = row.evidence
        if evidence.gallery is not None and evidence.gallery_similarity is not None:
            found.compared += 1
            counts = found.histograms.setdefault(evidence.gallery, np.zeros(200, np.int64))
            counts[min(max(int((evidence.gallery_similarity + 1) * 100), 0), 199)] += 1
            found.thresholds[evidence.gallery] = evidence.gallery_threshold or 0.0
            if row.rejected == IN_GALLERY:
                found.refused_total += 1
                refused.add(margin(row), row)
            else:
                found.admitted += row.rejected is None
                found.above += row.rejected is None and margin(row) >= 0
                if row.rejected is None:
                    closest.add(margin(row), row)
        if row.rejected == NOT_UNIQUE:
            found.repeated_total += 1
            repeated.add(evidence.nearest_similarity or 0.0, row)
    found.refused, found.closest, found.repeated = refused.rows(), closest.rows(), repeated.rows()
    return found
