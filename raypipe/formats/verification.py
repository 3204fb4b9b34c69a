"""Verification sets: encoded images in pairs, and whether each pair shows one person.

Read are the pickles that InsightFace publishes as `.bin` (Python 3 bytes, numpy arrays and Python 2
strings), the same compressed as `.xz` (HaiyuWu/SOTA-Face-Recognition-Train-and-Test), a folder with
LFW's `pairs.txt`, that repository's folder with `{name}.npy` and `issame.txt`, and raypipe's own
Parquet. Which it is, the content tells.
"""

from collections.abc import Sequence

import numpy as np

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats.detect import PAIR_FORMATS, is_folder, kind_of
from raypipe.formats.pair_pickles import read_pickle, write_pickle
from raypipe.formats.pair_pixels import npy_files, read_npy
from raypipe.formats.pair_rows import open_parquet, read_parquet, write_parquet
from raypipe.formats.pair_set import PairSet, checked, contiguous
from raypipe.formats.pairs_txt import digest_pairs_txt, read_pairs_txt, write_pairs_txt
from raypipe.formats.staging import staged
from raypipe.manifest import digest_of

_READERS = {
    "pickle": read_pickle,
    "pairs": read_pairs_txt,
    "npy": read_npy,
    "parquet": read_parquet,
}


def read_pairs(path: str) -> tuple[list[bytes], np.ndarray]:
    """Reads a verification set in any format that raypipe knows.

    Args:
        path: local path or URI of a file or a folder.

    Returns:
        2P encoded images, pair i being images[2i] and images[2i + 1], as the bytes they are in the
        file (pixels of a `.npy` as PNG); and bool (P,), whether both show one person.

    Raises:
        UserError: where it is no verification set, is damaged, or holds more than images and truth
            values; nothing in a pickle is ever run.
    """
    found = load(path)
    return found.images, found.issame


def load(path: str) -> PairSet:
    """As `read_pairs`, with the folds and names that the file states.

    Raises:
        UserError: as `read_pairs`.
    """
    form = _form(path)
    found = _READERS[form](path)
    checked(found.images, found.issame, path)
    return found


def is_pair_set(path: str) -> bool:
    """Whether a path holds a verification set, which is told without reading its images.

    Raises:
        UserError: where nothing is there, or nothing that raypipe reads.
    """
    kind, _ = kind_of(path)
    if kind == "parquet" and not is_folder(path):
        return {"first", "second", "same"} <= set(open_parquet(path).schema_arrow.names)
    return kind == "pairs"


def digest(path: str) -> str:
    """Hex SHA-256 of a set's content: of the file, or of the files of a folder that belong to it.

    Raises:
        UserError: where one is missing.
    """
    form = _form(path)
    if form == "pairs":
        return digest_pairs_txt(path)
    if form == "npy":
        return digest_of([storage.sha256_file(file) for file in npy_files(path)])
    return storage.sha256_file(path)


def _form(path: str) -> str:
    kind, _ = kind_of(path)
    folder = is_folder(path)
    if kind == "parquet" and not folder:
        return "parquet"
    if kind != "pairs":
        raise UserError(
            f"{path}: no verification set; expected a .bin or .xz, a Parquet file of pairs, or a "
            "folder with the images and pairs.txt, or with a .npy and issame.txt"
        )
    if not folder:
        return "pickle"
    return "pairs" if storage.exists(storage.join(path, "pairs.txt")) else "npy"


def write_pairs(
    path: str,
    images: Sequence[bytes],
    issame: np.ndarray,
    format: str,
    *,
    folds: np.ndarray | None = None,
    ids: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
) -> None:
    """Writes a verification set; equal sets give equal files.

    Args:
        path: local path or URI that must not exist yet.
        images: 2P encoded images; pair i is images[2i] and images[2i + 1].
        issame: bool (P,), whether both show one person.
        format: "bin" (a pickle as InsightFace publishes them, protocol 4), "xz" (the same
            compressed), "pairs" (a folder with LFW's pairs.txt) or "parquet" (raypipe's own).
        folds: int (P,), rising; ten contiguous folds where not stated. Only Parquet can hold any.
        ids: 2P names of the images for Parquet; without them, equal images get an equal number.
        groups: P groups of people for Parquet; other formats cannot hold them.

    Raises:
        UserError: where the set is no set, the format unknown or unable to hold its folds, or
            something lies at the path already.
    """
    issame = checked(images, np.asarray(issame, bool), path)
    if format not in PAIR_FORMATS:
        raise UserError(f"unknown format {format!r} of pairs; known: {', '.join(PAIR_FORMATS)}")
    other = folds is not None and not np.array_equal(folds, contiguous(len(issame)))
    if other and format in ("bin", "xz"):
        raise UserError(
            f"{path}: the folds of this set are not ten contiguous ones of equal size, which every "
            f"reader of {format} takes them to be; write parquet"
        )
    with staged(path) as local:
        if format == "pairs":
            write_pairs_txt(local, images, issame, folds)
        elif format == "parquet":
            write_parquet(local, images, issame, folds, ids, groups)
        else:
            write_pickle(local, images, issame, compressed=format == "xz")


def convert_pairs(source: str, path: str, format: str) -> int:
    """Writes a set that lies somewhere in another format, with its folds; to Parquet also with its
    names and groups.

    Args:
        source: what `read_pairs` reads.
        path, format: as in `write_pairs`.

    Returns:
        How many pairs it has.

    Raises:
        UserError: as `read_pairs` and `write_pairs`.
    """
    found = load(source)
    write_pairs(
        path,
        found.images,
        found.issame,
        format,
        folds=found.folds,
        ids=found.ids,
        groups=found.groups,
    )
    return len(found.issame)
