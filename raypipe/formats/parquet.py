"""Reads Parquet files of images as Hugging Face `datasets` writes them, and others like them.

`raypipe.formats.parquet_file.find_columns` says which column is what. Who an image shows is the
column "identity_id" or "identity" where there is one, else the name of its class (of a ClassLabel,
or a label that is a string), else its label in digits. Labels that are strings are numbered in
the order of their names. An image is called what "image_id", "key" or the struct's `path` say, else
by the number of its row in the set.

The images of a row group can only be read from its beginning on: it is cheap to read an identity
whose images stand together, and dear where they are scattered over the set. A shuffled set is
better converted, to WebDataset for example, before it is ingested.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import Damage, Record
from raypipe.formats.keyed import ENTRIES, UNKNOWN, KeyedReader, Part
from raypipe.formats.parquet_file import (
    FAILURES,
    MAGIC,
    NO_IMAGE,
    FooterError,
    Group,
    ImageFile,
    line,
)

_PART_ROWS, _PART_BYTES = 50_000, 256 * 10**6
_FILES_AT_ONCE = 16
_FILES, _CURSORS = 8, 16  # held open; a cursor holds some 16 MB


class _File(NamedTuple):
    """A file of the set as it was found.

    Attributes:
        rows: how many it has.
        parts: its parts.
        damage: where its footer cannot be read.
        classes: the labels that occur, where they are strings.
    """

    rows: int
    parts: list[Part]
    damage: Damage | None
    classes: pa.Array | None


class ParquetReader(KeyedReader):
    """Reads a Parquet file, or the files in a folder and in the folders inside it."""

    def __init__(self, path: str, *, source: str, max_bytes: int) -> None:
        """See `raypipe.formats.open_reader`."""
        super().__init__(path, source=source, max_bytes=max_bytes)
        self._entries: dict[str, storage.FileInfo] = {}
        self._files: dict[str, _File] = {}
        self._first: dict[str, int] = {}  # number of a file's first row in the set
        self._classes: pa.Array | None = None
        self._open: OrderedDict[str, ImageFile] = OrderedDict()
        self._cursors: OrderedDict[tuple[str, int], _Cursor] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_cursors": OrderedDict()}

    def stamp(self) -> str:
        """See `KeyedReader`."""
        digest = hashlib.sha256()
        for name, entry in self._listed().items():
            digest.update(f"{name}\0{entry.size}\0{entry.mtime_ns}\0".encode())
        return digest.hexdigest()

    def parts(self) -> list[Part]:
        """See `KeyedReader`: ranges of row groups; (0, 0) of a file whose footer is damaged."""
        return [part for file in self._known().values() for part in file.parts]

    def entries(self, part: Part) -> pa.Table:
        """See `KeyedReader`. A place is FILE@ROW; of what is lost, FILE@BYTE."""
        known, tables = self._known()[part.path], []
        if known.damage:
            tables.append(_lost(part.path, known.damage.offset))
        for number in range(part.start, part.stop):
            tables += self._group_entries(part.path, number)
        return pa.concat_tables([ENTRIES.empty_table(), *tables])

    def part_records(self, part: Part) -> Iterator[Record | Damage]:
        """See `KeyedReader`. After a damaged page the rest of its row group is lost."""
        known = self._known()[part.path]
        if known.damage:
            yield known.damage
        for number in range(part.start, part.stop):
            yield from self._group_records(part.path, number)

    def fetch(self, sources: Sequence[str]) -> list[bytes | Damage]:
        """See `KeyedReader`."""
        places = [self._place(source) for source in sources]
        found: dict[int, bytes | Damage] = {}
        for i in sorted(range(len(places)), key=places.__getitem__):
            found[i] = self._fetch(*places[i])
        return [found[i] for i in range(len(places))]

    def _place(self, source: str) -> tuple[str, int]:
        name, _, row = source.rpartition("@")
        if name not in self._listed() or not row.isdecimal() or len(row) > 18:
            raise UserError(f"{self.path}: {source!r} is no row of a file of this set")
        return name, int(row)

    def _fetch(self, name: str, row: int) -> bytes | Damage:
        try:
            file = self._file(name)
        except FooterError as error:
            return Damage(self._path(name), error.offset, str(error))
        places = (i for i, g in enumerate(file.groups) if g.first <= row < g.first + g.rows)
        number = next(places, None)
        if number is None:
            raise UserError(f"{file.path}: it has no row {row:,}; was the set changed?")
        group = file.groups[number]
        what = group.fault
        if what is None:
            try:
                data = self._cursor(name, number).take(row - group.first)
            except FAILURES as error:
                what = line(error)
            else:
                if data is not None:
                    return data
                what = NO_IMAGE
        return Damage(file.path, group.offset, f"row {row}: {what}")

    def _group_entries(self, name: str, number: int) -> Iterator[pa.Table]:
        file = self._file(name)
        group, done = file.groups[number], 0
        if not group.fault:
            try:
                for batch in file.batches(number, images=group.nulls):
                    yield self._batch_entries(file, name, batch, group.first + done, group.nulls)
                    done += len(batch)
            except FAILURES:
                pass
        if group.fault or done < group.rows:
            yield _lost(name, group.offset)

    def _batch_entries(
        self, file: ImageFile, name: str, batch: pa.RecordBatch, row: int, images: bool
    ) -> pa.Table:
        labels, identities, keys = self._about(file, batch, self._first[name] + row)
        bad = pc.is_null(labels)
        if images:
            bad = pc.or_(bad, pc.is_null(file.images(batch)))
        places = pa.array(
            [f"{name}@{place}" for place in range(row, row + len(batch))], pa.string()
        )
        return pa.table(
            [
                keys,
                pc.coalesce(identities, pa.scalar(UNKNOWN)),
                pc.coalesce(labels, pa.scalar(-1, pa.int64())),
                places,
                pa.nulls(len(batch), pa.int64()),
                pc.if_else(bad, pa.scalar("ingest:damaged"), pa.scalar(None, pa.string())),
            ],
            schema=ENTRIES,
        )

    def _group_records(self, name: str, number: int) -> Iterator[Record | Damage]:
        file = self._file(name)
        group, done, what = file.groups[number], 0, ""
        if group.fault:
            yield Damage(file.path, group.offset, f"row group {number}: {group.fault}")
            return
        for rows in (None, 1):  # after a failure once more, row by row up to the damage
            start = 0
            try:
                for batch in file.batches(number, images=True, rows=rows):
                    if start >= done:
                        yield from self._batch_records(file, name, batch, group, start)
                        done += len(batch)
                    start += len(batch)
            except FAILURES as error:
                what = line(error)
                continue
            break
        if done < group.rows:
            lost = f"rows {group.first + done} to {group.first + group.rows - 1}"
            yield Damage(file.path, group.offset, f"{lost}: {what or 'they are not there'}")

    def _batch_records(
        self, file: ImageFile, name: str, batch: pa.RecordBatch, group: Group, start: int
    ) -> Iterator[Record | Damage]:
        row = group.first + start
        columns = self._about(file, batch, self._first[name] + row)
        images = file.images(batch).to_pylist()
        about = (column.to_pylist() for column in columns)
        for place, (image, label, identity, key) in enumerate(zip(images, *about, strict=True)):
            if image is None or label is None:
                what = NO_IMAGE if image is None else "no label"
                yield Damage(file.path, group.offset, f"row {row + place}: {what}")
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
            labels = batch.column(names.label).cast(pa.int64())
            labels = pc.if_else(pc.greater_equal(labels, 0), labels, pa.scalar(None, pa.int64()))
            named = labels.cast(pa.string())
            if len(names.classes):
                inside = pc.less(labels, len(names.classes))
                of_class = names.classes.take(pc.if_else(inside, labels, None))
                named = pc.coalesce(of_class, named)
        else:
            named = file.texts(batch, names.label) if names.label else identities
            labels = pc.index_in(named, self._classes).cast(pa.int64())
        rows = pa.array(range(number, number + len(batch)), pa.int64()).cast(pa.string())
        key = names.key or names.path
        keys = pc.coalesce(file.texts(batch, key), rows) if key else rows
        return labels, pc.coalesce(identities, named) if names.identity else named, keys

    def _cursor(self, name: str, number: int) -> "_Cursor":
        key = (name, number)
        if key not in self._cursors:
            self._cursors[key] = _Cursor(self._file(name), number)
            if len(self._cursors) > _CURSORS:
                self._cursors.popitem(last=False)
        self._cursors.move_to_end(key)
        return self._cursors[key]

    def _file(self, name: str) -> ImageFile:
        if name not in self._open:
            self._open[name] = ImageFile(self._path(name))
            if len(self._open) > _FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(name)
        return self._open[name]

    def _path(self, name: str) -> str:
        return self._listed()[name].path

    def _listed(self) -> dict[str, storage.FileInfo]:
        """The files of the set in order, by what they are called in it."""
        if not self._entries:
            self._entries = list_files(self.path)
        return self._entries

    def _known(self) -> dict[str, _File]:
        """What a first look at every file told."""
        if not self._files:
            with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
                names = list(self._listed())
                found = dict(zip(names, threads.map(self._look, names), strict=True))
            damages = [file.damage for file in found.values() if file.damage]
            if len(damages) == len(found):
                raise UserError(f"{damages[0]}; nothing in it can be read")
            sound = [file for file in found.values() if not file.damage]
            kinds = {file.classes is None for file in sound}
            if len(kinds) > 1:
                raise UserError(
                    f"{self.path}: labels are integers in some of the files, strings in others"
                )
            if kinds == {False}:
                classes = pc.unique(pa.concat_arrays([file.classes for file in sound]))
                self._classes = classes.take(pc.sort_indices(classes))
            ends = accumulate((file.rows for file in found.values()), initial=0)
            self._first = dict(zip(found, ends, strict=False))
            self._files = found
        return self._files

    def _look(self, name: str) -> _File:
        path = self._path(name)
        try:
            file = ImageFile(path)
        except FooterError as error:
            damage = Damage(path, error.offset, str(error))
            return _File(0, [Part(name, 0, 0)], damage, None)
        parts, start, rows, size = [], 0, 0, 0
        for number, group in enumerate(file.groups):
            if rows and (rows + group.rows > _PART_ROWS or size + group.size > _PART_BYTES):
                parts.append(Part(name, start, number))
                start, rows, size = number, 0, 0
            rows, size = rows + group.rows, size + group.size
        parts.append(Part(name, start, len(file.groups)))
        return _File(file.rows, parts, None, _classes(file))


def _classes(file: ImageFile) -> pa.Array | None:
    """The labels of a file where they are strings, each once; what cannot be read is left out."""
    name = file.columns.label or file.columns.identity
    if name is None or file.is_number(name):
        return None
    found = pa.array([], pa.string())
    for number, group in enumerate(file.groups):
        if group.fault:
            continue
        try:
            for batch in file.batches(number, images=False):
                found = pc.unique(pa.concat_arrays([found, file.texts(batch, name)]))
        except FAILURES:
            continue
    return found.drop_null()


def _lost(name: str, offset: int) -> pa.Table:
    """The entry of what cannot be read at all."""
    place = f"{name}@{offset}"
    row = {"image_id": place, "identity": UNKNOWN, "label": -1, "source": place}
    return pa.Table.from_pylist([{**row, "rejected": "ingest:damaged"}], ENTRIES)


def list_files(path: str) -> dict[str, storage.FileInfo]:
    """A Parquet file, or those in a folder and in the folders inside it, by their names from there.

    They end in .parquet, or no file does: then they are those that begin like one.

    Raises:
        UserError: where there is none.
    """
    where, inner = storage.filesystem(path)
    info = where.get_file_info(inner)
    if info.is_file:
        return {
            info.base_name: storage.FileInfo(
                path=path, name=info.base_name, size=info.size, mtime_ns=info.mtime_ns or 0,
                is_file=True,
            )
        }  # fmt: skip
    found: dict[str, storage.FileInfo] = {}
    for entry in _visible(path):
        inside = [entry] if entry.is_file else [e for e in _visible(entry.path) if e.is_file]
        found |= {e.path[len(path.rstrip("/")) + 1 :]: e for e in inside}
    named = {name: entry for name, entry in found.items() if name.endswith(".parquet")}
    named = named or {n: e for n, e in found.items() if storage.read_bytes(e.path, 4) == MAGIC}
    if not named:
        raise UserError(f"{path}: no Parquet file in it")
    return dict(sorted(named.items()))


def _visible(path: str) -> list[storage.FileInfo]:
    return [entry for entry in storage.listdir(path) if entry.name[0] not in "._"]


class _Cursor:
    """Moves through the images of a row group, some megabytes of them in memory."""

    def __init__(self, file: ImageFile, number: int) -> None:
        self._file = file
        self._number = number
        self._rows: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._batches = self._file.batches(self._number, images=True, others=False, rows=self._rows)
        self._first, self._held = 0, pa.array([], pa.binary())

    def take(self, row: int) -> bytes | None:
        """The image of a row of the row group, None where it has none.

        Raises:
            FAILURES: where it is damaged.
        """
        if row < self._first:
            self._begin()
        while row >= self._first + len(self._held):
            try:
                batch = next(self._batches, None)
            except FAILURES:
                if self._rows == 1:
                    raise
                self._rows = 1  # once more, row by row up to the damage
                self._begin()
                continue
            if batch is None:
                raise ValueError("its row group breaks off before it")
            self._first += len(self._held)
            self._held = self._file.images(batch)
        return self._held[row - self._first].as_py()
