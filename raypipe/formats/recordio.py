"""MXNet RecordIO: a `.rec`, with an `.idx` and a `.lst` of the same name where it has them.

Both layouts are read: that of InsightFace, whose first record and one record an identity hold
ranges of keys and no image, and that of im2rec, where every record is an image. What has no image
and two labels is taken for a range wherever it stands, so no number in a file is relied on: in
float32 that of InsightFace's first record is rounded beyond 2**24 images.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, repeat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import Damage, Record
from raypipe.formats.blob import Blob
from raypipe.formats.keyed import ENTRIES, UNKNOWN, KeyedReader, Part
from raypipe.formats.record_chunks import (
    PAIR,
    PEEK,
    Fault,
    Span,
    decode,
    parse_head,
)
from raypipe.formats.record_index import (
    PART_RECORDS,
    Index,
    Keys,
    Names,
    cuts,
    read_index,
    stamped,
)
from raypipe.formats.record_scan import Run, Scanner
from raypipe.formats.record_walk import PAGE, Walker

PART_BYTES = 128 * 2**20
_BLOCK = 2 * 2**20  # read at once where images are wanted
_REMOTE = 4 * 2**20  # a request costs more than these bytes
_LARGE = 2**16
_SOURCE = re.compile(r"(.*)@(\d{1,18})\+(\d{1,18})")


class RecordReader(KeyedReader):
    """Reads a `.rec`. With an `.idx` its keys are the image ids, else the records are numbered."""

    def __init__(
        self, path: str, *, source: str, max_bytes: int, part_bytes: int = PART_BYTES
    ) -> None:
        """See `raypipe.formats.open_reader`.

        Args:
            path: of the `.rec`.
            source: name the identities carry.
            max_bytes: a larger image is rejected unread.
            part_bytes: how much of the file is listed at a time, at most where records are small.
        """
        super().__init__(path, source=source, max_bytes=max_bytes)
        self._part_bytes = part_bytes
        self._blob = Blob(path)
        self._name = path.rstrip("/").rpartition("/")[2]
        self._stem = path.removesuffix(".rec")
        self._numbers: dict[int, int] = {}  # of a part's first record, where there is no .idx

    def stamp(self) -> str:
        """See `KeyedReader`."""
        folder = self.path.rpartition("/")[0] or "."
        paths = [self.path, *(self._stem + end for end in (".idx", ".lst"))]
        found = [stamped(path) for path in [*paths, storage.join(folder, "property")]]
        return "\n".join(f"{file and file[1:]}" for file in found) + self._name

    def parts(self) -> list[Part]:
        """Byte ranges; a record belongs to where it begins. Without .idx they are counted first."""
        index = self._index()
        size = self._blob.size
        starts = self._count() if index is None else cuts(index.offsets, size, self._part_bytes)
        return [Part(self.path, *ends) for ends in pairwise([*starts, size])]

    def sequence(self) -> list[Part]:
        """See `KeyedReader`. Read in one go, records are counted on the way."""
        return self.parts() if self._index() else [Part(self.path, 0, self._blob.size)]

    def entries(self, part: Part) -> pa.Table:
        """See `KeyedReader`. Only headers are read where a request costs less than the images."""
        keys = self._keys(part)
        rows = _Rows()
        for piece in self._pieces(part, keys, self._walker(part, keys)):
            if isinstance(piece, Run):
                rows.extend(piece)
            else:
                rows.add(*piece)
        return rows.table(self._name, self._names())

    def part_records(self, part: Part) -> Iterator[Record | Damage]:
        """See `KeyedReader`."""
        names, keys = self._names(), self._keys(part)
        walker = Walker(self._blob, part.start, part.stop, block=_BLOCK, listed=keys.listed)
        for piece in self._pieces(part, keys, walker):
            if isinstance(piece, Run):
                yield from _many(piece, names)
                continue
            key, found = piece
            if isinstance(found, Fault):
                yield Damage(self.path, *found)
            elif found.head.label is not None:
                record = decode(walker.window.get(found.offset, found.end - found.offset))
                if record is None:
                    yield Damage(self.path, found.offset, "the file has changed meanwhile")
                    continue
                label = found.head.label
                yield Record(record[found.head.begin :], label, names[label], str(key))

    def _pieces(
        self, part: Part, keys: Keys, walker: Walker
    ) -> Iterator[Run | tuple[int, Span | Fault]]:
        """The records of a part, many or one at a time, and its faults; -1 for want of a key."""
        scanner = Scanner(walker, keys, part.stop)
        while walker.at < part.stop:
            run = scanner.run() if walker.block > PAGE else None
            if run is not None:
                yield run
            else:
                for item in walker.step():
                    yield from keys.meet(item)
        yield from keys.rest()

    def fetch(self, sources: Sequence[str]) -> list[bytes | Damage]:
        """See `KeyedReader`."""
        places = [self._place(source) for source in sources]
        found: list[bytes | Damage] = []
        for (offset, _), data in zip(places, self._blob.read_many(places), strict=True):
            record = decode(data)
            if record is None:
                found.append(Damage(self.path, offset, "no whole record"))
                continue
            head = parse_head(record[: PEEK - PAIR.size], len(record))
            if isinstance(head, str):
                found.append(Damage(self.path, offset, head))
            else:
                found.append(record[head.begin :])
        return found

    def _place(self, source: str) -> tuple[int, int]:
        match = _SOURCE.fullmatch(source)
        if match is None or match[1] != self._name:
            raise UserError(f"{self.path}: {source} is no place in it")
        return int(match[2]), int(match[3])

    def _index(self) -> Index | None:
        file = stamped(f"{self._stem}.idx")
        return None if file is None else read_index(file)

    def _names(self) -> Names:
        return Names(stamped(f"{self._stem}.lst"))

    def _keys(self, part: Part) -> Keys:
        index = self._index()
        if index is None and part.start and part.start not in self._numbers:
            self._count()
        stop = part.stop if part.stop < self._blob.size else 2**62  # beyond the end listed as well
        number = self._numbers.get(part.start, 0)
        return Keys(f"{self._stem}.idx", index, part.start, stop, number)

    def _walker(self, part: Part, keys: Keys) -> Walker:
        """A walker that is after headers.

        Below 64 KB a record it is quicker to read everything than to skip the images; so is it on
        an object store, where a request costs as much as megabytes.
        """
        local = isinstance(storage.filesystem(self.path)[0], fs.LocalFileSystem)
        large = part.stop - part.start > _LARGE * len(keys.listed) > 0
        block = _REMOTE if not local else PAGE if large else _BLOCK
        return Walker(self._blob, part.start, part.stop, block=block, listed=keys.listed)

    def _count(self) -> list[int]:
        """Where parts begin in a file without .idx; also counts the records before each."""
        size = self._blob.size
        whole = Part(self.path, 0, size)
        keys = Keys("", None, 0, size, 0)
        self._numbers = {0: 0}
        start = first = 0
        for piece in self._pieces(whole, keys, self._walker(whole, keys)):
            if isinstance(piece, Run):
                found = [*zip(piece.offsets.tolist(), piece.keys.tolist(), strict=True)]
            elif isinstance(piece[1], Span):
                found = [(piece[1].offset, piece[0])]
            else:
                continue
            for offset, number in found:
                if offset - start >= self._part_bytes or number - first >= PART_RECORDS:
                    start, first = offset, number
                    self._numbers[start] = number
        return list(self._numbers)


def _many(run: Run, names: Names) -> Iterator[Record]:
    """The records of a run, by iterators in C: 310 ns a record, against 400 in a loop."""
    kept = run.labels >= 0
    labels = run.labels[kept].tolist()
    people = {label: names[label] for label in set(labels)}
    places = map(slice, run.begins[kept].tolist(), run.stops[kept].tolist())
    rows = zip(
        map(run.data.__getitem__, places),
        labels,
        map(people.__getitem__, labels),
        map(str, run.keys[kept].tolist()),
        repeat(None),
    )
    return map(partial(tuple.__new__, Record), rows)  # what Record._make does


class _Rows:
    """Entries in the making: 40 bytes a record."""

    def __init__(self) -> None:
        # key and label are -1 where there is none, and end and size are then of no meaning.
        self._columns = [array("q") for _ in ("key", "label", "offset", "end", "size")]

    def add(self, key: int, found: Span | Fault) -> None:
        """Adds one record or fault."""
        if isinstance(found, Fault):
            row = (key, -1, found.offset, 0, 0)
        elif found.head.label is None:
            return
        else:
            size = found.size - found.head.begin
            row = (key, found.head.label, found.offset, found.end, size)
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)

    def extend(self, run: Run) -> None:
        """Adds a run of records."""
        kept = run.labels >= 0
        sizes = run.stops - run.begins
        values = (run.keys, run.labels, run.offsets, run.ends, sizes)
        for column, some in zip(self._columns, values, strict=True):
            column.frombytes(some[kept].tobytes())

    def table(self, name: str, names: Names) -> pa.Table:
        """The entries, of a file and with the names of its labels."""
        keys, labels, offsets, ends, sizes = (np.frombuffer(c, np.int64) for c in self._columns)
        bad = pa.array(labels < 0)
        values, codes = np.unique(labels, return_inverse=True)
        people = pa.array([UNKNOWN if value < 0 else names[value] for value in values.tolist()])
        at = _joined(f"{name}@", offsets)
        columns = [
            pc.if_else(pa.array(keys < 0), _joined("@", offsets), _joined("", keys)),
            people.cast(pa.string()).take(pa.array(codes)),
            pa.array(labels, mask=labels < 0),
            pc.if_else(bad, at, pc.binary_join_element_wise(at, _joined("", ends - offsets), "+")),
            pa.array(sizes, mask=labels < 0),
            pc.if_else(bad, pa.scalar("ingest:damaged"), pa.scalar(None, pa.string())),
        ]
        return pa.Table.from_arrays(columns, schema=ENTRIES)


def _joined(prefix: str, values: np.ndarray) -> pa.Array:
    """Numbers as text after a prefix."""
    return pc.binary_join_element_wise(prefix, pa.array(values).cast(pa.string()), "")
