"""Lists of paths, and folders written with a folder a person.

The layouts of a list are in `raypipe.formats.list_lines`. Relative paths are relative to the list's
folder and may not lead out of it, by ".." or by a link. A list on a local disk may name absolute
paths, as SOTA-FR's do; what they name is read wherever it lies.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pyarrow as pa

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import Damage, Record
from raypipe.formats.blob import Blob
from raypipe.formats.image_folder import natural
from raypipe.formats.keyed import ENTRIES, KeyedReader, Part, entries_batch
from raypipe.formats.list_lines import Line, layout_of, parsed, raw_lines
from raypipe.formats.naming import suffix
from raypipe.images import extension
from raypipe.reasons import explain

_PART = 4 * 2**20  # bytes of a list: some 50,000 lines
_BATCH = 10_000
_AHEAD = 256
_THREADS = 16
_HEAD = 16  # bytes that tell an image
_LOCATOR = re.compile(r"([^/]+)@(\d{1,18})\+(\d{1,4})")


class ListReader(KeyedReader):
    """Reads the images that a list names, in its order."""

    def __init__(self, path: str, *, source: str, max_bytes: int) -> None:
        """See `raypipe.formats.open_reader`."""
        super().__init__(path, source=source, max_bytes=max_bytes)
        self._remote = storage.is_uri(path)
        self._blob = Blob(path)
        self._files, inner = storage.filesystem(path)
        self._root, _, self._name = inner.rpartition("/")
        self._inside_of = os.path.realpath(self._root).rstrip("/") + "/"
        self._folder: tuple[str, bool] = "", False
        self._layout = ""
        self._labels: dict[str, int] | None = None

    def stamp(self) -> None:
        """See `raypipe.formats.Reader`: only a listing tells, for the images are files too."""

    def parts(self) -> list[Part]:
        """See `KeyedReader`: lines that begin in [start, stop), in bytes.

        Raises:
            UserError: where a line does not fit, which is looked for where names are labels.
        """
        self._of_name()  # read once, and not by every worker
        size = self._blob.size
        return [Part(self.path, n, min(n + _PART, size)) for n in range(0, size, _PART)]

    def entries(self, part: Part) -> pa.Table:
        """See `KeyedReader`. On a local disk every image is looked for, and none is opened.

        Raises:
            UserError: for a line that does not fit.
        """
        of_name = self._of_name()
        rows: list[tuple] = []
        batches = []
        for offset, raw, line in self._lines(part.start, part.stop):
            size, reason = (None, None) if self._remote else self._look(line.path)[1:]
            reason = reason if _is_text(raw) else "ingest:bad_name"
            if line.name is None:
                name, label = str(line.label), line.label
            else:
                name, label = line.name, of_name[line.name]
            where = f"{self._name}@{offset}+{len(raw)}"
            rows.append((line.path, name, label, where, size, reason))
            if len(rows) == _BATCH:
                batches.append(entries_batch(rows))
                rows.clear()
        return pa.Table.from_batches([*batches, entries_batch(rows)], ENTRIES)

    def part_records(self, part: Part) -> Iterator[Record | Damage]:
        """See `KeyedReader`."""
        of_name = self._of_name()
        lines = self._lines(part.start, part.stop)
        while some := list(islice(lines, _AHEAD)):
            loaded = self._load_all([(raw, line.path) for _, raw, line in some])
            for (offset, _, line), data in zip(some, loaded, strict=True):
                if isinstance(data, str):
                    yield Damage(self.path, offset, f"{line.path}: {explain(data)}")
                elif line.name is None:
                    yield Record(data, line.label or 0, str(line.label), line.path)
                else:
                    yield Record(data, of_name[line.name], line.name, line.path)

    def fetch(self, sources: Sequence[str]) -> list[bytes | Damage]:
        """See `KeyedReader`. A place is that of a line, so only what the list names can be read.

        Raises:
            UserError: for a place where no line is.
        """
        places = []
        for source in sources:
            found = _LOCATOR.fullmatch(source)
            if found is None or found[1] != self._name:
                raise UserError(f"{self.path}: {source!r} is no line of it")
            places.append((int(found[2]), int(found[3])))
        # With the bytes before and after it, which are the ends of lines.
        read = self._blob.read_many([(max(at - 1, 0), size + 1 + bool(at)) for at, size in places])
        lines = []
        for (offset, size), data in zip(places, read, strict=True):
            line, end = data[bool(offset) :][:size], data[bool(offset) :][size:]
            begun = not offset or data[:1] == b"\n"
            if not begun or len(line) != size or b"\n" in line or end not in (b"", b"\n"):
                raise UserError(f"{self.path}: no line of {size} bytes at byte {offset}")
            lines.append((line, parsed(self._blob, self._found_layout(), offset, line).path))
        loaded = self._load_all(lines)
        return [
            Damage(self.path, offset, data) if isinstance(data, str) else data
            for (offset, _), data in zip(places, loaded, strict=True)
        ]

    def _found_layout(self) -> str:
        self._layout = self._layout or layout_of(self._blob)
        return self._layout

    def _lines(self, start: int, stop: int) -> Iterator[tuple[int, bytes, Line]]:
        layout = self._found_layout()
        for offset, raw in raw_lines(self._blob, start, stop):
            yield offset, raw, parsed(self._blob, layout, offset, raw)

    def _of_name(self) -> dict[str, int]:
        """The label of each name: its place in the natural order of all names of the list."""
        if self._labels is None:
            names = set()
            for _, _, line in self._lines(0, self._blob.size):
                if line.name is None:
                    break
                names.add(line.name)
            self._labels = {name: n for n, name in enumerate(sorted(names, key=natural))}
        return self._labels

    def _look(self, path: str) -> tuple[str, int | None, str | None]:
        """Where an image lies, its size where that is known, and why it is not to be read."""
        whole = os.path.join(self._root, path)
        pieces = [piece for piece in path.split("/") if piece not in ("", ".")]
        if storage.is_uri(path) or (".." in pieces and path[0] != "/"):
            return whole, None, "ingest:outside"
        if self._remote:
            reason = "ingest:outside" if path[0] == "/" else None
            return "/".join([self._root, *pieces]), None, reason
        try:
            info = os.lstat(whole)
            if path[0] != "/" and not self._inside(whole, stat.S_ISLNK(info.st_mode)):
                return whole, None, "ingest:outside"
            if stat.S_ISLNK(info.st_mode):
                info = os.stat(whole)
        except (FileNotFoundError, NotADirectoryError):
            return whole, None, "ingest:missing"
        except (OSError, ValueError):
            return whole, None, "ingest:unreadable"
        if not stat.S_ISREG(info.st_mode):
            return whole, None, "ingest:unreadable"
        reason = "ingest:file_too_large" if info.st_size > self.max_bytes else None
        return whole, info.st_size, reason

    def _inside(self, path: str, is_link: bool) -> bool:
        """Whether a path stays in the list's folder when its links are followed."""
        if is_link:
            return os.path.realpath(path).startswith(self._inside_of)
        folder = path.rpartition("/")[0]
        if folder != self._folder[0]:  # most often it is that of the line before
            inside = f"{os.path.realpath(folder)}/".startswith(self._inside_of)
            self._folder = folder, inside
        return self._folder[1]

    def _load_all(self, lines: list[tuple[bytes, str]]) -> list[bytes | str]:
        self._folder = "", False  # it may have become a link since
        if not self._remote:
            return [self._load(*line) for line in lines]
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(lambda line: self._load(*line), lines))

    def _load(self, raw: bytes, path: str) -> bytes | str:
        """The bytes of an image, or why they are not read."""
        if not _is_text(raw):
            return "ingest:bad_name"
        whole, size, reason = self._look(path)
        if reason is not None:
            return reason
        # Asked for more than there is, Python would first allocate all of it.
        most = self.max_bytes if size is None else size
        try:
            if self._remote:
                # compression=None: by default a name that ends in .gz is unpacked
                with self._files.open_input_stream(whole, compression=None) as stream:
                    data = stream.read(most + 1)
            else:
                with open(whole, "rb", buffering=0) as file:
                    data = file.read(most + 1)
        except FileNotFoundError:
            return "ingest:missing"
        except PermissionError:
            return "ingest:unreadable"
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{whole}: cannot be read ({error})") from error
        if len(data) > self.max_bytes:
            return "ingest:file_too_large"
        return data if extension(data[:_HEAD]) else "ingest:not_an_image"


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


class FolderWriter:
    """Writes `LABEL/NUMBER.EXTENSION`, the number counting the images of a label.

    Attributes:
        by_label: True.
    """

    by_label = True

    def __init__(self, path: str) -> None:
        """See `raypipe.formats.open_writer`."""
        os.makedirs(path)
        self._path = path
        self._label = -1
        self._count = 0

    def write(self, record: Record) -> None:
        """See `raypipe.formats.Writer`."""
        self.place(record)

    def place(self, record: Record) -> str:
        """Writes a record; returns the image's path from the folder.

        Raises:
            UserError: where it is no image.
        """
        folder = f"{record.label:07d}"
        if record.label != self._label:
            os.mkdir(os.path.join(self._path, folder))
            self._label, self._count = record.label, 0
        name = f"{self._count:04d}.{suffix(record.image, record.image_id)}"
        with open(os.path.join(self._path, folder, name), "wb") as file:
            file.write(record.image)
        self._count += 1
        return f"{folder}/{name}"

    def finish(self) -> None:
        """See `raypipe.formats.Writer`: all is written."""
