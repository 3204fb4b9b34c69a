"""Similarities with their thresholds: how far apart one person and two people are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raypipe import storage
from raypipe.cleaning.calibration import BINS, Calibration
from raypipe.report import charts
from raypipe.report.blocks import Block, Chart, Charts, Section, absent
from raypipe.report.charts import Histogram, Mark
from raypipe.report.sections.leakage import LEAKAGE
from raypipe.report.words import count, percent
from raypipe.report.workspace import Workspace

ANCHOR, TITLE = "similarity", "Similarities and thresholds"
CALIBRATION = "calibration.npz"  # of the cleaning job
_SHOWN = 50  # bins drawn at most


@dataclass(frozen=True, kw_only=True)
class Fine:
    """A histogram as a job keeps it, in many narrow bins: bin i starts at start + i * width."""

    label: str
    colour: str
    start: float
    width: float
    counts: np.ndarray


def _clean(label: str, counts: np.ndarray, colour: str) -> Fine:
    """A histogram of the cleaning job."""
    return Fine(label=label, colour=colour, start=-1.0, width=2 / BINS, counts=counts)


def _screen(label: str, value: dict[str, Any], colour: str) -> Fine:
    """A histogram of the screening job."""
    counts = np.asarray(value["counts"], np.int64)
    return Fine(
        label=label, colour=colour, start=value["start"], width=value["width"], counts=counts
    )


def coarse(groups: Sequence[Fine]) -> list[Histogram]:
    """The filled part of histograms of one bin width, in at most 50 bins that they share."""
    filled = [group for group in groups if group.counts.any()]
    width = filled[0].width
    first = min(_place(group) + int(np.flatnonzero(group.counts)[0]) for group in filled)
    last = max(_place(group) + int(np.flatnonzero(group.counts)[-1]) + 1 for group in filled)
    step = -(-(last - first) // _SHOWN)
    bins = -(-(last - first) // step)
    edges = -1 + width * (first + step * np.arange(bins + 1))
    drawn = []
    for group in filled:
        places = (np.arange(len(group.counts)) + _place(group) - first) // step
        inside = (places >= 0) & (places < bins)
        counts = np.bincount(places[inside], group.counts[inside], bins)
        drawn.append(
            Histogram(
                label=group.label, colour=group.colour, edges=edges.tolist(), counts=counts.tolist()
            )
        )
    return drawn


def _place(group: Fine) -> int:
    """How many bins lie between -1 and the start of a histogram."""
    return round((group.start + 1) / group.width)


def _cleaning(workspace: Workspace) -> list[Chart]:
    path = workspace.path("clean", CALIBRATION)
    if not storage.exists(path):
        return []
    found = Calibration.load(path)
    images = Chart(
        title="Images: own identity against others",
        hint="Blue: a kept image and the centre of its own identity. Orange: an image and the"
        " centre of somebody else. The dashed line is what an image of a large identity needs; a"
        " small one is asked for a little less. Look for two hills with the line in the valley;"
        " where the hills"
        " overlap, cleaning has to guess.",
        alt=f"Histogram of {found.genuine.sum():,} genuine and {found.impostor.sum():,} impostor"
        f" similarities with the threshold at {found.threshold:.3f}",
        svg=charts.histogram(
            "clean-images",
            coarse(
                [
                    _clean("genuine: own identity", found.genuine, "blue"),
                    _clean("impostor: another identity", found.impostor, "orange"),
                ]
            ),
            x_label="cosine similarity, calibrated space",
            marks=[Mark(label=f"threshold {found.threshold:.3f}", value=found.threshold)],
        ),
    )
    centres = Chart(
        title="Folders: one person against two",
        hint="Blue: two halves of one folder. Orange: two different folders. A pair of folders"
        " right of the dashed line is taken for one person. Look for orange to the right of it:"
        " those are the duplicates listed under Cleaning.",
        alt="Histogram of similarities of centres with the threshold"
        f" {found.duplicate_threshold:.3f}",
        svg=charts.histogram(
            "clean-centres",
            coarse(
                [
                    _clean("halves of one folder", found.duplicate_genuine, "blue"),
                    _clean("two folders", found.duplicate_impostor, "orange"),
                ]
            ),
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
            _screen("different people of the gallery", calibration["impostor"], "orange"),
            _screen("one person of the gallery", calibration["genuine"], "green"),
            _screen("identities: nearest gallery face", calibration["nearest"], "blue"),
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
                " Blue: each identity and its nearest gallery face; the nearest of many lies"
                " further right than"
                " an ordinary pair. Look for blue right of the line: those were refused." + tail,
                alt=f"Histogram of {count(pairs, 'impostor pair')} of {name}, with the identities'"
                f" nearest similarities and the threshold {threshold:.3f}",
                svg=charts.histogram(
                    f"gallery-{name}",
                    coarse(groups),
                    x_label="cosine similarity",
                    marks=[Mark(label=f"threshold {threshold:.3f}", value=threshold)],
                ),
            )
        )
    return drawn


def _unique(unique: dict[str, Any]) -> Chart:
    threshold = unique["threshold"]
    groups = [
        _screen("two identities", unique["impostor"], "orange"),
        _screen("halves of one identity", unique["genuine"], "blue"),
    ]
    return Chart(
        title="Uniqueness: identities against each other",
        hint="Orange: two different identities. Blue: one half of an identity's images against the"
        " other half. Two identities right of the dashed line count as one person, and the later"
        " one was refused. Look for hills that stand apart.",
        alt=f"Histogram of {count(unique['impostor_pairs'], 'pair')} of identities with the"
        f" threshold {threshold:.3f}",
        svg=charts.histogram(
            "unique",
            coarse(groups),
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
