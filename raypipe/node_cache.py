"""Weights on the disk of this node: what lies in an object store or on a hub is fetched once.

However many actors of a node ask for a file, one fetches it and the others wait. Files of an object
store go to the folder that RAYPIPE_CACHE names, else to ~/.cache/raypipe:

    SHA-256 OF THE URI/SHA-256 OF SIZES AND TIMES/NAME

An older version of a file is deleted when a newer one is fetched, and what nobody used for a month
when anything is. Files of the Hugging Face hub (hf://) go to the cache of huggingface_hub, whose
place HF_HOME names, and which fetches once, too.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from filelock import FileLock, Timeout
from pyarrow import fs

from raypipe import storage
from raypipe.errors import UserError, first_line

FOLDER = "RAYPIPE_CACHE"
T = TypeVar("T")
_UNFINISHED = ".part"
_CHUNK = 16 << 20  # bytes; each is a request to the object store
_UNUSED_SECONDS = 30 * 24 * 3600
_HUB = "hf://"
_HUB_FILE = re.compile(_HUB + r"(?:(datasets|spaces)/)?([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
_HUB_SECONDS = 5.0


def local(path: str) -> str:
    """The path of a file on this node, fetched where it is a URI and not here in its newest form.

    Args:
        path: of a file; a local one is not looked at. A file of the hub is
            hf://OWNER/REPOSITORY/FILE, with @REVISION behind the repository and datasets/ before
            the owner where it is of one; what is in the hub's cache is not asked for again.

    Raises:
        UserError: where there is no such file, it cannot be read, or the disk is full.
    """
    if path.startswith(_HUB):
        return _hub_file(path)
    if not storage.is_uri(path):
        return path.removeprefix("file://")
    name = path.rsplit("/", 1)[-1]
    return os.path.join(_fetched(path, {name: path}), name)


def local_folder(path: str, names: Iterable[str]) -> str:
    """The path of a folder on this node with some of the files of a remote one; else as `local`.

    Args:
        path: URI of a folder of an object store.
        names: of files in it, such as "unet/config.json".
    """
    path = path.rstrip("/")
    inside = path.rsplit("/", 1)[-1]
    files = {f"{inside}/{name}": storage.join(path, name) for name in names}
    return os.path.join(_fetched(path, files), inside)


def from_hub(
    repository: str, revision: str | None, fetch: Callable[[bool], T], kind: str = "model"
) -> T:
    """What `fetch` finds in the hub's cache (True), or else on the hub (False).

    Raises:
        UserError: where it is in neither, or there is no hub within seconds.
    """
    from huggingface_hub import HfApi

    try:
        return fetch(True)
    except (OSError, ValueError):  # not there, or no id that a hub allows
        pass
    try:
        # A download repeats requests and may wait for long; this one answers or gives up.
        HfApi().repo_info(repository, revision=revision, repo_type=kind, timeout=_HUB_SECONDS)
        return fetch(False)
    except Exception as error:  # of the HTTP client, the hub and diffusers
        raise UserError(
            f"not in the cache of the hub, and could not be fetched ({first_line(error)})"
        ) from error


def _hub_file(path: str) -> str:
    from huggingface_hub import hf_hub_download

    match = _HUB_FILE.fullmatch(path)
    if match is None:
        raise UserError(f"{path}: no file of a hub; expected {_HUB}OWNER/REPOSITORY/FILE")
    folder, repository, revision, name = match.groups()
    kind = (folder or "models").removesuffix("s")

    def fetch(cached: bool) -> str:
        return hf_hub_download(
            repository, name, revision=revision, repo_type=kind, local_files_only=cached
        )

    try:
        return from_hub(repository, revision, fetch, kind)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _fetched(uri: str, files: Mapping[str, str]) -> str:
    """The folder of this node that holds the newest version of some files.

    Args:
        uri: what the entry is called after.
        files: name in the folder → URI.
    """
    root = os.environ.get(FOLDER) or os.path.expanduser("~/.cache/raypipe")
    entry = os.path.join(root, _short_digest(uri))
    found = {name: _look(path) for name, path in files.items()}
    stamps = sorted((name, info.size, info.mtime_ns) for name, info in found.items())
    folder = os.path.join(entry, _short_digest(repr(stamps)))
    try:
        os.makedirs(root, exist_ok=True)
        with FileLock(f"{entry}.lock"):
            if not _is_whole(folder, found):
                shutil.rmtree(entry, ignore_errors=True)  # older, or of a fetch that was killed
                _drop_unused(root)
                try:
                    _fetch(folder + _UNFINISHED, files, found)
                    os.rename(folder + _UNFINISHED, folder)
                finally:
                    shutil.rmtree(folder + _UNFINISHED, ignore_errors=True)
            os.utime(entry)
    except OSError as error:
        raise UserError(
            f"{uri}: cannot be fetched to {root} ({first_line(error)}); {FOLDER} names the folder"
        ) from error
    return folder


def _short_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _look(path: str) -> fs.FileInfo:
    where, inner = storage.filesystem(path)
    try:
        info = where.get_file_info(inner)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    if info.type != fs.FileType.File:
        raise UserError(f"{path}: no such file")
    return info


def _is_whole(folder: str, found: Mapping[str, fs.FileInfo]) -> bool:
    paths = {os.path.join(folder, name): info.size for name, info in found.items()}
    return all(os.path.exists(path) and os.path.getsize(path) == paths[path] for path in paths)


def _fetch(folder: str, files: Mapping[str, str], found: Mapping[str, fs.FileInfo]) -> None:
    for name, path in files.items():
        target = os.path.join(folder, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with open(target, "wb") as file:
            for piece in storage.chunks(path, _CHUNK):
                file.write(piece)
        if (size := os.path.getsize(target)) != found[name].size:
            raise OSError(f"{size:,} of {found[name].size:,} bytes arrived")


def _drop_unused(root: str) -> None:
    """Deletes entries that nobody used for a month and nobody holds now."""
    for entry in os.scandir(root):
        if entry.is_dir() and time.time() - entry.stat().st_mtime > _UNUSED_SECONDS:
            try:
                with FileLock(f"{entry.path}.lock", timeout=0):
                    shutil.rmtree(entry.path, ignore_errors=True)
            except Timeout:
                pass
