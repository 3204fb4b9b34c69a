"""Reads Parquet files of images as Hugging Face `datasets` writes them, and others like them.

`raypipe.formats.parquet_columns.find_columns` says which column is what. Who an image shows is the
column "identity_id" or "identity" where there is one, else the name of its class (of a ClassLabel,
or a label that is a string), else its label in digits. Labels that are strings are numbered in
the order of their names. An image is called what "image_id", "key" or the struct's `path` say, else
by the number of its row in the set.

The images of a row group can only be read from its beginning on: it is cheap to read an identity
whose images stand together, and dear where they are scattered over the set. A shuffled set is
better converted, to WebDataset for example, before it is ingested.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat

import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import UserError
from raypipe.formats import Damage, Record
from raypipe.formats.keyed import ENTRIES, UNKNOWN
from raypipe.formats.parquet_columns import as_texts, find_columns
from raypipe.formats.parquet_file import Fault, Leaves, ParquetFile
from raypipe.formats.row_groups import NO_IMAGE, RowGroupsReader


class ImageFile(ParquetFile):
    """A file with a row an image; `columns` says what is where."""

    def choose(self, schema: pa.Schema) -> Leaves:
        """See `ParquetFile`."""
        self.columns = columns = find_columns(schema, self.path)
        found = [columns.label, columns.identity, columns.key or columns.path]
        others = [name for name in found if name]
        texts = [name for name in others if not self.is_number(name)]
        return Leaves(columns.bytes, others, texts=texts)

    def is_number(self, name: str) -> bool:
        """Whether a column holds integers."""
        return name != self.columns.path and pa.types.is_integer(self.schema.field(name).type)

    def images(self, batch: pa.RecordBatch) -> pa.Array:
        """The encoded images of a batch; null where one is missing."""
        return self._column(batch, self.columns.bytes)

    def texts(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        """A column of names or keys, as `as_texts` gives them."""
        return as_texts(self._column(batch, name))

    def _column(self, batch: pa.RecordBatch, leaf: str) -> pa.Array:
        """A column, or a field of the struct of images that is null wherever the struct is."""
        if leaf not in (self.columns.bytes, self.columns.path) or leaf == self.columns.image:
            return batch.column(leaf)
        column = batch.column(self.columns.image)
        place = column.type.get_field_index(leaf.removeprefix(f"{self.columns.image}."))
        return column.flatten()[place]


class ParquetReader(RowGroupsReader[ImageFile]):
    """Reads a Parquet file, or the files in a folder and in the folders inside it.

    The source of an entry is FILE@ROW.
    """

    _classes: pa.Array | None = None  # labels that are strings, in their order

    def open_file(self, path: str) -> ImageFile:
        """See `RowGroupsReader`."""
        return ImageFile(path)

    def note(self, file: ImageFile) -> pa.Array | None:
        """The labels of a file where they are strings, each once; without what cannot be read."""
        name = file.columns.label or file.columns.identity
        if name is None or file.is_number(name):
            return None
        found = pa.array([], pa.string())
        for number in range(len(file.groups)):
            try:
                for _, batch in file.intact(number, images=False):
                    found = pc.unique(pa.concat_arrays([found, file.texts(batch, name)]))
            except Fault:
                continue
        return found.drop_null()

    def settle(self, notes: Sequence[pa.Array | None]) -> None:
        """See `RowGroupsReader`."""
        strings = [classes for classes in notes if classes is not None]
        if not strings:
            return
        if len(strings) < len(notes):
            raise UserError(f"{self.path}: labels are integers in some files, strings in others")
        classes = pc.unique(pa.concat_arrays(strings))
        self._classes = classes.take(pc.sort_indices(classes))

    def place(self, source: str) -> tuple[str, int, int]:
        """See `RowGroupsReader`."""
        name, _, row = source.rpartition("@")
        return (name, int(row), 0) if row.isdecimal() and len(row) < 19 else (source, -1, 0)

    def image(self, file: ImageFile, row: pa.RecordBatch, image: int) -> bytes | None:
        """See `RowGroupsReader`."""
        return file.images(row)[0].as_py()

    def batch_entries(
        self, file: ImageFile, name: str, batch: pa.RecordBatch, row: int
    ) -> pa.Table:
        """See `RowGroupsReader`."""
        labels, identities, keys = self._about(file, batch, self._first[name] + row)
        bad = pc.is_null(labels)
        if file.leaves.data in _leaves(batch, file.columns.image):
            bad = pc.or_(bad, pc.is_null(file.images(batch)))
        rows = range(row, row + len(batch))
        return pa.table(
            [
                keys,
                pc.coalesce(identities, pa.scalar(UNKNOWN)),
                pc.coalesce(labels, pa.scalar(-1, pa.int64())),
                pa.array([f"{name}@{place}" for place in rows], pa.string()),
                pa.nulls(len(batch), pa.int64()),
                pc.if_else(bad, pa.scalar("ingest:damaged"), pa.scalar(None, pa.string())),
            ],
            schema=ENTRIES,
        )

    def batch_records(
        self, file: ImageFile, name: str, batch: pa.RecordBatch, row: int, offset: int
    ) -> Iterator[Record | Damage]:
        """See `RowGroupsReader`."""
        images, columns = file.images(batch), self._about(file, batch, self._first[name] + row)
        about = [column.to_pylist() for column in columns]
        if not images.null_count and not columns[0].null_count:
            # No line of Python for each record: it would take as long as to read it.
            rows = zip(images.to_pylist(), *about, repeat(None), strict=False)
            return map(tuple.__new__, repeat(Record), rows)
        return self._mixed(file, images, about, row, offset)

    def _mixed(
        self, file: ImageFile, images: pa.Array, about: Sequence[list], row: int, offset: int
    ) -> Iterator[Record | Damage]:
        """The records of a batch in which something is missing."""
        rows = zip(images.to_pylist(), *about, strict=True)
        for place, (image, label, identity, key) in enumerate(rows):
            if image is None or label is None:
                what = NO_IMAGE if image is None else "no label"
                yield Damage(file.path, offset, f"row {row + place}: {what}")
            else:
                yield Record(image, label, identity, key)

    def _about(
        self, file: ImageFile, batch: pa.RecordBatch, number: int
    ) -> tuple[pa.Array, pa.Array, pa.Array]:
        """Labels, identities and keys of rows, the first of which has a number in the set.

        A label is null where there is none, which `datasets` writes as -1; an identity with it,
        unless there is a column of them.
        """
        names = file.columns
        identities = file.texts(batch, names.identity) if names.identity else None
        if self._classes is None:
            labels = batch.column(names.label or names.identity).cast(pa.int64(), safe=False)
            labels = pc.if_else(pc.greater_equal(labels, 0), labels, pa.scalar(None, pa.int64()))
            named = labels.cast(pa.string())
            if len(names.classes):
                inside = pc.less(labels, len(names.classes))
                of_class = pc.if_else(inside, labels, pa.scalar(None, pa.int64()))
                named = pc.coalesce(names.classes.take(of_class), named)
        else:
            named = file.texts(batch, names.label) if names.label else identities
            labels = pc.index_in(named, self._classes).cast(pa.int64())
        if identities is not None:
            named = pc.coalesce(identities, named)
        rows = pa.array(range(number, number + len(batch)), pa.int64()).cast(pa.string())
        key = names.key or names.path
        return labels, named, pc.coalesce(file.texts(batch, key), rows) if key else rows


def _leaves(batch: pa.RecordBatch, image: str) -> list[str]:
    """The leaves of the image column that were read."""
    if image not in batch.schema.names:
        return []
    kind = batch.schema.field(image).type
    return [f"{image}.{field.name}" for field in kind] if pa.types.is_struct(kind) else [image]
