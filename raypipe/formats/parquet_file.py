"""A Parquet file and its row groups, checked before they are read, and read in pieces.

pyarrow does the reading; what it would believe of a file and should not is checked first: the
length of the footer, how many rows a row group can hold, where its bytes are, how far its pages
unpack.
"""

import io
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats.blob import Blob
from raypipe.formats.parquet_footer import batch_of, check_pages, read_groups

MAGIC = b"PAR1"
_ERRORS = (pa.ArrowException, OSError, ValueError, MemoryError, struct.error)
_SMALL_ROWS = 50_000  # read at once without their images
_BUFFER = 2**20
_AHEAD = 64 * 2**20  # bytes of a row group that are read at once, and held


class Fault(Exception):  # noqa: N818
    """What of a file cannot be read.

    Attributes:
        offset: where it is, in bytes.
    """

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset


class Leaves(NamedTuple):
    """Paths of the columns to read, down to where the values are: "image.bytes".

    Attributes:
        data: of the images.
        others: of everything beside the images.
        beside: of what is read with the images, and only then.
        texts: those of the others that are names or keys. Such columns are read as dictionaries, so
            that a name that stands in every row is held once.
    """

    data: str
    others: Sequence[str]
    beside: Sequence[str] = ()
    texts: Sequence[str] = ()


class ParquetFile(ABC):
    """A Parquet file with images.

    Attributes:
        path: of the file.
        size: of the file in bytes.
        leaves: the columns to read.
        groups: its row groups in order.

    Raises:
        Fault: where its footer is damaged.
        UserError: where it cannot be opened, or does not have the columns.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._blob = Blob(path)
        self._source = _Source(self._blob)
        self.size = size = self._blob.size
        length = _footer_length(self._blob.read(max(size - 8, 0), 8), size)
        footer = self._blob.read(size - 8 - length, length)
        # To hold what is read costs a local file half its speed, and saves a remote one requests.
        source = self._source if storage.is_uri(path) else storage.filesystem(path)[1]
        options: dict[str, Any] = {
            "pre_buffer": False,  # it would hold a whole row group
            "buffer_size": _BUFFER,
            "page_checksum_verification": True,
            "thrift_string_size_limit": length,
            # What there may be many of in a footer takes more than four bytes each.
            "thrift_container_size_limit": length // 4 + 64,
            "arrow_extensions_enabled": False,
        }
        try:
            plain = pq.ParquetFile(source, **options)
            self.schema = plain.schema_arrow
            self.leaves = self.choose(self.schema)
            self._file = pq.ParquetFile(
                source, metadata=plain.metadata, read_dictionary=self.leaves.texts, **options
            )
            others = [*self.leaves.others, *self.leaves.beside]
            self.groups = read_groups(footer, self.leaves.data, others, size)
        except UserError:
            raise
        except _ERRORS as error:
            message = f"the footer cannot be read ({_line(error)})"
            raise Fault(size - 8 - length, message) from error

    @abstractmethod
    def choose(self, schema: pa.Schema) -> Leaves:
        """The columns to read.

        Raises:
            UserError: where they are not there.
        """

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(group.rows for group in self.groups)

    def group_of(self, row: int) -> int | None:
        """The row group that a row of the file is in."""
        places = (i for i, g in enumerate(self.groups) if g.first <= row < g.first + g.rows)
        return next(places, None)

    def batches(
        self, number: int, *, images: bool, others: bool = True, rows: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a row group in order, some at a time.

        Args:
            number: of the row group.
            images: whether to read the images.
            others: whether to read the other columns.
            rows: so many at a time; none: as many as make some megabytes.

        Raises:
            Fault: where the row group is damaged.
        """
        leaves = list(self.leaves.others) if others else []
        if images:
            leaves += [self.leaves.data, *self.leaves.beside]
        group = self.groups[number]
        if group.fault:
            raise Fault(group.offset, group.fault)
        chunks = [group.chunks[leaf] for leaf in leaves]
        if storage.is_uri(self.path):
            self._source.hold([(chunk.start, chunk.packed) for chunk in chunks])
        read = self._source.at
        bad = [found for chunk in chunks if (found := check_pages(read, chunk))]
        sound, offset, what = min(bad, default=(group.rows, group.offset, ""))
        done = 0
        try:
            if bad:
                rows = 1  # so that pyarrow sees nothing of the bad page
            elif rows is None:
                data = group.chunks[self.leaves.data]
                rows = batch_of(read, data, group.batch) if images else _SMALL_ROWS
            reader = self._file.iter_batches(
                rows, row_groups=[number], columns=leaves, use_threads=False
            )
            while done < sound and (batch := next(reader, None)) is not None:
                _check_dictionaries(batch)
                yield batch
                done += len(batch)
        except UserError:
            raise
        except _ERRORS as error:
            raise Fault(group.offset, _line(error)) from error
        if done < group.rows:
            raise Fault(offset, what or f"it breaks off after {done:,} rows")

    def intact(self, number: int, *, images: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows of a row group up to the first that is damaged, and where in it they begin.

        Raises:
            Fault: after them, where the row group is damaged.
        """
        done = 0
        for rows in (None, 1):  # after a failure once more, row by row
            start = 0
            try:
                for batch in self.batches(number, images=images, rows=rows):
                    if start >= done:
                        yield start, batch
                        done += len(batch)
                    start += len(batch)
            except Fault:
                if rows == 1:
                    raise
            else:
                return


class Cursor:
    """Moves through a row group, some megabytes of it in memory.

    Args:
        batches: begins the row group anew, with so many rows at a time.
    """

    def __init__(self, batches: Callable[[int | None], Iterator[pa.RecordBatch]]) -> None:
        self._batches = batches
        self._rows: int | None = None
        self._fault: Fault | None = None
        self._begin()

    def _begin(self) -> None:
        self._coming = self._batches(self._rows)
        self._first = 0
        self._held: pa.RecordBatch | None = None

    def take(self, row: int) -> pa.RecordBatch:
        """A row of the row group by its number there.

        Raises:
            Fault: where it is damaged.
        """
        if row < self._first:
            self._begin()
        while self._held is None or row >= self._first + len(self._held):
            done, self._held = self._held, None
            self._first += len(done) if done is not None else 0
            try:
                self._held = next(self._coming, None)
            except Fault as fault:
                self._fault = fault
                if self._rows is None:
                    self._rows = 1  # once more, row by row up to the damage
                    self._begin()
                    continue
            if self._held is None:
                assert self._fault is not None, "a row group ends early only with a fault"
                raise self._fault
        return self._held.slice(row - self._first, 1)


class _Source(io.RawIOBase):
    """A file for pyarrow, of which some parts are held in memory."""

    def __init__(self, blob: Blob) -> None:
        self._blob = blob
        self._place = 0
        self._held: dict[int, bytes] = {}  # by offset

    def hold(self, ranges: list[tuple[int, int]]) -> None:
        """Reads some (offset, length) at once, in the place of what was held, if it is not much."""
        self._held = {}
        if sum(length for _, length in ranges) <= _AHEAD:
            data = self._blob.read_many(ranges)
            self._held = {offset: part for (offset, _), part in zip(ranges, data, strict=True)}

    def at(self, offset: int, length: int) -> bytes:
        """Bytes from an offset on; fewer than asked for at the end of the file."""
        for start, data in self._held.items():
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        return self._blob.read(offset, length)

    def read(self, length: int = -1) -> bytes:
        """See `io.RawIOBase`."""
        data = self.at(self._place, self._blob.size if length < 0 else length)
        self._place += len(data)
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """See `io.RawIOBase`."""
        self._place = offset + (0, self._place, self._blob.size)[whence]
        return self._place

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._place

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True


def _check_dictionaries(batch: pa.RecordBatch) -> None:
    """pyarrow believes a damaged file what place in a dictionary a value has."""
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            last = pc.max(column.indices).as_py()
            if last is not None and last >= len(column.dictionary):
                raise ValueError(f"value {last:,} of a dictionary of {len(column.dictionary):,}")


def _footer_length(tail: bytes, size: int) -> int:
    if size < 12 or tail[4:] != MAGIC:
        raise Fault(size, "the file is cut off: it does not end with a footer")
    (length,) = struct.unpack("<I", tail[:4])
    if length > size - 12:
        raise Fault(size - 8, f"a footer of {length:,} bytes in a file of {size:,}")
    return length


def _line(error: BaseException) -> str:
    """The message of an error of pyarrow on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
