"""LMDB of faces as HSFace is published, and Vec2Face's training LMDB, which has features too.

One file; keys are b"0", b"1", ... without padding, so the file's own order is 0, 1, 10, 100, ...
Records come in the order of their numbers, which is that of the values in the file. `__len__` says
how many there are; `__keys__`, which lists every key, is written for others and never read.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import Damage, Record, Survey
from raypipe.formats.keyed import ENTRIES, UNKNOWN, KeyedReader, Part
from raypipe.formats.lmdb_pages import FAULTS, LOST, MISSING, Pages
from raypipe.formats.lmdb_values import HEAD, Values, integer, parse, read_mask, vector

_FAULTS = (
    *FAULTS,
    "has bytes that another record has too",
    "is not msgpack of [image, label] or [image, feature, label]",
    "has a feature that is not a .npy file of one float32 vector",
)
_SHARED, _LAYOUT, _FEATURE = range(len(FAULTS), len(FAULTS) + 3)
_SPECIAL = (b"__keys__", b"__len__", b"__classnum__")
_LEAST = 16  # bytes of the smallest record: a pointer, a node, a key and a value
_PART_RECORDS, _PART_BYTES = 50_000, 256 * 2**20
_BATCH = _PART_RECORDS  # records looked up at a time
_DESCENTS = 8192  # keys sought in the tree at a time
_LEAVES = 64  # pages parsed at a time
_WINDOW, _WINDOW_RECORDS = 4 * 2**20, 4096  # bytes of values read at a time, and values
_GAP = 64 * 1024  # a value larger than this is not read for its label
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}")


class _Window(NamedTuple):
    """Some records: `at` is where each, or its fault, is in the file; a fault is -1 or in _FAULTS.

    `values` has offsets in `data`.
    """

    numbers: np.ndarray
    at: np.ndarray
    fault: np.ndarray
    values: Values
    data: bytes


class LmdbReader(KeyedReader):
    """Reads a face LMDB, all of it or the records that a mask names."""

    def __init__(self, path: str, *, source: str, max_bytes: int, mask: str | None = None) -> None:
        """See `raypipe.formats.open_reader`."""
        super().__init__(path, source=source, max_bytes=max_bytes)
        self._mask = mask
        self._name = path.rpartition("/")[2]
        self._pages = Pages(path)
        self._count: int | None = None
        self._chosen: np.ndarray | None = None  # the mask
        self._classes: np.ndarray | None = None  # labels under the mask, rising

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_chosen": None}

    def stamp(self) -> str:
        """See `KeyedReader`."""
        where, inner = storage.filesystem(self.path)
        info = where.get_file_info(inner)
        return f"{self._name} {info.size} {info.mtime_ns}"

    def parts(self) -> list[Part]:
        """See `KeyedReader`: ranges of numbers, with a mask of places in it."""
        chosen = self._indices()
        count = self._records_in_file() if chosen is None else len(chosen)
        each = self._pages.blob.size // max(1, self._records_in_file())
        step = max(1, min(_PART_RECORDS, _PART_BYTES // max(1, each)))
        starts = range(0, max(1, count), step)
        return [Part(self.path, start, min(count, start + step)) for start in starts]

    def survey(self) -> Survey:
        """See `raypipe.formats.Reader`. Labels are those that `records` gives."""
        found = super().survey()
        if self._mask is None:
            return found
        self._classes = found.labels
        return found._replace(labels=np.arange(len(found.labels)))

    def entries(self, part: Part) -> pa.Table:
        """See `KeyedReader`. Labels are the file's own also under a mask.

        To make them dense takes a look at all of them, which each worker would take. `survey` and
        `records` give dense ones; `identity` has the file's own in either case.
        """
        tables = [ENTRIES.empty_table()]
        for window in self._windows(self._numbers(part), images=False):
            rejected = pa.array(window.fault >= 0)
            label, values = pa.array(window.values.label), window.values
            number = pc.cast(pa.array(window.numbers), pa.string())
            place = pc.if_else(rejected, pc.cast(pa.array(window.at), pa.string()), number)
            columns = [
                number,
                pc.if_else(rejected, UNKNOWN, pc.cast(label, pa.string())),
                pc.if_else(rejected, 0, label),
                pc.binary_join_element_wise(self._name, place, "@"),
                pc.if_else(rejected, None, pa.array(values.size)),
                pc.if_else(rejected, "ingest:damaged", pa.scalar(None, pa.string())),
            ]
            tables.append(pa.Table.from_arrays(columns, schema=ENTRIES))
        return pa.concat_tables(tables)

    def part_records(self, part: Part) -> Iterator[Record | Damage]:
        """See `KeyedReader`."""
        lost = self._lost() if part.start == 0 else iter(())
        # No generator here, where each record would pass through it; and none to hold a window
        # until the next is read: the memory of one that is gone is used again, twice as fast.
        windows = self._windows(self._numbers(part), images=True)
        return chain(lost, chain.from_iterable(map(self._records, windows)))

    def fetch(self, sources: Sequence[str]) -> list[bytes | Damage]:
        """See `KeyedReader`."""
        found: dict[str, bytes | Damage] = {}
        numbers = set()
        for source in sources:
            name, _, number = source.rpartition("@")
            if name == self._name and _NUMBER.fullmatch(number):
                numbers.add(int(number))
            else:
                found[source] = Damage(self.path, 0, f"{source!r} is no place in this file")
        for window in self._windows(np.array(sorted(numbers), np.int64), images=True):
            starts, stops = window.values.image, window.values.image + window.values.size
            rows = zip(window.numbers, window.fault, starts.tolist(), stops.tolist(), strict=True)
            for i, (number, fault, start, stop) in enumerate(rows):
                image = window.data[start:stop] if fault < 0 else self._damage(window, i)
                found[f"{self._name}@{number}"] = image
        return [found[source] for source in sources]

    def _lost(self) -> Iterator[Damage]:
        """Damage to what is no record. A file that was cut off loses the list of keys first."""
        if (offset := self._pages.lost_root) is not None:
            what = "the root of the last commit is lost; what the commit before it holds is read"
            yield Damage(self.path, offset, what)
        for key in _SPECIAL:
            offset, size = self._pages.lookup(key)
            if size < 0 and size != ~MISSING:
                yield Damage(self.path, offset, f"{key.decode()} {_FAULTS[~size]}")

    def _records_in_file(self) -> int:
        if self._count is None:
            pages = self._pages
            at, size = pages.lookup(b"__len__")
            count = integer(pages.blob.read(at, size)) if 0 <= size <= HEAD else None
            if count is None:
                others = sum(pages.lookup(key)[1] != ~MISSING for key in _SPECIAL)
                count = max(0, pages.entries - others)
            if count > pages.blob.size // _LEAST:
                raise UserError(
                    f"{self.path}: says that it holds {count:,} records, which do not fit into its "
                    f"{pages.blob.size:,} bytes; it is damaged or cut off"
                )
            if count and size == ~MISSING and pages.lookup(b"0")[1] == ~MISSING:
                raise UserError(
                    f"{self.path}: an LMDB file, but no face set: it has neither the key __len__ "
                    "nor the key 0"
                )
            self._count = count
        return self._count

    def _indices(self) -> np.ndarray | None:
        """What the mask names, int64."""
        if self._mask is not None and self._chosen is None:
            self._chosen = read_mask(self._mask, self._records_in_file())
        return self._chosen

    def _numbers(self, part: Part) -> np.ndarray:
        chosen = self._indices()
        return (
            np.arange(part.start, part.stop) if chosen is None else chosen[part.start : part.stop]
        )

    def _dense(self, labels: np.ndarray) -> np.ndarray:
        if self._mask is None:
            return labels
        if self._classes is None:
            self._classes = super().survey().labels
        return np.searchsorted(self._classes, labels)

    def _damage(self, window: _Window, i: int) -> Damage:
        what = f"record {window.numbers[i]} {_FAULTS[window.fault[i]]}"
        return Damage(self.path, int(window.at[i]), what)

    def _records(self, window: _Window) -> Iterator[Record | Damage]:
        values, data = window.values, window.data
        if values.feature_size.any() or (window.fault >= 0).any():
            return self._mixed(window)
        # No line of Python for each record: it would take as long as to read it.
        starts, stops = values.image.tolist(), (values.image + values.size).tolist()
        images = map(data.__getitem__, map(slice, starts, stops))
        labels, numbers = self._dense(values.label).tolist(), window.numbers.tolist()
        runs = np.flatnonzero(np.diff(values.label, prepend=-1))
        people = np.array(list(map(str, values.label[runs].tolist())), object)
        names = people.repeat(np.diff(runs, append=len(values.label))).tolist()
        rows = zip(images, labels, names, map(str, numbers), repeat(None))
        return map(tuple.__new__, repeat(Record), rows)

    def _mixed(self, window: _Window) -> Iterator[Record | Damage]:
        """The records of a window with features or damage."""
        numbers, _, fault, values, data = window
        labels = self._dense(values.label).tolist()
        for i, label in enumerate(labels):
            feature = None
            if fault[i] < 0 and values.feature_size[i]:
                start = values.feature[i]
                feature = vector(data[start : start + values.feature_size[i]])
                if feature is None:
                    fault[i] = _FEATURE
            if fault[i] >= 0:
                yield self._damage(window, i)
                continue
            image = data[values.image[i] : values.image[i] + values.size[i]]
            yield Record(image, label, str(values.label[i]), str(numbers[i]), feature)

    def _windows(self, numbers: np.ndarray, *, images: bool) -> Iterator[_Window]:
        """The records of some numbers in their order, without `data` where no images are wanted."""
        for begin in range(0, len(numbers), _BATCH):
            some = numbers[begin : begin + _BATCH]
            at, size = self._places(some)
            ends = np.cumsum(np.maximum(size, 0))
            first = 0
            while first < len(some):
                limit = _WINDOW + (ends[first - 1] if first else 0)
                last = max(first + 1, int(np.searchsorted(ends, limit, "right")))
                last = min(last, first + _WINDOW_RECORDS)
                yield self._window(some[first:last], at[first:last], size[first:last], images)
                first = last

    def _window(
        self, numbers: np.ndarray, at: np.ndarray, size: np.ndarray, images: bool
    ) -> _Window:
        fault = np.where(size < 0, ~size, -1)
        length = np.maximum(size, 0)
        blob = self._pages.blob
        if images or length.sum() <= _GAP * len(numbers):
            data, place = self._load(at, length)
            # Row i is the HEAD bytes from byte i on, for all bytes but the last.
            rows = np.ndarray((len(data) - HEAD, HEAD), np.uint8, data, strides=(1, 1))

            def gather(offsets: np.ndarray) -> np.ndarray:
                return rows[offsets]

        else:
            data, place = b"", at

            def gather(offsets: np.ndarray) -> np.ndarray:
                found = blob.read_many([(offset, HEAD) for offset in offsets.tolist()])
                heads = b"".join(head.ljust(HEAD, b"\0") for head in found)
                return np.frombuffer(heads, np.uint8).reshape(-1, HEAD)

        values = parse(gather, place, length)
        fault = np.where((fault < 0) & ~values.sound, _LAYOUT, fault)
        return _Window(numbers, at, fault, values, data)

    def _load(self, at: np.ndarray, size: np.ndarray) -> tuple[bytes, np.ndarray]:
        """Values in one piece of bytes, with more than HEAD bytes behind; where each begins."""
        there = size > 0
        if not there.any():
            return bytes(HEAD + 1), np.zeros_like(at)
        start, stop, total = at[there].min(), (at + size)[there].max(), size.sum()
        blob = self._pages.blob
        if stop - start <= 2 * total + _GAP:  # side by side, as they were written
            total = stop - start
            data, place = blob.read(int(start), int(total) + HEAD + 1), at - start
        else:
            data = b"".join(blob.read_many(list(zip(at.tolist(), size.tolist(), strict=True))))
            place = np.cumsum(size) - size
        if len(data) < total:
            raise UserError(f"{self.path}: has become shorter while it was read")
        if len(data) <= total + HEAD:
            data += bytes(HEAD + 1)
        return data, np.where(there, place, 0)

    def _places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Byte offset and size of the values, int64; a size below 0 is ~index into _FAULTS."""
        order = np.argsort(numbers, kind="stable")
        rising = numbers[order]
        at, size = np.zeros_like(rising), np.full_like(rising, ~MISSING)
        # Of one length, numbers and their keys have one order. Shorter keys lie between longer
        # ones, so that most are on pages that have been read when their turn comes.
        lengths = range(len(str(rising[-1])), len(str(rising[0])) - 1, -1)
        for digits in lengths:
            start, stop = np.searchsorted(rising, [10 ** (digits - 1) * (digits > 1), 10**digits])
            missing = start + np.flatnonzero(size[start:stop] == ~MISSING)
            for begin in range(0, len(missing), _DESCENTS):
                todo = missing[begin : begin + _DESCENTS]
                leaves = self._pages.leaves(rising[todo].tolist(), b"%d".__mod__)
                for leaf in leaves:
                    rows = todo[leaf.start : leaf.stop]
                    at[rows] = leaf.number * self._pages.meta.page_size
                    if not leaf.found:
                        size[rows] = ~LOST
                pages = sorted({leaf.number for leaf in leaves if leaf.found})
                for first in range(0, len(pages), _LEAVES):
                    self._fill(pages[first : first + _LEAVES], lengths, rising, at, size)
        # A file in which one value stands for many would be read without end.
        there = np.flatnonzero(size > 0)
        there = there[np.argsort(at[there], kind="stable")]
        ends = np.maximum.accumulate((at + size)[there])
        size[there[1:][at[there[1:]] < ends[:-1]]] = ~_SHARED
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return at[back], size[back]

    def _fill(
        self,
        leaves: Sequence[int],
        lengths: range,
        rising: np.ndarray,
        at: np.ndarray,
        size: np.ndarray,
    ) -> None:
        """Fills in what leaf pages have of rising numbers, whose digits are of some lengths."""
        nodes = self._pages.nodes(leaves)
        if not nodes.whole.all():
            bad = np.array(leaves)[~nodes.whole] * self._pages.meta.page_size
            size[np.isin(at, bad) & (size == ~MISSING)] = ~LOST
        bytes_of = np.frombuffer(nodes.data, np.uint8)
        for digits in lengths:
            rows = np.flatnonzero(nodes.key_size == digits)
            text = bytes_of[nodes.key[rows, None] + np.arange(digits)].astype(np.int64) - ord("0")
            number = text @ 10 ** np.arange(digits)[::-1]
            place = np.searchsorted(rising, number) % len(rising)
            known = (rising[place] == number) & ((text >= 0) & (text <= 9)).all(1)
            known &= (text[:, 0] > 0) | (digits == 1)
            at[place[known]], size[place[known]] = nodes.at[rows[known]], nodes.size[rows[known]]
