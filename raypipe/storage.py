"""Files on any filesystem that pyarrow can open: local paths, s3://, gs://.

A path is a string. A local path is absolute or relative to the working directory; anything with a
scheme is a URI. Behind its bucket a URI is taken as it stands: nothing in it is an escape or a
query, for keys hold people's names. Writes are atomic: a local file is written beside its place and
renamed, an object store shows an object only when its upload is complete.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raypipe.errors import UserError

_SCHEME = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]*://")
_PARTS = re.compile(r"([^:]+://[^/]*)(.*)", re.DOTALL)  # scheme and bucket; key
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp$")  # of a file that `write_bytes` is writing


@dataclass(frozen=True, kw_only=True)
class FileInfo:
    """One entry of a listing; `path` can be passed to every function here."""

    path: str
    name: str
    size: int
    mtime_ns: int
    is_file: bool


def is_uri(path: str) -> bool:
    """Whether the path names a remote filesystem."""
    return bool(_SCHEME.match(path)) and not path.startswith("file://")


def filesystem(path: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of a path and the path inside it.

    Raises:
        UserError: for a scheme that pyarrow does not know.
    """
    if not is_uri(path):
        return fs.LocalFileSystem(), absolute(path)
    match = _PARTS.fullmatch(path)
    assert match is not None
    try:
        found, base = _bucket(match[1])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ImportError, OSError) as error:
        raise UserError(f"{path}: not a path raypipe can open ({error})") from error
    return found, (base.rstrip("/") + match[2]).rstrip("/") or "/"


@lru_cache
def _bucket(uri: str) -> tuple[fs.FileSystem, str]:
    """Of each bucket one client: every new one looks for its region and keys, and connects anew."""
    return fs.FileSystem.from_uri(uri)


def absolute(path: str) -> str:
    """The path for a process that works in another folder, such as a worker of Ray Train."""
    return path if is_uri(path) else os.path.abspath(path.removeprefix("file://"))


def join(root: str, *parts: str) -> str:
    """Appends parts to a path or URI."""
    return "/".join([root.rstrip("/"), *(part.strip("/") for part in parts)])


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    where, inner = filesystem(path)
    return where.get_file_info(inner).type != fs.FileType.NotFound


def read_bytes(path: str, limit: int | None = None) -> bytes:
    """The bytes of a file, at most `limit` of them.

    Raises:
        UserError: where there is no such file.
    """
    where, inner = filesystem(path)
    try:
        with where.open_input_stream(inner, compression=None) as stream:
            return stream.read(limit) if limit is not None else stream.read()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file that is either whole or not there.

    Raises:
        UserError: where the disk is full or the folder may not be written.
    """
    where, inner = filesystem(path)
    local = isinstance(where, fs.LocalFileSystem)
    target = f"{inner}.{uuid.uuid4().hex}.tmp" if local else inner
    try:
        if local:  # an object store has no folders to make
            where.create_dir(inner.rsplit("/", 1)[0], recursive=True)
        with where.open_output_stream(target, compression=None) as stream:
            stream.write(data)
            if local:
                stream.flush()
        if local:
            os.replace(target, inner)
    except OSError as error:
        if local and os.path.exists(target):
            os.unlink(target)
        raise UserError(f"{path}: cannot be written ({error})") from error


def read_json(path: str) -> Any:
    """Parses a JSON file.

    Raises:
        UserError: where it is missing or not JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid JSON ({error})") from error


def write_json(path: str, value: Any) -> None:
    """Writes JSON with sorted keys, so that equal values are equal files."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def listdir(path: str, recursive: bool = False) -> list[FileInfo]:
    """Entries of a folder, sorted by path; a missing folder has none."""
    where, inner = filesystem(path)
    entries = where.get_file_info(fs.FileSelector(inner, recursive=recursive, allow_not_found=True))
    prefix = path.rstrip("/")
    base = inner.rstrip("/")
    return sorted(
        (
            FileInfo(
                path=prefix + entry.path[len(base) :],
                name=entry.base_name,
                size=entry.size or 0,
                mtime_ns=entry.mtime_ns or 0,
                is_file=entry.type == fs.FileType.File,
            )
            for entry in entries
        ),
        key=lambda entry: entry.path,
    )


def delete(path: str) -> None:
    """Deletes a file or a tree; a missing one is fine."""
    where, inner = filesystem(path)
    kind = where.get_file_info(inner).type
    if kind == fs.FileType.File:
        where.delete_file(inner)
    elif kind == fs.FileType.Directory:
        where.delete_dir(inner)


def delete_unfinished(root: str) -> None:
    """Deletes what `write_bytes` left below a folder when it was killed; nobody may write there.

    In an object store nothing that can be listed is left.
    """
    if not is_uri(root):
        for entry in listdir(root, recursive=True):
            if entry.is_file and _UNFINISHED.search(entry.name):
                delete(entry.path)


def chunks(path: str, size: int = 1 << 20) -> Iterator[bytes]:
    """The bytes of a file, piece by piece."""
    where, inner = filesystem(path)
    try:
        with where.open_input_stream(inner, compression=None) as stream:
            while piece := stream.read(size):
                yield piece
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error


def sha256_file(path: str) -> str:
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    for piece in chunks(path):
        digest.update(piece)
    return digest.hexdigest()
