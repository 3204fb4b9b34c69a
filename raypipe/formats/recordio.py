"""MXNet RecordIO: a `.rec`, with an `.idx` and a `.lst` of the same name where it has them.

Both layouts are read: that of InsightFace, whose first record and one record an identity hold
ranges of keys and no image, and that of im2rec, where every record is an image. What has no image
and two labels is taken for a range wherever it stands, so no number in a file is relied on: in
float32 that of InsightFace's first record is rounded beyond 2**24 images.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise

import pyarrow as pa
from pyarrow import fs

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import Damage, Record
from raypipe.formats.blob import Blob
from raypipe.formats.keyed import ENTRIES, UNKNOWN, KeyedReader, Part
from raypipe.formats.record_chunks import (
    HEADER,
    LENGTH,
    MAGIC,
    MAX_LABEL,
    PAIR,
    PEEK,
    Fault,
    Span,
    Walker,
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

PART_BYTES = 128 * 2**20
_BLOCK = 2 * 2**20  # read at once where images are wanted
_PAGE = 4096  # where only headers are, of a local file
_REMOTE = 8 * 2**20  # a request costs more than these bytes
_SOURCE = re.compile(r"(.*)@(\d{1,18})\+(\d{1,18})")
_FAST = struct.Struct("<IIIf")


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
        files = [self.path, f"{self._stem}.idx", f"{self._stem}.lst"]
        return "\n".join(str(stamped(file)) for file in [*files, storage.join(folder, "property")])

    def parts(self) -> list[Part]:
        """Byte ranges; a record belongs to where it begins. Without .idx they are counted first."""
        index = self._index()
        size = self._blob.size
        starts = self._count() if index is None else cuts(index.offsets, size, self._part_bytes)
        return [Part(self.path, *ends) for ends in pairwise([*starts, size])]

    def entries(self, part: Part) -> pa.Table:
        """See `KeyedReader`. Reads headers only, and on an object store the whole part."""
        rows = _Rows()
        names, keys = self._names(), self._keys(part)
        walker = self._walker(part, keys, self._header_block())
        while walker.at < part.stop:
            for item in walker.step():
                for key, found in keys.meet(item):
                    if isinstance(found, Span):
                        self._list(rows, key, found, names)
                    else:
                        rows.reject(key, f"{self._name}@{found.offset}")
        for key, fault in keys.rest():
            rows.reject(key, f"{self._name}@{fault.offset}")
        return rows.table()

    def _list(self, rows: "_Rows", key: str, span: Span, names: Names) -> None:
        head = parse_head(span.head, span.size)
        if isinstance(head, str):
            rows.reject(key, f"{self._name}@{span.offset}")
        elif head.label is not None:
            rows.add(
                key,
                names[head.label],
                head.label,
                f"{self._name}@{span.offset}+{span.end - span.offset}",
                span.size - head.begin,
                None,
            )

    def part_records(self, part: Part) -> Iterator[Record | Damage]:
        """See `KeyedReader`."""
        names, keys = self._names(), self._keys(part)
        walker = self._walker(part, keys, _BLOCK)
        unpack, stop = _FAST.unpack_from, part.stop
        label, identity, last = 0, names[0], 0.0
        while walker.at < stop:
            # Whole records that have one label and lie in the window, in a loop of its own; the
            # rest is for `step`.
            base, data = walker.window.base, walker.window.data
            at, limit, until = walker.at - base, len(data) - _FAST.size, stop - base
            if 0 <= at <= limit:
                magic, word, flag, value = unpack(data, at)
                while at < until and word <= LENGTH and word >= HEADER.size and flag == 0:
                    begin, end = at + PEEK - 4, at + PAIR.size + word
                    after = end + -end % 4
                    if magic != MAGIC or after > limit:
                        break
                    magic, word, flag, following = unpack(data, after)
                    if magic != MAGIC or word >> 30 or not keys.expects(base + at, base + after):
                        break
                    if value != last:
                        if not (0 <= value <= MAX_LABEL and value == int(value)):
                            break
                        label, last = int(value), value
                        identity = names[label]
                    yield Record(data[begin:end], label, identity, keys.take())
                    at, value = after, following
                walker.at = base + at
                if at >= until:
                    break
            for item in walker.step():
                for key, found in keys.meet(item):
                    record = self._load(walker, key, found, names)
                    if record is not None:
                        yield record
        for _, fault in keys.rest():
            yield Damage(self.path, *fault)

    def _load(
        self, walker: Walker, key: str, found: Span | Fault, names: Names
    ) -> Record | Damage | None:
        if isinstance(found, Fault):
            return Damage(self.path, *found)
        head = parse_head(found.head, found.size)
        if isinstance(head, str):
            return Damage(self.path, found.offset, head)
        if head.label is None:
            return None
        record = decode(walker.window.get(found.offset, found.end - found.offset))
        assert record is not None  # the walker has seen its chunks
        return Record(record[head.begin :], head.label, names[head.label], key)

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

    def _walker(self, part: Part, keys: Keys, block: int) -> Walker:
        return Walker(self._blob, part.start, part.stop, block=block, listed=keys.listed)

    def _header_block(self) -> int:
        local = isinstance(storage.filesystem(self.path)[0], fs.LocalFileSystem)
        return _PAGE if local else _REMOTE

    def _count(self) -> list[int]:
        """Where parts begin in a file without .idx; also counts the records before each."""
        size = self._blob.size
        walker = Walker(self._blob, 0, size, block=self._header_block())
        self._numbers = {0: 0}
        start = first = number = 0
        while walker.at < size:
            for item in walker.step():
                full = item.offset - start >= self._part_bytes or number - first >= PART_RECORDS
                if full and isinstance(item, Span):
                    start, first = item.offset, number
                    self._numbers[start] = number
                number += 1
        return list(self._numbers)


class _Rows:
    """Entries in the making."""

    def __init__(self) -> None:
        self._columns: list[list] = [[] for _ in ENTRIES]

    def add(self, *row: str | int | None) -> None:
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)

    def reject(self, image_id: str, source: str) -> None:
        self.add(image_id, UNKNOWN, None, source, None, "ingest:damaged")

    def table(self) -> pa.Table:
        return pa.Table.from_arrays(
            [
                pa.array(column, field.type)
                for column, field in zip(self._columns, ENTRIES, strict=True)
            ],
            schema=ENTRIES,
        )
