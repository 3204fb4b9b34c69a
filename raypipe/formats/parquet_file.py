"""A Parquet file and its row groups, checked before they are read, and read in pieces.

pyarrow does the reading; what it would believe of a file and should not is checked here first: the
length of the footer, how many rows a row group can hold, where its bytes are, how far they unpack.
A page is unpacked by pyarrow in one piece, as long as its own header says, up to 2 GB.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats.parquet_footer import read_groups

MAGIC = b"PAR1"
FAILURES = (pa.ArrowException, OSError, ValueError, MemoryError)
_SMALL_ROWS = 50_000  # read at once without their images
_BUFFER = 2**20


class FooterError(ValueError):
    """A footer that cannot be read: nothing of the file can.

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
        FooterError: where its footer is damaged.
        UserError: where it cannot be opened, or does not have the columns.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        where, inner = storage.filesystem(path)
        try:
            stream = where.open_input_file(inner)
            self.size = stream.size()
            footer = _footer_length(stream, self.size)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error})") from error
        options: dict[str, Any] = {
            "pre_buffer": False,  # it would hold a whole row group
            "buffer_size": _BUFFER,
            "page_checksum_verification": True,
            "thrift_string_size_limit": footer,
            # What there may be many of in a footer takes more than four bytes each.
            "thrift_container_size_limit": footer // 4 + 64,
            "arrow_extensions_enabled": False,
        }
        try:
            plain = pq.ParquetFile(stream, **options)
            self.schema = plain.schema_arrow
            self.leaves = self.choose(self.schema)
            self._file = pq.ParquetFile(
                stream, metadata=plain.metadata, read_dictionary=self.leaves.texts, **options
            )
            self.groups = read_groups(
                stream.read_at(footer, self.size - 8 - footer),
                self.leaves.data,
                [*self.leaves.others, *self.leaves.beside],
                self.size,
            )
        except FAILURES as error:
            if isinstance(error, UserError):
                raise
            message = f"the footer cannot be read ({line(error)})"
            raise FooterError(max(self.size - 8 - footer, 0), message) from error

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
            FAILURES: where the row group is damaged.
        """
        leaves = list(self.leaves.others) if others else []
        if images:
            leaves += [self.leaves.data, *self.leaves.beside]
        usual = self.groups[number].batch if images else _SMALL_ROWS
        yield from self._file.iter_batches(
            rows or usual, row_groups=[number], columns=leaves, use_threads=False
        )

    def intact(self, number: int, *, images: bool) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The rows of a row group up to the first that is damaged, and where in it they begin.

        Raises:
            FAILURES: after them, where the row group is damaged.
        """
        group, done = self.groups[number], 0
        if group.fault:
            raise ValueError(group.fault)
        for rows in (None, 1):  # after a failure once more, row by row
            start = 0
            try:
                for batch in self.batches(number, images=images, rows=rows):
                    if start >= done:
                        yield start, batch
                        done += len(batch)
                    start += len(batch)
            except FAILURES:
                if rows == 1:
                    raise
                continue
            break
        if done < group.rows:
            raise ValueError(f"it breaks off after {done:,} rows")


class Cursor:
    """Moves through a row group, some megabytes of it in memory.

    Args:
        batches: begins the row group anew, with so many rows at a time.
    """

    def __init__(self, batches: Callable[[int | None], Iterator[pa.RecordBatch]]) -> None:
        self._batches = batches
        self._rows: int | None = None
        self._begin()

    def _begin(self) -> None:
        self._coming = self._batches(self._rows)
        self._first = 0
        self._held: pa.RecordBatch | None = None

    def take(self, row: int) -> pa.RecordBatch:
        """A row of the row group by its number there.

        Raises:
            FAILURES: where it is damaged.
        """
        if row < self._first:
            self._begin()
        while self._held is None or row >= self._first + len(self._held):
            done, self._held = self._held, None
            self._first += len(done) if done is not None else 0
            try:
                self._held = next(self._coming, None)
            except FAILURES:
                if self._rows == 1:
                    raise
                self._rows = 1  # once more, row by row up to the damage
                self._begin()
                continue
            if self._held is None:
                raise ValueError("its row group breaks off before it")
        return self._held.slice(row - self._first, 1)


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


def _footer_length(stream: pa.NativeFile, size: int) -> int:
    tail = stream.read_at(min(size, 8), max(size - 8, 0))
    if size < 12 or tail[4:] != MAGIC:
        raise FooterError(size, "the file is cut off: it does not end with a footer")
    (length,) = struct.unpack("<I", tail[:4])
    if length > size - 12:
        raise FooterError(size - 8, f"a footer of {length:,} bytes in a file of {size:,}")
    return length


def line(error: BaseException) -> str:
    """The message of an error of pyarrow on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
