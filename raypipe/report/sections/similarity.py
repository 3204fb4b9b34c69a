"""Similarities with their thresholds: how far apart one person and two people are."""

from typing import Any

import numpy as np

from raypipe import storage
from raypipe.cleaning.calibration import EDGES, Calibration
from raypipe.report import charts
from raypipe.report.blocks import Block, Chart, Charts, Section, absent
from raypipe.report.charts import Histogram, Mark
from raypipe.report.sections.leakage import LEAKAGE
from raypipe.report.words import count, percent
from raypipe.report.workspace import Workspace

ANCHOR, TITLE = "similarity", "Similarities and thresholds"
CALIBRATION = "calibration.npz"  # of the cleaning job
_BINS = 80  # drawn at most


def thinned(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The filled part of a histogram in at most `_BINS` bins of equal width."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return edges[[0, -1]], np.zeros(1)
    first, last = filled[0], filled[-1] + 1
    step = max(1, -(-(last - first) // _BINS))
    end = min(first + step * -(-(last - first) // step), len(counts))
    starts = np.arange(first, end, step)
    ends = np.append(edges[starts], edges[end])
    return ends, np.add.reduceat(counts[:end], starts)


def _group(label: str, edges: np.ndarray, counts: np.ndarray, colour: str) -> Histogram:
    edges, counts = thinned(edges, counts)
    return Histogram(label=label, edges=edges.tolist(), counts=counts.tolist(), colour=colour)


def _from_json(label: str, value: dict[str, Any], colour: str) -> Histogram:
    """A histogram as the screening job writes it: start, width, counts."""
    counts = np.asarray(value["counts"], np.int64)
    return _group(
        label, value["start"] + value["width"] * np.arange(len(counts) + 1), counts, colour
    )


def _cleaning(workspace: Workspace) -> list[Chart]:
    path = workspace.path("clean", CALIBRATION)
    if not storage.exists(path):
        return []
    found = Calibration.load(path)
    images = Chart(
        title="Images: own identity against others",
        hint="Blue: an image and the centre of its own identity. Orange: an image and the centre of"
        " somebody else. An image left of the dashed line was removed. Look for two hills with the"
        " line in the valley; where the hills overlap, cleaning has to guess.",
        alt=f"Histogram of {found.genuine.sum():,} genuine and {found.impostor.sum():,} impostor"
        f" similarities with the threshold at {found.threshold:.3f}",
        svg=charts.histogram(
            "clean-images",
            [
                _group("genuine: own identity", EDGES, found.genuine, "blue"),
                _group("impostor: another identity", EDGES, found.impostor, "orange"),
            ],
            x_label="cosine similarity, calibrated space",
            marks=[Mark(label=f"threshold {found.threshold:.3f}", value=found.threshold)],
        ),
    )
    centres = Chart(
        title="Folders: one person against two",
        hint="Blue: two halves of one folder. Orange: two different folders. A pair of folders"
        " right"
        " of the dashed line is taken for one person. Look for orange to the right of it: those are"
        " the duplicates listed under Cleaning.",
        alt="Histogram of similarities of centres with the threshold"
        f" {found.duplicate_threshold:.3f}",
        svg=charts.histogram(
            "clean-centres",
            [
                _group("halves of one folder", EDGES, found.duplicate_genuine, "blue"),
                _group("two folders", EDGES, found.duplicate_impostor, "orange"),
            ],
            x_label="cosine similarity of centres, calibrated space",
            marks=[
                Mark(
                    label=f"threshold {found.duplicate_threshold:.3f}",
                    value=found.duplicate_threshold,
                )
            ],
        ),
    )
    return [images, centres]


def _galleries(summary: dict[str, Any]) -> list[Chart]:
    drawn = []
    for name, calibration in sorted(summary["galleries"].items()):
        pairs, threshold = calibration["impostor_pairs"], calibration["threshold"]
        groups = [
            _from_json("different people of the gallery", calibration["impostor"], "orange"),
            _from_json("one person of the gallery", calibration["genuine"], "green"),
            _from_json("identities: nearest gallery face", calibration["nearest"], "blue"),
        ]
        recognised = calibration["recognised"]
        tail = (
            f" {percent(recognised)} of the gallery's own pairs of one person reach the line: so"
            " likely is a leak to be found by one photograph of that kind."
            if recognised is not None
            else ""
        )
        drawn.append(
            Chart(
                title=f"Leakage: identities against {name}",
                hint="Orange: two different people of the gallery, which set the threshold."
                " Blue: each"
                " identity and its nearest gallery face; the nearest of many lies further right"
                " than"
                " an ordinary pair. Look for blue right of the line: those were refused." + tail,
                alt=f"Histogram of {count(pairs, 'impostor pair')} of {name}, with the identities'"
                f" nearest similarities and the threshold {threshold:.3f}",
                svg=charts.histogram(
                    f"gallery-{name}",
                    [group for group in groups if sum(group.counts)],
                    x_label="cosine similarity",
                    marks=[Mark(label=f"threshold {threshold:.3f}", value=threshold)],
                ),
            )
        )
    return drawn


def _unique(unique: dict[str, Any]) -> Chart:
    threshold = unique["threshold"]
    groups = [
        _from_json("two identities", unique["impostor"], "orange"),
        _from_json("halves of one identity", unique["genuine"], "blue"),
    ]
    return Chart(
        title="Uniqueness: identities against each other",
        hint="Orange: two different identities. Blue: one half of an identity's images against the"
        " other half. Two identities right of the dashed line count as one person, and the later"
        " one"
        " was refused. Look for hills that stand apart.",
        alt=f"Histogram of {count(unique['impostor_pairs'], 'pair')} of identities with the"
        " threshold"
        f" {threshold:.3f}",
        svg=charts.histogram(
            "unique",
            [group for group in groups if sum(group.counts)],
            x_label="cosine similarity",
            marks=[Mark(label=f"threshold {threshold:.3f}", value=threshold)],
        ),
    )


def section(workspace: Workspace) -> Section:
    """The section of the calibrations of cleaning and screening."""
    drawn = _cleaning(workspace)
    if summary := workspace.json("screen", LEAKAGE):
        drawn += _galleries(summary)
        drawn += [_unique(summary["unique"])] if summary["unique"] else []
    if not drawn:
        return absent(ANCHOR, TITLE, "clean or screen")
    blocks: list[Block] = [Charts(charts=tuple(drawn))]
    lead = (
        "How alike two faces are is one number, the cosine similarity: near 1 for one person, lower"
        " for two. A threshold decides. Here every threshold is measured on the data at hand; each"
        " group is drawn as a share of itself, so groups of different size can be compared."
    )
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)
