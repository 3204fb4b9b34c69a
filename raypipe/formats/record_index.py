"""The text files beside a `.rec`: where its records are (.idx), and the images' names (.lst)."""

from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv, fs

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats.record_chunks import MAX_LABEL, Fault, Span

PART_RECORDS = 50_000
_HEAD = 1 << 16


class Stamped(NamedTuple):
    """A file as it stands, by which what was read of it is remembered."""

    path: str
    size: int
    mtime_ns: int


class Index(NamedTuple):
    """Keys and places of records, places rising.

    Attributes:
        keys: int64 (records,).
        offsets: int64 (records,), bytes from the beginning of the .rec.
    """

    keys: np.ndarray
    offsets: np.ndarray


def stamped(path: str) -> Stamped | None:
    """A file's size and time, None where there is no file."""
    where, inner = storage.filesystem(path)
    info = where.get_file_info(inner)
    if info.type != fs.FileType.File:
        return None
    return Stamped(path, info.size, info.mtime_ns or 0)


@lru_cache(maxsize=2)
def read_index(file: Stamped) -> Index:
    """Reads an .idx: a line a record, `key TAB offset`, in any order. 16 bytes a record are held.

    Raises:
        UserError: for a line that is something else, and a key or an offset that comes twice.
    """
    if not file.size:
        return Index(np.zeros(0, np.int64), np.zeros(0, np.int64))
    columns = array("q"), array("q")
    for batch in _batches(file, {"key": pa.int64(), "offset": pa.int64()}):
        for column, values in zip(columns, batch.columns, strict=True):
            found = values.to_numpy()
            for row in np.flatnonzero(found < 0)[:1]:
                raise _bad(file, f"row #{len(column) + row + 1}: a negative number")
            column.frombytes(found.tobytes())
    keys, offsets = (np.frombuffer(column, np.int64) for column in columns)
    _check_unique(file, "key", keys)
    if not _check_unique(file, "offset", offsets):
        order = np.argsort(offsets)
        keys, offsets = keys[order], offsets[order]
    return Index(keys, offsets)


@lru_cache(maxsize=2)
def read_names(file: Stamped) -> dict[int, str]:
    """Reads from a .lst who each label is: the folder its images lie in.

    A line is `index TAB label [TAB label...] TAB path` (im2rec) or `flag TAB path TAB label
    [TAB ...]` (InsightFace's older lists). Where two labels share a folder's name, or an image
    lies in no folder, folders are no people, and nothing is returned.

    Raises:
        UserError: for a line that is neither.
    """
    if not file.size:
        return {}
    head = storage.read_bytes(file.path, _HEAD).partition(b"\n")[0].rstrip(b"\r").split(b"\t")
    if len(head) < 3:
        raise _bad(file, "row #1: not three columns, `index TAB label TAB path`")
    label, path = (1, len(head) - 1) if _is_number(head[1]) else (2, 1)
    types = {str(i): pa.binary() for i in range(len(head))}
    types[str(label)] = pa.float64()
    names: dict[int, str] = {}
    known = np.zeros(MAX_LABEL + 1, bool)
    for batch in _batches(file, types, [str(label), str(path)]):
        labels = batch.column(0).to_numpy()
        if not np.all((labels >= 0) & (labels <= MAX_LABEL) & (labels == np.floor(labels))):
            raise _bad(file, f"a label that is no whole number from 0 to {MAX_LABEL:,}")
        labels = labels.astype(np.int64)
        new = np.flatnonzero(~known[labels])
        found, first = np.unique(labels[new], return_index=True)
        known[found] = True
        paths = batch.column(1).take(pa.array(new[first])).to_pylist()
        for value, where in zip(found.tolist(), paths, strict=True):
            names[value] = _folder(where)
    if "" in names.values() or len(set(names.values())) < len(names):
        return {}
    return names


class Names:
    """Who each label is: by the .lst, else the label in digits, unless that is somebody's name."""

    def __init__(self, file: Stamped | None) -> None:
        self._names = {} if file is None else read_names(file)
        self._taken = set(self._names.values())

    def __getitem__(self, label: int) -> str:
        name = self._names.get(label)
        if name is None:
            name = str(label)
            while name in self._taken:
                name += "'"
        return name


class Keys:
    """The keys of the records of a part, which are met in order: by the .idx, or counted.

    Attributes:
        listed: int64, where the index says that records begin, up to the first after the part.
    """

    def __init__(self, name: str, index: Index | None, start: int, stop: int, number: int) -> None:
        """The keys of the records that begin in [start, stop).

        Args:
            name: of the index, for a person.
            index: None for records that are counted.
            start: offset in bytes.
            stop: offset in bytes.
            number: of the first record, where they are counted.
        """
        self._name = name
        self._counted = index is None
        self._at = number
        self._keys = self.listed = np.zeros(0, np.int64)
        if index is not None:
            first, last = np.searchsorted(index.offsets, [start, stop])
            self._keys = index.keys[first:last]
            self.listed = index.offsets[first : last + 1]
            self._at = 0

    def take(self, offsets: np.ndarray) -> np.ndarray:
        """The keys of the next records, as far as they are where the index lists them.

        Args:
            offsets: int64 (records,), where they begin.

        Returns:
            int64 (n,), n up to the number of records.
        """
        at = self._at
        if self._counted:
            self._at += len(offsets)
            return np.arange(at, self._at)
        listed = self.listed[at : at + len(offsets)]
        differ = np.flatnonzero(listed != offsets[: len(listed)])
        count = min(int(differ[0]) if len(differ) else len(listed), len(self._keys) - at)
        self._at += count
        return self._keys[at : at + count]

    def meet(self, item: Span | Fault) -> Iterator[tuple[int, Span | Fault]]:
        """The key of what was come across, after what should have come before; -1 for none."""
        if self._counted:
            self._at += 1
            yield self._at - 1, item
            return
        yield from self.rest(item.offset)
        at = self._at
        if at < len(self._keys) and self.listed[at] == item.offset:
            self._at += 1
            yield int(self._keys[at]), item
        elif isinstance(item, Fault):
            yield -1, item
        else:
            yield -1, Fault(item.offset, f"a record that {self._name} does not list")

    def rest(self, stop: int | None = None) -> Iterator[tuple[int, Fault]]:
        """What is listed, up to an offset, and was not come across."""
        for at in range(self._at, len(self._keys)):
            offset, key = int(self.listed[at]), int(self._keys[at])
            if stop is not None and offset >= stop:
                break
            self._at += 1
            yield key, Fault(offset, f"no record begins where {self._name} has key {key}")


def cuts(offsets: np.ndarray, size: int, part_bytes: int) -> list[int]:
    """Where to cut a file into parts: at 0, and at places an index lists.

    Args:
        offsets: int64 (records,), rising.
        size: of the file in bytes.
        part_bytes: of a part at most, unless a record is larger; it has 50,000 records at most.
    """
    offsets = offsets[(offsets > 0) & (offsets < size) & (offsets % 4 == 0)]
    found = [0]
    while True:
        first, beyond = np.searchsorted(
            offsets, [found[-1], found[-1] + part_bytes], side="right"
        ).tolist()
        place = max(first, min(beyond, first + PART_RECORDS) - 1)
        fits = size <= found[-1] + part_bytes and len(offsets) - first < PART_RECORDS
        if fits or place >= len(offsets):
            return found
        found.append(int(offsets[place]))


def _folder(path: bytes) -> str:
    parts = path.decode("utf-8", "backslashreplace").replace("\\", "/").split("/")
    return parts[-2] if len(parts) > 1 else ""


def _is_number(text: bytes) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _batches(file: Stamped, types: dict[str, Any], wanted: list[str] | None = None) -> Any:
    """The rows of a text file with tabs, some at a time."""
    where, inner = storage.filesystem(file.path)
    try:
        with where.open_input_stream(inner, compression=None) as stream:
            yield from csv.open_csv(
                stream,
                # With threads, errors do not name the row.
                csv.ReadOptions(column_names=list(types), use_threads=False),
                csv.ParseOptions(delimiter="\t", quote_char=False),
                csv.ConvertOptions(column_types=types, null_values=[], include_columns=wanted),
            )
    except (OSError, pa.ArrowException) as error:
        raise _bad(file, str(error)) from error


def _check_unique(file: Stamped, what: str, values: np.ndarray) -> bool:
    """Refuses what comes twice; whether the values rise."""
    if np.all(values[1:] > values[:-1]):
        return True
    ordered = np.sort(values)
    for place in np.flatnonzero(ordered[1:] == ordered[:-1])[:1]:
        raise _bad(file, f"{what} {ordered[place]} is in it twice")
    return False


def _bad(file: Stamped, what: str) -> UserError:
    return UserError(
        f"{file.path}: {what}; repair the file, or delete it: the .rec can be read without"
    )
