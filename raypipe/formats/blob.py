"""The bytes of one file on any filesystem, read where they are wanted."""

from typing import Any

import pyarrow as pa

from raypipe import storage
from raypipe.errors import UserError

# Two ranges with less between them are read at once: a request costs more than these bytes.
_GAP = 64 * 1024
_MOST = 16 * 2**20


class Blob:
    """Random access to a file. It is opened on first use, so it can be sent to a worker."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._file: pa.NativeFile | None = None
        self._size = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_size": 0}

    def _open(self) -> pa.NativeFile:
        if self._file is None:
            where, inner = storage.filesystem(self.path)
            try:
                self._file = where.open_input_file(inner)
                self._size = self._file.size()
            except FileNotFoundError as error:
                raise UserError(f"{self.path}: no such file") from error
            except OSError as error:
                raise UserError(f"{self.path}: cannot be opened ({error})") from error
        return self._file

    @property
    def size(self) -> int:
        """Bytes in the file."""
        self._open()
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from an offset on; fewer than asked for at the end of the file.

        Raises:
            UserError: where the filesystem fails.
        """
        file = self._open()
        # Asked for beyond the end, pyarrow would allocate all of it first.
        length = min(length, self._size - offset)
        if length <= 0:
            return b""
        try:
            return file.read_at(length, offset)
        except OSError as error:
            raise UserError(f"{self.path}: byte {offset}: cannot be read ({error})") from error

    def read_many(self, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Several (offset, length) at once, neighbours with one request, in the order asked for."""
        found: dict[int, bytes] = {}
        order = sorted(range(len(ranges)), key=lambda i: ranges[i])
        start = 0
        while start < len(order):
            first = ranges[order[start]][0]
            end, stop = first + ranges[order[start]][1], start + 1
            while stop < len(order):
                offset, length = ranges[order[stop]]
                if offset > end + _GAP or offset + length > first + _MOST:
                    break
                end, stop = max(end, offset + length), stop + 1
            data = self.read(first, end - first)
            for i in order[start:stop]:
                offset, length = ranges[i]
                found[i] = data[offset - first : offset - first + length]
            start = stop
        return [found[i] for i in range(len(ranges))]
