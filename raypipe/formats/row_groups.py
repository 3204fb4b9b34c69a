"""What the readers of Parquet have in common: files of row groups, read in parts or by row."""

import hashlib
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from typing import Any, Generic, NamedTuple, TypeVar

import pyarrow as pa

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import Damage, Record
from raypipe.formats.keyed import ENTRIES, UNKNOWN, KeyedReader, Part
from raypipe.formats.parquet_file import (
    MAGIC,
    Cursor,
    Fault,
    ParquetFile,
)
from raypipe.formats.parquet_footer import Group

_PART_ROWS, _PART_BYTES = 50_000, 256 * 10**6
_FILES_AT_ONCE = 16
NO_IMAGE = "no bytes of an image, which must be in the file and not beside it"
_FILES, _CURSORS = 8, 16  # held open; a cursor holds some 16 MB

_File = TypeVar("_File", bound=ParquetFile)


class Look(NamedTuple):
    """What a first look at a file told.

    Attributes:
        rows: how many it has.
        parts: its parts.
        damage: where its footer cannot be read.
        facts: what the reader noted, None where the footer is damaged.
    """

    rows: int
    parts: list[Part]
    damage: Damage | None
    facts: Any


class RowGroupsReader(KeyedReader, Generic[_File]):
    """Reads Parquet files; what a row is, its subclasses say."""

    def __init__(self, path: str, *, source: str, max_bytes: int) -> None:
        """See `raypipe.formats.open_reader`."""
        super().__init__(path, source=source, max_bytes=max_bytes)
        self._entries: dict[str, storage.FileInfo] = {}
        self._looks: dict[str, Look] = {}
        self._first: dict[str, int] = {}  # number of a file's first row in the set
        self._open: OrderedDict[str, _File] = OrderedDict()
        self._cursors: OrderedDict[tuple[str, int], Cursor] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_cursors": OrderedDict()}

    @abstractmethod
    def open_file(self, path: str) -> _File:
        """Opens a file of the set."""

    @abstractmethod
    def note(self, file: _File) -> Any:
        """What is to be known of every file before the first is read."""

    @abstractmethod
    def settle(self, notes: Sequence[Any]) -> None:
        """Makes what the notes on all sound files say together its own."""

    @abstractmethod
    def batch_entries(self, file: _File, name: str, batch: pa.RecordBatch, row: int) -> pa.Table:
        """`ENTRIES` of rows of a file, the first of which is `row` there."""

    @abstractmethod
    def batch_records(
        self, file: _File, name: str, batch: pa.RecordBatch, row: int, offset: int
    ) -> Iterator[Record | Damage]:
        """The records of rows of a file; `offset` is that of their row group in bytes."""

    @abstractmethod
    def place(self, source: str) -> tuple[str, int, int]:
        """File, row and image in it that a source names; (the text, -1, 0) where it names none."""

    @abstractmethod
    def image(self, file: _File, row: pa.RecordBatch, image: int) -> bytes | None:
        """The bytes of an image of a row, None where there are none."""

    def stamp(self) -> str:
        """See `KeyedReader`."""
        digest = hashlib.sha256()
        for name, entry in self._listed().items():
            digest.update(f"{name}\0{entry.size}\0{entry.mtime_ns}\0".encode())
        return digest.hexdigest()

    def parts(self) -> list[Part]:
        """See `KeyedReader`: ranges of row groups; (0, 0) of a file whose footer is damaged."""
        return [part for look in self._look_at_all().values() for part in look.parts]

    def entries(self, part: Part) -> pa.Table:
        """See `KeyedReader`. The source of what is lost is FILE@BYTE."""
        look, tables = self._look_at_all()[part.path], [ENTRIES.empty_table()]
        if look.damage:
            tables.append(_lost(part.path, look.damage.offset))
        for number in range(part.start, part.stop):
            tables += self._group_entries(part.path, number)
        return pa.concat_tables(tables)

    def part_records(self, part: Part) -> Iterator[Record | Damage]:
        """See `KeyedReader`. After a damaged page the rest of its row group is lost."""
        look = self._look_at_all()[part.path]
        if look.damage:
            yield look.damage
        for number in range(part.start, part.stop):
            yield from self._group_records(part.path, number)

    def fetch(self, sources: Sequence[str]) -> list[bytes | Damage]:
        """See `KeyedReader`."""
        found: list[bytes | Damage] = []
        for name, row, image in map(self.place, sources):
            got = self.row(name, row)
            if not isinstance(got, Damage):
                data = self.image(self._file(name), got, image)
                got = self._missing(name, row) if data is None else data
            found.append(got)
        return found

    def row(self, name: str, row: int) -> pa.RecordBatch | Damage:
        """A row of a file of the set, its images and nothing else.

        Raises:
            UserError: where there is no such row.
        """
        if name not in self._listed():
            raise UserError(f"{self.path}: no file {name!r} is part of this set")
        try:
            file = self._file(name)
        except Fault as fault:
            return Damage(self._path(name), fault.offset, str(fault))
        number = file.group_of(row)
        if number is None:
            raise UserError(f"{file.path}: it has no row {row:,}; was the set changed?")
        try:
            return self._cursor(name, number).take(row - file.groups[number].first)
        except Fault as fault:
            return Damage(file.path, fault.offset, f"row {row}: {fault}")

    def _missing(self, name: str, row: int) -> Damage:
        file = self._file(name)
        number = file.group_of(row)
        assert number is not None
        return Damage(file.path, file.groups[number].offset, f"row {row}: {NO_IMAGE}")

    def _group_entries(self, name: str, number: int) -> Iterator[pa.Table]:
        file = self._file(name)
        group = file.groups[number]
        try:
            for start, batch in file.intact(number, images=group.nulls):
                yield self.batch_entries(file, name, batch, group.first + start)
        except Fault as fault:
            yield _lost(name, fault.offset)

    def _group_records(self, name: str, number: int) -> Iterator[Record | Damage]:
        file = self._file(name)
        group, done = file.groups[number], 0
        try:
            for start, batch in file.intact(number, images=True):
                row = group.first + start
                yield from self.batch_records(file, name, batch, row, group.offset)
                done = start + len(batch)
        except Fault as fault:
            lost = f"rows {group.first + done} to {group.first + group.rows - 1}"
            if not group.rows:  # they could not be counted
                lost = f"row group {number}"
            yield Damage(file.path, fault.offset, f"{lost}: {fault}")

    def _cursor(self, name: str, number: int) -> Cursor:
        key = (name, number)
        if key not in self._cursors:
            file = self._file(name)
            self._cursors[key] = Cursor(
                lambda rows: file.batches(number, images=True, others=False, rows=rows)
            )
            if len(self._cursors) > _CURSORS:
                self._cursors.popitem(last=False)
        self._cursors.move_to_end(key)
        return self._cursors[key]

    def _file(self, name: str) -> _File:
        if name not in self._open:
            self._open[name] = self.open_file(self._path(name))
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

    def _look_at_all(self) -> dict[str, Look]:
        if not self._looks:
            with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
                names = list(self._listed())
                found = dict(zip(names, threads.map(self._look, names), strict=True))
            damages = [look.damage for look in found.values() if look.damage]
            if len(damages) == len(found):
                raise UserError(f"{damages[0]}; nothing in it can be read")
            self.settle([look.facts for look in found.values() if not look.damage])
            ends = accumulate((look.rows for look in found.values()), initial=0)
            self._first = dict(zip(found, ends, strict=False))
            self._looks = {name: look._replace(facts=None) for name, look in found.items()}
        return self._looks

    def _look(self, name: str) -> Look:
        path = self._path(name)
        try:
            file = self.open_file(path)
        except Fault as fault:
            return Look(0, [Part(name, 0, 0)], Damage(path, fault.offset, str(fault)), None)
        return Look(file.rows, _parts(name, file.groups), None, self.note(file))


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


def _parts(name: str, groups: Sequence[Group]) -> list[Part]:
    parts, start, rows, size = [], 0, 0, 0
    for number, group in enumerate(groups):
        if rows and (rows + group.rows > _PART_ROWS or size + group.size > _PART_BYTES):
            parts.append(Part(name, start, number))
            start, rows, size = number, 0, 0
        rows, size = rows + group.rows, size + group.size
    return [*parts, Part(name, start, len(groups))]


def _lost(name: str, offset: int) -> pa.Table:
    """The entry of what cannot be read at all."""
    place = f"{name}@{offset}"
    row = {"image_id": place, "identity": UNKNOWN, "label": -1, "source": place}
    return pa.Table.from_pylist([{**row, "rejected": "ingest:damaged"}], ENTRIES)
