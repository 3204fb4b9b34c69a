"""Which format a path holds, told by its content; and the classes that read and write each."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from pyarrow import fs

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import Reader, Writer
from raypipe.formats.staging import staged

# Kind → module and class, imported when it is used. A reader is made from (path, source=,
# max_bytes=), that of an LMDB also from mask=.
READERS = {
    "lmdb": ("hsface_lmdb", "LmdbReader"),
    "recordio": ("recordio", "RecordReader"),
    "webdataset": ("webdataset", "TarReader"),
    "parquet": ("parquet", "ParquetReader"),
    "rows": ("face_rows", "FaceRowsReader"),
    "list": ("path_list", "ListReader"),
    "folder": ("image_folder", "ImageFolder"),
}
# Format → module and class. A writer is made from a local path to be made.
WRITERS = {
    "hsface": ("lmdb_writers", "HsfaceWriter"),
    "vec2face": ("lmdb_writers", "Vec2FaceWriter"),
    "insightface": ("record_writers", "InsightfaceWriter"),
    "im2rec": ("record_writers", "Im2recWriter"),
    "webdataset": ("webdataset", "TarSetWriter"),
    "parquet": ("parquet_set", "ParquetSetWriter"),
    "folder": ("path_list", "FolderWriter"),
    "lists": ("training_lists", "ListsWriter"),
}
# Formats of verification sets, which `raypipe.formats.verification` reads and writes.
PAIR_FORMATS = ("bin", "xz", "pairs", "parquet")
FORMATS = (*WRITERS, *PAIR_FORMATS[:-1])
GZIP = b"\x1f\x8b"
_PAGE = 4096
_SAMPLED = 20  # a README or an index may lie beside the shards
_LMDB_MAGIC = bytes.fromhex("dec0efbe")
_RECORD_MAGIC = bytes.fromhex("0a23d7ce")


def kind_of_file(path: str) -> str | None:
    """What a file's first bytes say: a key of `READERS`, "pairs", "gzip", or None.

    "pairs" is a verification set: a pickle or what xz compressed.
    """
    head = storage.read_bytes(path, _PAGE)
    if head[16:20] == _LMDB_MAGIC:
        return "lmdb"
    if head[:4] == _RECORD_MAGIC:
        return "recordio"
    if head[:4] == b"PAR1":
        return "parquet"
    # Of a tar the first headers may be damaged.
    if any(head[at : at + 5] == b"ustar" for at in range(257, len(head), 512)):
        return "webdataset"
    if head[:2] == GZIP:
        return "gzip"
    if head[:6] == b"\xfd7zXZ\0" or head[:1] in (b"\x80", b"("):
        return "pairs"
    if head and b"\0" not in head:
        return "list"
    return None


def kind_of(path: str) -> tuple[str, str]:
    """The kind of a set (a key of `READERS`, or "pairs"), and the path its reader opens.

    Raises:
        UserError: where nothing is there, or nothing that raypipe reads.
    """
    try:
        there = storage.exists(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error})") from error
    if not there:
        raise UserError(f"{path}: no such file or folder")
    if not is_folder(path):
        kind = kind_of_file(path)
        if kind == "gzip":
            raise UserError(f"{path}: compressed with gzip; unpack it (gunzip) and give the result")
        if kind is None:
            raise UserError(
                f"{path}: no format that raypipe reads; expected LMDB, RecordIO, tar, Parquet, "
                "a list of paths, a verification set, or a folder"
            )
        return kind, path
    files, folders = _names(path)
    # A set that raypipe made holds its images in a folder of known name.
    if "rows" in folders and _sample(storage.join(path, "rows")) == "parquet":
        return "rows", path
    for inner, kind in (("parquet", "parquet"), ("data", "parquet"), ("webdataset", "webdataset")):
        if inner in folders and _sample(storage.join(path, inner)) == kind:
            return kind, storage.join(path, inner)
    if "images" in folders and "train.lst" in files:  # as training_lists writes it
        return "folder", storage.join(path, "images")
    if "data.mdb" in files:
        return "lmdb", storage.join(path, "data.mdb")
    if "pairs.txt" in files or "issame.txt" in files:
        return "pairs", path
    for name in files:
        if name.endswith(".rec"):
            return "recordio", storage.join(path, name)
    sample = None if folders else _sample(path)
    if sample == "gzip":
        raise UserError(f"{path}: its files are compressed with gzip; unpack them (gunzip)")
    return sample or "folder", path


def _names(path: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, sorted; those in UTF-8."""
    where, inner = storage.filesystem(path)
    if isinstance(where, fs.LocalFileSystem):  # of which pyarrow lists no name that is not UTF-8
        try:
            with os.scandir(inner) as found:
                listed = [(entry.name, entry.is_dir()) for entry in found]
        except OSError as error:
            raise UserError(f"{path}: cannot be listed ({error})") from error
    else:
        listed = [(entry.name, not entry.is_file) for entry in storage.listdir(path)]
    named = sorted(entry for entry in listed if entry[0].isprintable())
    return [name for name, folder in named if not folder], [n for n, folder in named if folder]


def _sample(path: str) -> str | None:
    """The kind of the first file of a folder that tells one which comes in many files."""
    shown = [name for name in _names(path)[0] if not name.startswith((".", "_"))]
    packed = None
    for name in shown[:_SAMPLED]:
        kind = kind_of_file(storage.join(path, name))
        if kind in ("parquet", "webdataset"):
            return kind
        if kind == "gzip" and name.endswith((".tar.gz", ".tgz")):
            packed = kind
    return packed


def is_folder(path: str) -> bool:
    """Whether a path is a folder, which on an object store is a prefix of others."""
    where, inner = storage.filesystem(path)
    return not where.get_file_info(inner).is_file


def detect(path: str, *, source: str, max_bytes: int, mask: str | None) -> Reader:
    """See `raypipe.formats.open_reader`."""
    kind, found = kind_of(path)
    if kind == "pairs":
        raise UserError(
            f"{path}: a verification set, not a training set; "
            "raypipe.formats.verification.read_pairs reads it"
        )
    if mask is not None and kind != "lmdb":
        raise UserError(f"{path}: a mask is for an LMDB, this is {kind}")
    more = {"mask": mask} if mask is not None else {}
    return _load(READERS[kind])(found, source=source, max_bytes=max_bytes, **more)


@contextmanager
def writer(path: str, format: str) -> Iterator[Writer]:
    """See `raypipe.formats.open_writer`."""
    if format not in WRITERS:
        raise UserError(f"unknown format {format!r}; known: {', '.join(WRITERS)}")
    # The lists name the images by their absolute paths, which are not where they are staged.
    more = {"place": path} if format == "lists" else {}
    with staged(path) as local:
        made = _load(WRITERS[format])(local, **more)
        yield made
        made.finish()


def _load(entry: tuple[str, str]) -> Callable[..., Any]:
    module, name = entry
    return getattr(import_module(f"raypipe.formats.{module}"), name)
