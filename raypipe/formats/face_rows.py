"""Reads a face set (`raypipe.faceset`) as a source: the kept images of its kept identities.

What a job rejected is no part of the source, and no damage either. Labels count the identities in
the order of their `index`; an identity is called by its `identity_id`. The source of an entry is
FILE@ROW/IMAGE, both counted from 0. Where an image came from (parent, generator, weights, prompt,
seed) goes with it when it is ingested.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe import storage
from raypipe.errors import UserError
from raypipe.faceset import ROWS
from raypipe.formats import Damage, Record
from raypipe.formats.keyed import ENTRIES
from raypipe.formats.parquet_columns import as_texts
from raypipe.formats.parquet_file import Fault, Leaves, ParquetFile
from raypipe.formats.row_groups import NO_IMAGE, RowGroupsReader
from raypipe.identities import SCHEMA, Identity, to_vectors

_NEEDED = ("image_id", "data", "rejected")
_MADE = ("parent", "generator", "weights", "prompt", "seed")
_IMAGE = "images.list.element"
_HEADS = ("identity_id", "index", "rejected")


class RowsFile(ParquetFile):
    """A file of a face set: a row an identity."""

    def choose(self, schema: pa.Schema) -> Leaves:
        """See `ParquetFile`."""
        expected = SCHEMA.field("images").type.value_type
        place = schema.get_field_index("images")
        kind = schema.field(place).type if place >= 0 else None
        image = kind.value_type if kind is not None and pa.types.is_list(kind) else None
        if image is None or not pa.types.is_struct(image):
            raise UserError(f"{self.path}: not a face set: it has no list of images")
        there = {field.name: field.type for field in image}
        for name in _NEEDED:
            if there.get(name) != expected.field(name).type:
                raise UserError(f"{self.path}: not a face set: images have no {name!r} as expected")
        for name in _HEADS:
            place = schema.get_field_index(name)
            if place < 0 or schema.field(place).type != SCHEMA.field(name).type:
                raise UserError(f"{self.path}: not a face set: no column {name!r} as expected")
        made = [name for name in _MADE if there.get(name) == expected.field(name).type]
        beside = [f"{_IMAGE}.{name}" for name in made]
        if there.get("embedding") == expected.field("embedding").type:
            beside.append(f"{_IMAGE}.embedding.list.element")
        others = [*_HEADS, f"{_IMAGE}.image_id", f"{_IMAGE}.rejected"]
        return Leaves(f"{_IMAGE}.data", others, beside)


class FaceRowsReader(RowGroupsReader[RowsFile]):
    """Reads the rows of a face set, in their order in its files."""

    _ranks = np.zeros(0, np.int64)  # indices of the identities that have a kept image, rising

    def __init__(self, path: str, *, source: str, max_bytes: int) -> None:
        """See `raypipe.formats.open_reader`."""
        super().__init__(storage.join(path, ROWS), source=source, max_bytes=max_bytes)

    def open_file(self, path: str) -> RowsFile:
        """See `RowGroupsReader`."""
        return RowsFile(path)

    def note(self, file: RowsFile) -> np.ndarray:
        """The indices of the identities with a kept image."""
        found = [np.zeros(0, np.int64)]
        for number in range(len(file.groups)):
            try:
                for _, batch in file.intact(number, images=False):
                    kept = _Kept(batch)
                    found.append(kept.indices[np.unique(kept.rows, return_index=True)[1]])
            except Fault:
                continue
        return np.concatenate(found)

    def settle(self, notes: Sequence[np.ndarray]) -> None:
        """See `RowGroupsReader`."""
        indices = np.concatenate(notes)
        self._ranks = np.unique(indices)
        if len(self._ranks) < len(indices):
            raise UserError(f"{self.path}: two identities of it have one index, their place in it")

    def place(self, source: str) -> tuple[str, int, int]:
        """See `RowGroupsReader`."""
        name, _, place = source.rpartition("@")
        row, _, image = place.partition("/")
        sound = all(part.isdecimal() and len(part) < 19 for part in (row, image))
        return (name, int(row), int(image)) if sound else (source, -1, 0)

    def image(self, file: RowsFile, row: pa.RecordBatch, image: int) -> bytes | None:
        """See `RowGroupsReader`."""
        return _image(row, image).get("data")

    def read(self, identity: Identity) -> Identity:
        """See `raypipe.formats.Reader`."""
        found = super().read(identity)
        for image in found.images:
            if image.rejected != "ingest:damaged":
                name, row, place = self.place(image.source)
                whole = self.row(name, row)
                made = _image(whole, place) if isinstance(whole, pa.RecordBatch) else {}
                for field in _MADE:
                    setattr(image, field, made.get(field))
        return found

    def batch_entries(self, file: RowsFile, name: str, batch: pa.RecordBatch, row: int) -> pa.Table:
        """See `RowGroupsReader`."""
        kept = _Kept(batch)
        count = len(kept.indices)
        places = zip((row + kept.rows).tolist(), kept.places.tolist(), strict=True)
        return pa.table(
            [
                kept.texts("image_id"),
                as_texts(batch.column("identity_id")).take(pa.array(kept.rows)),
                pa.array(np.searchsorted(self._ranks, kept.indices), pa.int64()),
                pa.array([f"{name}@{row}/{place}" for row, place in places], pa.string()),
                pa.nulls(count, pa.int64()),
                pa.nulls(count, pa.string()),
            ],
            schema=ENTRIES,
        )

    def batch_records(
        self, file: RowsFile, name: str, batch: pa.RecordBatch, row: int, offset: int
    ) -> Iterator[Record | Damage]:
        """See `RowGroupsReader`."""
        kept = _Kept(batch)
        labels = np.searchsorted(self._ranks, kept.indices)
        identities = as_texts(batch.column("identity_id")).take(pa.array(kept.rows))
        features: list[np.ndarray | None] = [None] * len(labels)
        if kept.has("embedding"):
            features = to_vectors(kept.column("embedding"))
        columns = zip(
            kept.column("data").to_pylist(),
            labels.tolist(),
            identities.to_pylist(),
            kept.texts("image_id").to_pylist(),
            features,
            kept.rows.tolist(),
            strict=True,
        )
        for data, label, identity, image_id, feature, place in columns:
            if data is None:
                yield Damage(file.path, offset, f"row {row + place}: {NO_IMAGE}")
            else:
                yield Record(data, label, identity, image_id, feature)


class _Kept:
    """The kept images of the kept identities of some rows.

    Attributes:
        rows: int64, the row of each.
        places: int64, its place among the images of its row.
        indices: int64, the index of its identity.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        lists = batch.column("images")
        self._images = lists.flatten()
        counts = pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False)
        rows = np.repeat(np.arange(len(batch)), counts)
        places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        sound = pc.and_(
            batch.column("rejected").is_null(),
            pc.and_(batch.column("index").is_valid(), batch.column("identity_id").is_valid()),
        )
        mine = pc.and_(self._field("rejected").is_null(), self._field("image_id").is_valid())
        kept = sound.to_numpy(zero_copy_only=False)[rows] & mine.to_numpy(zero_copy_only=False)
        self._kept = np.flatnonzero(kept)
        self.rows, self.places = rows[self._kept], places[self._kept]
        indices = pc.fill_null(batch.column("index"), -1).to_numpy(zero_copy_only=False)
        self.indices = indices[self.rows]

    def _field(self, name: str) -> pa.Array:
        return self._images.flatten()[self._images.type.get_field_index(name)]

    def has(self, name: str) -> bool:
        """Whether a field of the images was read."""
        return self._images.type.get_field_index(name) >= 0

    def column(self, name: str) -> pa.Array:
        """A field of the kept images."""
        return self._field(name).take(pa.array(self._kept))

    def texts(self, name: str) -> pa.Array:
        """A field of strings; empty where one cannot be taken."""
        return pc.fill_null(as_texts(self.column(name)), "")


def _image(row: pa.RecordBatch, place: int) -> dict[str, Any]:
    """One image of a row, empty where there is none."""
    images = row.column("images").flatten()
    return images[place].as_py() or {} if place < len(images) else {}
