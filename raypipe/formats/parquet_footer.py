"""What a Parquet file says of its row groups and pages, read without trust.

pyarrow ends the whole process when it is asked about a row group whose statistics contradict each
other (`terminate called after throwing parquet::ParquetException`), so it is not asked. And it
allocates what the head of a page says, up to 2 GB, so those are looked at before it sees them. Both
are structs in Thrift's compact protocol (apache/parquet-format, src/main/thrift/parquet.thrift, and
apache/thrift, doc/specs/thrift-compact-protocol.md).
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

# Bytes of a row group's images are at least as many as its rows, but for some more, which may be
# the same picture many times; and they unpack to so many times as many and some more. JPEG and PNG
# do not get smaller.
_SAME = 10_000
_RATIO, _SLACK = 32, 16 * 2**20
# Rows read at once hold about so many bytes of images, and are at most so many.
_BATCH_BYTES, _BATCH_ROWS = 16 * 2**20, 1000
_DEEPEST = 16
# Bytes of the head of a page: most are short; one may hold its smallest and its largest value.
_HEADS = (256, 64 * 1024)
_MANY = 1_000_000
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_INTEGERS, _DOUBLE, _BINARY, _LISTS, _STRUCT = (4, 5, 6), 7, 8, (9, 10), 12
_TRUE, _FALSE, _BYTE = 1, 2, 3


class Group(NamedTuple):
    """A row group.

    Attributes:
        first: its first row in the file.
        rows: how many it has.
        offset: of its images in the file, in bytes.
        size: bytes of its images.
        nulls: whether it says that images are missing.
        batch: rows to read at once, so that they are some megabytes.
        chunks: the columns to read, by their paths.
        fault: why it cannot be read, None where nothing is wrong with it.
    """

    first: int
    rows: int
    offset: int
    size: int
    nulls: bool
    batch: int
    chunks: dict[str, "Chunk"]
    fault: str | None


class Chunk(NamedTuple):
    """A column of a row group.

    Attributes:
        start: where it begins in the file.
        packed, unpacked: bytes of it in the file, and of its values.
        codec: number of what it is packed with.
        nulls: how many of its values it says are missing.
    """

    start: int
    packed: int
    unpacked: int
    codec: int
    nulls: int


def read_groups(footer: bytes, data: str, others: Sequence[str], size: int) -> list[Group]:
    """The row groups of a file.

    Args:
        footer: its bytes.
        data: path of the column of images: "image.bytes".
        others: paths of the other columns that will be read.
        size: bytes of the file.

    Raises:
        ValueError: where it is no such footer.
    """
    meta = _Compact(footer).struct()
    found, first = [], 0
    for group in _list(meta, 4):
        columns = {}
        for column in _list(group, 1):
            about = column.get(3)
            if isinstance(about, dict):
                name = ".".join(part.decode("utf-8", "replace") for part in _list(about, 3, bytes))
                columns[name] = _chunk(about)
        rows, images = _integer(group, 3), columns.get(data)
        if images is None:
            raise ValueError(f"a row group has no column {data!r}")
        fault = None
        for name in (data, *others) if rows else ():  # an empty group may lie anywhere
            chunk = columns.get(name)
            fault = fault or ("a column is missing" if chunk is None else _fault(chunk, size))
        if rows < 0 or rows > images.packed + _SAME:
            fault, rows = f"it claims {rows:,} rows in {images.packed:,} bytes", 0
        nulls = images.nulls > 0
        chunks = {name: columns[name] for name in (data, *others) if name in columns}
        batch = _batch(images, rows)
        found.append(Group(first, rows, images.start, images.packed, nulls, batch, chunks, fault))
        first += rows
    return found


def _chunk(about: dict[int, Any]) -> Chunk:
    start = pages = _integer(about, 9)
    if 0 < _integer(about, 11) < pages:
        start = _integer(about, 11)
    statistics = about.get(12)
    nulls = _integer(statistics, 3) if isinstance(statistics, dict) else 0
    return Chunk(start, _integer(about, 7), _integer(about, 6), _integer(about, 4), nulls)


def _fault(chunk: Chunk, size: int) -> str | None:
    """What is wrong with a column of a row group."""
    end = chunk.start + chunk.packed
    if chunk.start < 4 or chunk.packed < 0 or end > size:
        return f"it claims bytes {chunk.start:,} to {end:,} of {size:,}"
    if chunk.unpacked < 0 or chunk.unpacked > _RATIO * chunk.packed + _SLACK:
        return f"{chunk.packed:,} bytes claim to unpack to {chunk.unpacked:,}"
    return None


def _batch(chunk: Chunk, rows: int) -> int:
    return max(1, min(_BATCH_BYTES * rows // max(chunk.unpacked, 1), _BATCH_ROWS))


def batch_of(read: Callable[[int, int], bytes], chunk: Chunk, batch: int) -> int:
    """How many rows to read at once where they may all be the largest value of a dictionary.

    Args:
        read: as in `check_pages`, which found nothing bad.
        batch: so many, were they all as large as the mean.
    """
    page, head = _head(read, chunk.start, chunk.packed)
    if 7 not in page:
        return batch
    data, largest = read(chunk.start + head, _integer(page, 3)), _integer(page, 2)
    if chunk.codec in _CODECS:
        data = pa.decompress(data, largest, _CODECS[chunk.codec], asbytes=True)
    if chunk.codec in (0, *_CODECS):
        largest = place = 0
        for _ in range(_integer(page[7], 1)):
            (length,) = struct.unpack_from("<I", data, place)
            largest, place = max(largest, length), place + 4 + length
    return max(1, min(batch, 2 * _BATCH_BYTES // max(largest, 1)))


def check_pages(read: Callable[[int, int], bytes], chunk: Chunk) -> tuple[int, int, str] | None:
    """Goes from page to page of a column and looks at their heads.

    Args:
        read: gives the bytes at (offset, length), fewer at the end of the file.

    Returns:
        None where all is well; else the values in the pages before the first bad one, its offset,
        and what is wrong with it.
    """
    place, end, values = chunk.start, chunk.start + chunk.packed, 0
    while place < end:
        try:
            page, head = _head(read, place, end - place)
            packed, unpacked = _integer(page, 3), _integer(page, 2)
            about: dict[int, Any] = next(
                (page[key] for key in (5, 7, 8) if isinstance(page.get(key), dict)), {}
            )
            count = _integer(about, 1)
            if packed < 0 or place + head + packed > end:
                raise ValueError(f"a page of {packed:,} bytes where {end - place:,} are left")
            if not 0 <= unpacked <= _RATIO * packed + _SLACK:
                raise ValueError(f"a page of {packed:,} bytes claims to unpack to {unpacked:,}")
            # A dictionary has a value in four bytes or more; of others many may be the same.
            if not 0 <= count <= (unpacked if 7 in page else chunk.unpacked + _MANY):
                raise ValueError(f"a page of {unpacked:,} bytes claims {count:,} values")
        except ValueError as error:
            return values, place, str(error)
        values += 0 if 7 in page else count
        place += head + packed
    return None


def _head(read: Callable[[int, int], bytes], place: int, room: int) -> tuple[dict[int, Any], int]:
    """The head of a page, and its bytes."""
    for length in _HEADS:
        data = read(place, min(length, room))
        compact = _Compact(data)
        try:
            return compact.struct(), compact.read
        except ValueError:
            if length > room or length == _HEADS[-1]:
                raise
    raise AssertionError


def _integer(fields: dict[int, Any], key: int) -> int:
    value = fields.get(key, 0)
    if not isinstance(value, int):
        raise ValueError(f"field {key} is no integer")
    return value


def _list(fields: dict[int, Any], key: int, kind: type = dict) -> list[Any]:
    value = fields.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise ValueError(f"field {key} is no list as expected")
    return value


class _Compact:
    """A value in Thrift's compact protocol; structs become dictionaries by field number."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    @property
    def read(self) -> int:
        """Bytes read so far."""
        return self._place

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """The struct that begins here."""
        if depth > _DEEPEST:
            raise ValueError("structs in structs without end")
        fields: dict[int, Any] = {}
        key = 0
        while head := self._byte():
            key = key + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            fields[key] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if kind in _INTEGERS:
            return self._signed()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct(depth + 1)
        if kind in _LISTS:
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            if count > len(self._data) - self._place or depth > _DEEPEST:
                raise ValueError(f"a list of {count:,} in {len(self._data):,} bytes")
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == _DOUBLE:
            return struct.unpack("<d", self._bytes(8))[0]
        raise ValueError(f"a value of unknown type {kind}")

    def _bytes(self, count: int) -> bytes:
        if count > len(self._data) - self._place:
            raise ValueError("it breaks off")
        self._place += count
        return self._data[self._place - count : self._place]

    def _byte(self) -> int:
        if self._place == len(self._data):
            raise ValueError("it breaks off")
        self._place += 1
        return self._data[self._place - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number without end")

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
