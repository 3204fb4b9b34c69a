"""IJB-B and IJB-C as InsightFace distributes them: lists in `meta/`, and loose crops of faces.

`*_face_tid_mid.txt` says which template and which medium (photograph or video) an image belongs
to, `*_name_5pts_score.txt` where its face is and how sure the detector was, line by line of the
same images, and `*_template_pair_label.txt` which templates are compared (insightface,
recognition/_evaluation_/ijb). Fields are separated by one space.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv

from raypipe import storage
from raypipe.errors import UserError
from raypipe.manifest import digest_of

META, LOOSE, ALIGNED = "meta", "loose_crop", "aligned"
_MEDIA, _FACES, _PAIRS = "_face_tid_mid.txt", "_name_5pts_score.txt", "_template_pair_label.txt"
_BLOCK = 4 * 2**20  # bytes of a list that are parsed at a time
_POINTS = [f"{axis}{point}" for point in range(1, 6) for axis in "xy"]
_COUNT = re.compile(r"Row #(\d+): Expected \d+ columns, got (\d+)")
_VALUE = re.compile(r"column #(\d+): Row #(\d+): CSV conversion error to [^:]+: (.*)")


@dataclass(frozen=True, kw_only=True)
class TemplatePairs:
    """A protocol of N images in T templates and P pairs of templates.

    Attributes:
        names: images, N, as paths inside their folder.
        templates: int32 (N,), the template of each image: its rank, 0 to T - 1, among the numbers
            that templates have in the file.
        media: int64 (N,), the medium of each image, as numbered in the file.
        points: float32 (N, 5, 2), x and y in pixels of the loose crop: eyes, nose tip, corners of
            the mouth.
        scores: float32 (N,), the detector's.
        first, second: int32 (P,), ranks of templates.
        same: bool (P,), whether both show one person.
    """

    names: list[str]
    templates: np.ndarray
    media: np.ndarray
    points: np.ndarray
    scores: np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


def is_ijb(path: str) -> bool:
    """Whether a folder has the lists of IJB in its `meta/`."""
    entries = storage.listdir(storage.join(path, META))
    return any(entry.name.endswith(_MEDIA) for entry in entries)


def read_ijb(path: str) -> TemplatePairs:
    """Reads the three lists in `meta/` of a folder such as `IJB_release/IJBC`.

    Raises:
        UserError: where a list is missing or damaged, with its line and field; where the lists do
            not name the same images; where there is no pair of one kind.
    """
    names, numbers, media = _read_media(_list(path, _MEDIA))
    points, scores = _read_faces(_list(path, _FACES), names)
    known, templates = np.unique(numbers, return_inverse=True)
    first, second, same = _read_pairs(_list(path, _PAIRS), known)
    return TemplatePairs(
        names=names,
        templates=templates.astype(np.int32),
        media=media,
        points=points,
        scores=scores,
        first=first,
        second=second,
        same=same,
    )


def image_files(path: str, names: list[str]) -> list[str]:
    """Where the images are: in `loose_crop/`, or where there is none, in `aligned/`.

    Raises:
        UserError: where one is missing.
    """
    folder = storage.join(path, LOOSE if is_loose(path) else ALIGNED)
    there = set(_sizes(folder))
    for line, name in enumerate(names, 1):
        if name not in there:
            raise UserError(
                f"{storage.join(folder, name)}: no such file, though line {line} of "
                f"{_list(path, _MEDIA)} names it"
            )
    return [storage.join(folder, name) for name in names]


def is_loose(path: str) -> bool:
    """Whether the images are loose crops, still to be aligned by their points."""
    return storage.exists(storage.join(path, LOOSE))


def digest_ijb(path: str) -> str:
    """Hex SHA-256 of the lists, and of names and sizes of the images (hundreds of thousands).

    Raises:
        UserError: where a list is missing.
    """
    lists = [storage.sha256_file(_list(path, ending)) for ending in (_MEDIA, _FACES, _PAIRS)]
    folder = LOOSE if is_loose(path) else ALIGNED
    return digest_of([lists, folder, _sizes(storage.join(path, folder))])


def _sizes(folder: str) -> dict[str, int]:
    """Path inside the folder → bytes."""
    start = len(folder) + 1
    entries = storage.listdir(folder, recursive=True)
    return {entry.path[start:]: entry.size for entry in entries if entry.is_file}


def _list(path: str, ending: str) -> str:
    folder = storage.join(path, META)
    found = [e.path for e in storage.listdir(folder) if e.name.endswith(ending)]
    if len(found) != 1:
        raise UserError(f"{folder}: expected one *{ending}, found {len(found)}")
    return found[0]


def _batches(path: str, fields: dict[str, pa.DataType]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Lines of a list in batches, each with the number of its first line, from 1."""
    where, inner = storage.filesystem(path)
    line = 1
    try:
        with where.open_input_stream(inner, compression=None) as stream:
            for batch in pa.csv.open_csv(
                stream,
                pa.csv.ReadOptions(column_names=list(fields), block_size=_BLOCK, use_threads=False),
                # Without skipped lines and threads, rows of its errors are lines of the file.
                pa.csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
                pa.csv.ConvertOptions(column_types=fields, null_values=[]),
            ):
                yield line, batch
                line += len(batch)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: {_reason(str(error), list(fields))}") from None


def _reason(message: str, fields: list[str]) -> str:
    """Arrow's message in words of the list."""
    if found := _COUNT.search(message):
        line, count = found.groups()
        wanted = f"{len(fields)} separated by one space: {' '.join(fields)}"
        return f"line {line}: {count} fields; expected {wanted}"
    if found := _VALUE.search(message):
        column, line, reason = found.groups()
        return f"line {line}: {fields[int(column)]}: {reason[:80]}"
    return message


def _read_media(path: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, and int64 (N,) numbers of templates and of media."""
    fields = {"image": pa.string(), "template": pa.int64(), "media": pa.int64()}
    batches = [batch for _, batch in _batches(path, fields)]
    table = pa.Table.from_batches(batches)
    return table["image"].to_pylist(), table["template"].to_numpy(), table["media"].to_numpy()


def _read_faces(path: str, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """float32 (N, 5, 2) points and float32 (N,) scores, of images that must be the given ones."""
    numbers = [*_POINTS, "score"]
    fields = {"image": pa.string(), **dict.fromkeys(numbers, pa.float32())}
    values = []
    read = 0
    for line, batch in _batches(path, fields):
        read += len(batch)
        for i, (found, wanted) in enumerate(
            zip(batch["image"].to_pylist(), names[line - 1 : read], strict=False)
        ):
            if found != wanted:
                raise UserError(
                    f"{path}: line {line + i}: image: {found!r}, but that line of *{_MEDIA} has "
                    f"{wanted!r}; both must list the same images in the same order"
                )
        block = np.stack([batch[name].to_numpy() for name in numbers], axis=1)
        for row, column in np.argwhere(~np.isfinite(block))[:1]:
            value = block[row, column]
            raise UserError(f"{path}: line {line + row}: {numbers[column]}: {value} is no number")
        for row in np.flatnonzero((np.ptp(block[:, :-1].reshape(-1, 5, 2), axis=1) == 0).all(1)):
            raise UserError(f"{path}: line {line + row}: its five points are one; correct them")
        values.append(block)
    if read != len(names):
        raise UserError(f"{path}: {read:,} images, but *{_MEDIA} has {len(names):,}")
    table = np.concatenate(values)
    return table[:, :-1].reshape(-1, 5, 2), table[:, -1]


def _read_pairs(path: str, known: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int32 (P,) ranks of both templates among the known numbers, and bool (P,) labels."""
    fields = {"template": pa.int64(), "second template": pa.int64(), "label": pa.int64()}
    ranks: list[list[np.ndarray]] = [[], []]
    labels = []
    for line, batch in _batches(path, fields):
        for column in range(2):
            numbers = batch[column].to_numpy()
            rank = np.searchsorted(known, numbers).clip(max=len(known) - 1)
            for row in np.flatnonzero(known[rank] != numbers):
                raise UserError(
                    f"{path}: line {line + row}: {[*fields][column]}: {numbers[row]} has no images "
                    f"in *{_MEDIA}"
                )
            ranks[column].append(rank.astype(np.int32))
        label = batch["label"].to_numpy()
        for row in np.flatnonzero((label != 0) & (label != 1)):
            raise UserError(f"{path}: line {line + row}: label: {label[row]} is neither 0 nor 1")
        labels.append(label.astype(bool))
    same = np.concatenate(labels)
    if same.all() or not same.any():
        raise UserError(f"{path}: needs pairs of one person (label 1) and of two (label 0)")
    return np.concatenate(ranks[0]), np.concatenate(ranks[1]), same
