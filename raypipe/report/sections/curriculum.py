"""The curriculum: what the recognizer sees first, and what after it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.report import charts
from raypipe.report.album import Album
from raypipe.report.blocks import Block, Chart, Charts, Face, Section, Strip, absent
from raypipe.report.words import count
from raypipe.report.workspace import Workspace
from raypipe.training_set import PARQUET

ANCHOR, TITLE = "curriculum", "Training set and curriculum"
_SHOWN = 22  # images of a phase
_FINE = 1000  # bins of similarity, from -1 to 1, that are counted
_BARS = 40  # that are drawn at most
_AUGMENT = "augment"  # the generator of what assemble adds
_COLUMNS = ["image.bytes", "identity_id", "image_id", "source", "phase", "position", "generator"]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The beginning of a phase: the position of its first image, and its first rows."""

    number: int
    start: int
    rows: list[dict[str, Any]]


def phases(root: str) -> tuple[list[Phase], int]:
    """The beginnings of all phases of a training set, and how many images it holds.

    Reads the shards' footers, and one row group for each phase. Rows are in the order of training,
    so a phase begins in the first row group whose statistics name it.
    """
    found: list[Phase] = []
    total = 0
    for entry in storage.listdir(storage.join(root, PARQUET)):
        where, inner = storage.filesystem(entry.path)
        with where.open_input_file(inner) as stream:
            file = pq.ParquetFile(stream)
            leaves = [file.schema.column(i).path for i in range(len(file.schema))]
            column = leaves.index("phase")
            for number in range(file.metadata.num_row_groups):
                group = file.metadata.row_group(number)
                statistics = group.column(column).statistics
                last = found[-1].number if found else -1
                if statistics.max > last:
                    rows = file.read_row_group(number, columns=_COLUMNS).to_pylist()
                    for phase in range(max(last + 1, statistics.min), statistics.max + 1):
                        first = [row for row in rows if row["phase"] == phase]
                        if first:
                            found.append(
                                Phase(number=phase, start=first[0]["position"], rows=first[:_SHOWN])
                            )
                total += group.num_rows
    return found, total


def similarities(root: str) -> dict[int, np.ndarray]:
    """Phase → how many of its images have which similarity to their identity's centre, int64
    (1000,) over [-1, 1]; empty where none was measured.

    Reads two columns of the shards, no image byte.
    """
    found: dict[int, np.ndarray] = {}
    for entry in storage.listdir(storage.join(root, PARQUET)):
        where, inner = storage.filesystem(entry.path)
        table = pq.read_table(inner, columns=["phase", "similarity"], filesystem=where)
        table = table.drop_null()
        phase, value = (column.to_numpy() for column in table)
        for number in np.unique(phase).tolist():
            counts, _ = np.histogram(value[phase == number], _FINE, (-1, 1))
            found[number] = found.get(number, 0) + counts
    return dict(sorted(found.items()))


def _chart(found: dict[int, np.ndarray], names: dict[int, str]) -> Charts:
    places = np.flatnonzero(np.sum(list(found.values()), axis=0))
    # With some embedders all similarities lie close together, near 1.
    width = -(-(places[-1] + 1 - places[0]) // _BARS)
    starts = np.arange(places[0], places[-1] + 1, width)
    end = places[-1] + 1
    edges = np.linspace(-1, 1, _FINE + 1)[np.append(starts, end)].tolist()
    groups = [
        charts.Histogram(
            label=names[number],
            edges=edges,
            counts=np.add.reduceat(counts[:end], starts).tolist(),
        )
        for number, counts in found.items()
    ]
    drawn = Chart(
        title="Similarity to the centre of the identity",
        hint="Every image of the set, by phase. Look for a phase far to the right, whose images"
        " teach little, or far to the left, where they may not show the person; assemble can"
        " filter, choose and order by this number.",
        alt=f"Histograms of the similarity of images to their identity's centre, of"
        f" {', '.join(group.label for group in groups)}",
        svg=charts.histogram("curriculum-similarity", groups, x_label="cosine similarity"),
    )
    return Charts(charts=(drawn,))


def _face(album: Album, row: dict[str, Any]) -> Face:
    made = row["generator"]
    kind = "original" if made is None else "augmented" if made == _AUGMENT else f"by {made}"
    alt = f"Image of identity {row['identity_id']}, {kind}"
    caption = (row["identity_id"], kind)
    return album.face(row["image"]["bytes"], alt=alt, caption=caption)


def section(workspace: Workspace, album: Album) -> Section:
    """The section of the assembled training set."""
    if workspace.manifest("assemble") is None:
        return absent(ANCHOR, TITLE, "assemble")
    found, total = phases(workspace.path("assemble"))
    blocks: list[Block] = []
    ends = [*(phase.start for phase in found[1:]), total]
    # Counted as they come: a phase of the configuration without an identity leaves no gap.
    names = {
        phase.number: f"Phase {number}: source {phase.rows[0]['source']}"
        for number, phase in enumerate(found, start=1)
    }
    if measured := similarities(workspace.path("assemble")):
        blocks.append(_chart(measured, names))
    for phase, end in zip(found, ends, strict=True):
        blocks.append(
            Strip(
                title=names[phase.number],
                note=f"{count(end - phase.start, 'image')}, from position {phase.start:,} on;"
                f" the first {len(phase.rows)} are shown.",
                faces=tuple(_face(album, row) for row in phase.rows),
            )
        )
    lead = (
        f"The set holds {count(total, 'image')} in a fixed order, and the trainer reads them in"
        " this order. Within a phase the identities are shuffled. Look for faces you would not"
        " expect in a"
        " phase, and compare augmented images with originals: they should be a little worse, not"
        " somebody else."
    )
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)
