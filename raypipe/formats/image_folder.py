"""A folder a person, images inside, on any filesystem.

`ROOT/<identity>/<image>` and `ROOT/<identity>/<folder>/<image>` are read; what lies deeper is a
counted rejection, as is every file that is no usable image, and so are files beside the identity
folders: they form one rejected identity, ".", that holds their names. Whether a file is an image is
told by its bytes, never by its name.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import fs

from raypipe import images, storage
from raypipe.errors import UserError
from raypipe.formats import Damage, Listing, Record, Scan, Survey
from raypipe.formats.keyed import Damages, checked
from raypipe.identities import Identity, Image

STRAYS = "."
_THREADS = 16
_AHEAD = 256
_HEAD = 16  # bytes that tell an image
_REASONS = {
    "folder": "ingest:nested",
    "outside": "ingest:outside",
    "other": "ingest:unreadable",
}


class _Entry(NamedTuple):
    name: str
    kind: Literal["file", "folder", "outside", "other"]
    size: int = 0
    mtime_ns: int = 0


def natural(name: str) -> tuple[list[str | int], str]:
    """Sort key by which "2" comes before "10"; the name itself decides between "2" and "02"."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _is_text(name: str) -> bool:
    """False for a name that is not UTF-8, which Python reads with lone surrogates in it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _escape(name: str) -> str:
    """A name that can be written down: bytes that are not UTF-8 become \\xNN."""
    if _is_text(name):
        return name
    return os.fsencode(name.replace("\\", "\\\\")).decode("utf-8", "backslashreplace")


def _unique(names: list[str]) -> list[str]:
    """The names escaped; an escaped one gives way to a real name that looks the same."""
    taken = set(names)
    found = []
    for name in names:
        escaped = _escape(name)
        while escaped != name and escaped in taken:
            escaped += "'"
        taken.add(escaped)
        found.append(escaped)
    return found


class ImageFolder:
    """Reads a folder of identity folders."""

    def __init__(self, root: str, *, source: str, max_bytes: int) -> None:
        """See `raypipe.formats.open_reader`."""
        self.root = root
        self.source = source
        self.max_bytes = max_bytes
        self._files, self._inner = storage.filesystem(root)
        self._local = isinstance(self._files, fs.LocalFileSystem)
        try:
            kind = self._files.get_file_info(self._inner).type
        except OSError as error:
            raise UserError(f"{root}: cannot be opened ({error})") from error
        if kind == fs.FileType.NotFound:
            raise UserError(f"{root}: no such folder")
        if kind != fs.FileType.Directory:
            raise UserError(f"{root}: a file; expected a folder with one folder of images a person")
        if self._local:
            self._inner = os.path.realpath(self._inner)

    def survey(self) -> Survey:
        """See `raypipe.formats.Reader`; labels count the identities that have an image."""
        sizes = []
        for listing in self.identities():
            heads = self._loaded(listing.identity.images, _HEAD)
            sizes.append(sum(images.extension(image.data) is not None for image in heads))
        counts = np.array([size for size in sizes if size], np.int64)
        return Survey(sum(sizes), np.arange(len(counts), dtype=np.int64), counts, True)

    def records(self) -> Iterator[Record]:
        """See `raypipe.formats.Reader`. What is no image is damage at byte 0."""
        damages, label = Damages(), 0
        for listing in self.identities():
            identity = listing.identity
            found = False
            for image in self._few_at_a_time(identity.images):
                reason = image.rejected
                if reason is None and images.extension(image.data) is None:
                    reason = "ingest:not_an_image"
                if reason is None:
                    found = True
                    yield Record(image.data, label, identity.identity_id, image.image_id)
                else:
                    damages.add(Damage(f"{self.root}/{image.source}", 0, reason))
            label += found
        damages.tell()

    def stamp(self) -> None:
        """See `raypipe.formats.Reader`: only a listing tells."""

    def identities(self, scan: Scan = map) -> Iterator[Listing]:
        """Every identity folder in natural order; `index` is its place there.

        Raises:
            UserError: where there is no identity folder, or the folder may not be listed.
        """
        try:
            entries = self._entries("")
        except OSError as error:
            raise UserError(f"{self.root}: cannot be listed ({error})") from error
        folders = [e for e in entries if e.kind in ("folder", "outside")]
        strays = [e for e in entries if e.kind in ("file", "other")]
        if not any(e.kind == "folder" for e in folders):
            found = f"{len(strays)} loose files" if strays else "nothing"
            raise UserError(
                f"{self.root}: no identity in it, only {found}; "
                "expected one folder of images a person"
            )
        ids = _unique([e.name for e in folders])
        # A remote listing takes tens of milliseconds, so some are on their way at any time.
        with ThreadPoolExecutor(_THREADS) as threads:
            for start in range(0, len(folders), _AHEAD):
                part = slice(start, start + _AHEAD)
                yield from threads.map(
                    self._list, folders[part], ids[part], range(start, start + _AHEAD)
                )
        if strays:
            reasons: list[str | None] = ["ingest:stray"] * len(strays)
            yield self._listing(STRAYS, len(folders), strays, reasons, "ingest:stray")

    def read(self, identity: Identity) -> Identity:
        """Fills in the bytes of every image that the listing did not reject.

        An identity that is left without an image is rejected as "ingest:empty".

        Raises:
            UserError: where the filesystem fails, which is not the fault of one image.
        """
        found = [
            image if image.rejected else checked(image, image.data, self.max_bytes)
            for image in self._loaded(identity.images, self.max_bytes + 1)
        ]
        rejected = identity.rejected
        if rejected is None and all(image.rejected for image in found):
            rejected = "ingest:empty"
        return replace(identity, images=found, rejected=rejected)

    def _few_at_a_time(self, listed: list[Image]) -> Iterator[Image]:
        for start in range(0, len(listed), _AHEAD):
            yield from self._loaded(listed[start : start + _AHEAD], self.max_bytes + 1)

    def _loaded(self, listed: list[Image], most: int) -> list[Image]:
        """Listed images, each with at most so many of its bytes."""
        if self._local:
            return [self._load(image, most) for image in listed]
        with ThreadPoolExecutor(_THREADS) as threads:
            return list(threads.map(lambda image: self._load(image, most), listed))

    def _list(self, folder: _Entry, identity_id: str, index: int) -> Listing:
        if folder.kind == "outside":
            return self._listing(identity_id, index, [], [], "ingest:outside")
        rejected = None if _is_text(folder.name) else "ingest:bad_name"
        try:
            entries = self._walk(folder.name)
        except PermissionError:
            return self._listing(identity_id, index, [], [], "ingest:unreadable")
        except OSError as error:
            raise UserError(f"{self.root}/{identity_id}: cannot be listed ({error})") from error
        reasons = [rejected or self._fault(entry) for entry in entries]
        return self._listing(identity_id, index, entries, reasons, rejected)

    def _fault(self, entry: _Entry) -> str | None:
        """Why an entry of an identity is not to be read."""
        if not _is_text(entry.name):
            return "ingest:bad_name"
        if entry.kind == "file":
            return "ingest:file_too_large" if entry.size > self.max_bytes else None
        return _REASONS[entry.kind]

    def _walk(self, folder: str) -> list[_Entry]:
        """What lies in an identity folder and in the folders inside it, named from the identity."""
        found = []
        for entry in self._entries(folder):
            if entry.kind != "folder":
                found.append(entry)
                continue
            for inner in self._entries(f"{folder}/{entry.name}"):
                found.append(inner._replace(name=f"{entry.name}/{inner.name}"))
        return sorted(found, key=lambda entry: natural(entry.name))

    def _listing(
        self,
        identity_id: str,
        index: int,
        entries: list[_Entry],
        reasons: list[str | None],
        rejected: str | None,
    ) -> Listing:
        digest = hashlib.sha256(f"{identity_id}\0{rejected}".encode())
        image_ids = _unique([entry.name for entry in entries])
        for image_id, entry in zip(image_ids, entries, strict=True):
            digest.update(f"\0{image_id}\0{entry.kind}\0{entry.size}\0{entry.mtime_ns}".encode())
        listed = [
            Image(image_id=image_id, data=b"", source=f"{identity_id}/{image_id}", rejected=reason)
            for image_id, reason in zip(image_ids, reasons, strict=True)
        ]
        identity = Identity(
            identity_id=identity_id,
            index=index,
            source=self.source,
            images=listed,
            rejected=rejected,
        )
        return Listing(identity, digest.hexdigest())

    def _entries(self, path: str) -> list[_Entry]:
        """A folder's entries in natural order. `path` is from the root, "" the root itself."""
        whole = f"{self._inner}/{path}".rstrip("/")
        if self._local:
            # pyarrow fails on a name that is not UTF-8, and does not tell links from files.
            with os.scandir(whole) as found:
                entries = [self._local_entry(entry) for entry in found]
        else:
            listed = self._files.get_file_info(fs.FileSelector(whole))
            entries = [_remote_entry(info, whole) for info in listed]
        return sorted(entries, key=lambda entry: natural(entry.name))

    def _local_entry(self, entry: os.DirEntry[str]) -> _Entry:
        try:
            if entry.is_symlink() and not self._inside(entry.path):
                return _Entry(entry.name, "outside")
            if entry.is_dir():
                return _Entry(entry.name, "folder")
            if entry.is_file():
                info = entry.stat()
                return _Entry(entry.name, "file", info.st_size, info.st_mtime_ns)
        except OSError:  # a ring of links, or gone since
            pass
        return _Entry(entry.name, "other")

    def _inside(self, path: str) -> bool:
        return os.path.realpath(path).startswith(self._inner.rstrip("/") + "/")

    def _load(self, image: Image, most: int) -> Image:
        if image.rejected is not None:
            return image
        path = f"{self._inner}/{image.source}"
        climbs = any(part in ("", ".", "..") for part in image.source.split("/"))
        if climbs or (self._local and not self._inside(path)):
            return replace(image, rejected="ingest:outside")
        try:
            # compression=None: by default a name that ends in .gz is unpacked, without a limit
            with self._files.open_input_stream(path, compression=None) as stream:
                return replace(image, data=stream.read(most))
        except (FileNotFoundError, PermissionError):
            return replace(image, rejected="ingest:unreadable")
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{self.root}/{image.source}: cannot be read ({error})") from error


def _remote_entry(info: fs.FileInfo, folder: str) -> _Entry:
    if info.base_name in (".", ".."):
        return _Entry(info.base_name, "outside")
    if info.path == folder:  # how pyarrow lists a key with "//" after the folder; it cannot open it
        return _Entry("/", "other")
    if info.type == fs.FileType.Directory:
        return _Entry(info.base_name, "folder")
    return _Entry(info.base_name, "file", info.size, info.mtime_ns or 0)
