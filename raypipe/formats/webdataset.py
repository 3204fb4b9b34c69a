"""WebDataset: tar files in which the members of a sample follow each other and share a name.

A sample's key is the path of its members up to the first dot of the file name; what follows the dot
tells them apart (https://github.com/webdataset/webdataset). Here a sample is an image and a label:
KEY.cls, or "label" or "cls" in KEY.json, which may also say who it is ("identity_id", "identity").
Keys may repeat, as in the tars of SOTA-FR (https://github.com/HaiyuWu/
SOTA-Face-Recognition-Train-and-Test, utils/imagelist2webdataset.py), named by the image files
alone: a member that the sample has already begins a new one.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import pyarrow as pa

from raypipe import storage, training_set
from raypipe.errors import UserError
from raypipe.formats import Damage, Record
from raypipe.formats.blob import Blob
from raypipe.formats.detect import GZIP, is_folder
from raypipe.formats.image_folder import natural
from raypipe.formats.keyed import ENTRIES, UNKNOWN, KeyedReader, Part, entries_batch
from raypipe.formats.tar import MAGIC, MAGIC_AT, Shard, Window
from raypipe.formats.tar_samples import read_samples

SHARD_SIZE = 10_000  # images, as `assemble` has it
_SKIMMED = 4096  # bytes read at once where the images are passed over
_BATCH = 10_000
_OPEN = 8
_THREADS = 16
_LOCATOR = re.compile(r"([^/]+)@(\d{1,18})\+(\d{1,18})")


class TarReader(KeyedReader):
    """Reads a tar, or a folder of tars."""

    def __init__(self, path: str, *, source: str, max_bytes: int) -> None:
        """See `raypipe.formats.open_reader`."""
        super().__init__(path, source=source, max_bytes=max_bytes)
        self._blobs: dict[str, Blob] = {}

    def stamp(self) -> str:
        """See `KeyedReader`."""
        digest = hashlib.sha256()
        for info in self._files():
            digest.update(f"{info.name}\0{info.size}\0{info.mtime_ns}\0".encode())
        return digest.hexdigest()

    def parts(self) -> list[Part]:
        """A tar each, for a tar has no index; [0, bytes).

        Raises:
            UserError: where there is no tar.
        """
        return [Part(info.path, 0, info.size) for info in self._files()]

    def entries(self, part: Part) -> pa.Table:
        """See `KeyedReader`. On a local disk the images are passed over."""
        name = part.path.rpartition("/")[2]
        window = Window(part.path, None if storage.is_uri(part.path) else _SKIMMED)
        rows: list[tuple] = []
        batches = []
        for found in read_samples(window, part.path, 0):
            if isinstance(found, Damage):
                where = f"{name}@{found.offset}"
                rows.append((where, UNKNOWN, None, where, None, "ingest:damaged"))
            else:
                size = found.image.size
                where = f"{name}@{found.image.start}+{size}"
                why = "ingest:file_too_large" if size > self.max_bytes else None
                rows.append((found.key, found.identity, found.label, where, size, why))
            if len(rows) == _BATCH:
                batches.append(entries_batch(rows))
                rows.clear()
        return pa.Table.from_batches([*batches, entries_batch(rows)], ENTRIES)

    def part_records(self, part: Part) -> Iterator[Record | Damage]:
        """See `KeyedReader`."""
        for found in read_samples(Window(part.path), part.path, self.max_bytes):
            if isinstance(found, Damage):
                yield found
            elif found.image.size > self.max_bytes:
                what = f"sample {found.key}: an image of {found.image.size:,} bytes, too large"
                yield Damage(part.path, found.image.start, what)
            else:
                yield Record(found.data, found.label, found.identity, found.key)

    def fetch(self, sources: Sequence[str]) -> list[bytes | Damage]:
        """See `KeyedReader`.

        Raises:
            UserError: for a place that is none of this set.
        """
        wanted: dict[str, list[int]] = {}
        ranges: list[tuple[int, int]] = []
        for number, source in enumerate(sources):
            place = _LOCATOR.fullmatch(source)
            if place is None or place[1] in (".", ".."):
                raise UserError(f"{self.path}: {source!r} is no place in it")
            wanted.setdefault(place[1], []).append(number)
            ranges.append((int(place[2]), int(place[3])))
        found: dict[int, bytes | Damage] = {}
        for name, numbers in wanted.items():
            blob = self._blob(name)
            for number, data in zip(
                numbers, blob.read_many([ranges[number] for number in numbers]), strict=True
            ):
                offset, length = ranges[number]
                whole = len(data) == length
                found[number] = data if whole else Damage(blob.path, offset, "the file ends before")
        return [found[number] for number in range(len(sources))]

    def _blob(self, name: str) -> Blob:
        if name not in self._blobs:
            if len(self._blobs) == _OPEN:
                self._blobs.pop(next(iter(self._blobs)))
            whole = is_folder(self.path)
            if not whole and name != self.path.rpartition("/")[2]:
                raise UserError(f"{self.path}: {name!r} is no tar of this set")
            self._blobs[name] = Blob(storage.join(self.path, name) if whole else self.path)
        return self._blobs[name]

    def _files(self) -> list[storage.FileInfo]:
        """The tars, in natural order."""
        if not is_folder(self.path):
            where, inner = storage.filesystem(self.path)
            info = where.get_file_info(inner)
            return [
                storage.FileInfo(
                    path=self.path,
                    name=self.path.rpartition("/")[2],
                    size=info.size,
                    mtime_ns=info.mtime_ns or 0,
                    is_file=True,
                )
            ]
        try:
            listed = storage.listdir(self.path)
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: cannot be listed ({error})") from error
        files = [info for info in listed if info.is_file and info.name[0] not in "._"]
        # One whose first header is damaged must not go unnoticed, so a name is taken at its word.
        others = [info for info in files if not info.name.endswith(".tar")]
        with ThreadPoolExecutor(_THREADS) as threads:  # a request each on an object store
            heads = list(threads.map(lambda info: Blob(info.path).read(0, MAGIC_AT + 5), others))
        for info, head in zip(others, heads, strict=True):
            if head.startswith(GZIP) and info.name.endswith((".gz", ".tgz")):
                raise UserError(f"{info.path}: compressed with gzip; unpack it (gunzip)")
        tars = [info for info in files if info.name.endswith(".tar")]
        tars += [info for info, head in zip(others, heads, strict=True) if head.endswith(MAGIC)]
        if not tars:
            raise UserError(f"{self.path}: no tar in it")
        return sorted(tars, key=lambda info: natural(info.name))


class TarSetWriter:
    """Writes a folder of shards, KEY the label and which of its images it is; and `index.json`.

    Attributes:
        by_label: False; a number is held for each label.
    """

    by_label = False

    def __init__(self, path: str) -> None:
        """See `raypipe.formats.open_writer`."""
        os.makedirs(path)
        self._path = path
        self._of_label: Counter[int] = Counter()
        self._count = 0
        self._file: BinaryIO | None = None
        self._shard: Shard | None = None

    def write(self, record: Record) -> None:
        """See `raypipe.formats.Writer`."""
        if self._shard is None:
            name = f"{training_set.shard_name(self._count // SHARD_SIZE)}.tar"
            self._file = open(os.path.join(self._path, name), "wb")  # noqa: SIM115  (see _close)
            self._shard = Shard(self._file)
        key = f"{record.label:07d}_{self._of_label[record.label]:04d}"
        about = {
            "identity_id": record.identity,
            "image_id": record.image_id,
            "label": record.label,
        }
        self._shard.write(key, record.image, record.label, about)
        self._of_label[record.label] += 1
        self._count += 1
        if self._count % SHARD_SIZE == 0:
            self._close()

    def finish(self) -> None:
        """See `raypipe.formats.Writer`."""
        self._close()
        ranges = training_set.shard_ranges(self._count, SHARD_SIZE)
        training_set.write_tar_index(self._path, [len(part) for part in ranges])

    def _close(self) -> None:
        if self._shard and self._file:
            self._shard.close()
            self._file.close()
        self._shard = None
