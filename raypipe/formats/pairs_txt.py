"""Verification sets as folders in the layout of LFW: `pairs.txt`, and images.

An image is `NAME/NAME_0001.jpg`. A line `NAME 1 2` is two images of one person, a line
`NAME 1 OTHER 3` of two people (vis-www.cs.umass.edu/lfw/README.txt, 3c). The first line says
`10 300`: ten folds, each of 300 pairs of one person and then 300 of two; or, as in LFW's
development sets, one number.
"""

import hashlib
import io
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
from pyarrow import fs

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import MAX_BYTES
from raypipe.formats.blob import Blob
from raypipe.formats.pair_set import PairSet, contiguous
from raypipe.images import extension

LIST = "pairs.txt"
_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "pgm", "ppm")
_THREADS = 16
_BLOCK = 256
_LONGEST = 1024  # characters of a line
_NUMBER = re.compile(r"[0-9]{1,9}")
_In = TypeVar("_In")
_Out = TypeVar("_Out")


class _Photo(NamedTuple):
    person: str
    number: int

    @property
    def key(self) -> str:
        return f"{self.person}/{self.number:04d}"


class _Line(NamedTuple):
    number: int
    first: _Photo
    second: _Photo


class _Album:
    """The images of a folder, each read once, as they are asked for."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._files, self._inner = storage.filesystem(root)
        self._local = isinstance(self._files, fs.LocalFileSystem)
        self._real = os.path.realpath(self._inner)

    def read(self, wanted: dict[_Photo, int]) -> Iterator[bytes]:
        """The bytes of photographs, each with the line that wants it, in their order."""
        people = list(dict.fromkeys(photo.person for photo in wanted))
        listed = dict(zip(people, self._each(self._list, people), strict=True))
        found = [self._find(photo, line, listed[photo.person]) for photo, line in wanted.items()]
        return self._each(self._load, found)

    def _each(self, function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
        if self._local:
            return map(function, items)
        with ThreadPoolExecutor(_THREADS) as threads:  # a request takes tens of milliseconds
            return iter(list(threads.map(function, items)))

    def _list(self, person: str) -> dict[str, fs.FileInfo]:
        """File infos of a person's folder by name."""
        selector = fs.FileSelector(f"{self._inner}/{person}", allow_not_found=True)
        try:
            return {info.base_name: info for info in self._files.get_file_info(selector)}
        except OSError as error:
            raise UserError(f"{self._root}/{person}: cannot be listed ({error})") from error

    def _find(self, photo: _Photo, line: int, listed: dict[str, fs.FileInfo]) -> fs.FileInfo:
        stem = f"{photo.person}_{photo.number:04d}"
        where = f"{self._root}/{LIST}: line {line}: {photo.person}/{stem}"
        info = next((listed[n] for e in _ENDINGS if (n := f"{stem}.{e}") in listed), None)
        if info is None:
            raise UserError(f"{where}.jpg: no such file (nor .png, .bmp, ...)")
        outside = (
            self._local
            and os.path.commonpath([self._real, os.path.realpath(info.path)]) != self._real
        )
        if info.type != fs.FileType.File or outside:
            raise UserError(f"{where}: no file of this folder")
        if info.size > MAX_BYTES:
            raise UserError(f"{where}: {info.size:,} bytes, more than the {MAX_BYTES:,} allowed")
        return info

    def _load(self, info: fs.FileInfo) -> bytes:
        try:
            with self._files.open_input_stream(info.path, compression=None) as stream:
                return stream.read(MAX_BYTES)
        except OSError as error:
            raise UserError(f"{self._root}: {info.path}: cannot be read ({error})") from error


def content(path: str) -> bytes:
    """The bytes of a file."""
    blob = Blob(path)
    return blob.read(0, blob.size)


def fields_of(data: bytes, path: str) -> Iterator[tuple[int, list[str]]]:
    """Numbers, from 1, and fields of the lines that have any."""
    text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", newline="\n")
    number = 0
    try:
        for number, line in enumerate(text, 1):
            if len(line) > _LONGEST:
                raise UserError(f"{path}: line {number}: {len(line):,} characters")
            line = line.strip()
            fields = line.split("\t") if "\t" in line else line.split()
            if fields:
                yield number, [field.strip() for field in fields]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: after line {number}: not a text in UTF-8 ({error})") from None


def _photo(person: str, number: str, where: str) -> _Photo:
    if person in ("", ".", "..") or "/" in person or "\0" in person:
        raise UserError(f"{where}: {person[:40]!r} is no name of a person's folder")
    if not _NUMBER.fullmatch(number):
        raise UserError(f"{where}: {number[:40]!r} is no number of an image")
    return _Photo(person, int(number))


def _pair(number: int, fields: list[str], path: str) -> _Line:
    where = f"{path}: line {number}"
    if len(fields) == 3:
        person, first, second = fields
        return _Line(number, _photo(person, first, where), _photo(person, second, where))
    if len(fields) == 4:
        person, first, other, second = fields
        return _Line(number, _photo(person, first, where), _photo(other, second, where))
    raise UserError(
        f"{where}: {len(fields)} fields; expected NAME and two numbers, or NAME NUMBER NAME NUMBER"
    )


class _List:
    """`pairs.txt`, and what has been read of it.

    Attributes:
        header: the numbers of its first line, if it has them.
        keys: a number for every image that occurs, in the order of first appearance.
        order: two numbers a pair.
        same: 1 or 0 a pair.
    """

    def __init__(self, root: str) -> None:
        self.path = storage.join(root, LIST)
        self.data = content(self.path)
        self.header: list[int] = []
        self.keys: dict[str, int] = {}
        self.order = array("q")
        self.same = bytearray()
        self._album = _Album(root)

    def images(self) -> Iterator[bytes]:
        """Reads the list and, block by block, each image when it appears for the first time.

        A list of images that are not there ends at the first of them, however long it is.
        """
        lines = fields_of(self.data, self.path)
        _, fields = next(lines, (0, []))
        if len(fields) <= 2 and all(_NUMBER.fullmatch(field) for field in fields):
            self.header = [int(field) for field in fields]
        else:
            lines = fields_of(self.data, self.path)
        while block := list(islice(lines, _BLOCK)):
            wanted: dict[_Photo, int] = {}
            for number, fields in block:
                pair = _pair(number, fields, self.path)
                for photo in (pair.first, pair.second):
                    if photo.key not in self.keys:
                        self.keys[photo.key] = len(self.keys)
                        wanted[photo] = number
                    self.order.append(self.keys[photo.key])
                self.same.append(len(fields) == 3)
            yield from self._album.read(wanted)

    def folds(self) -> np.ndarray | None:
        """int32 (P,), where the header states them; only after all images.

        Raises:
            UserError: where the pairs are not those of the header.
        """
        pairs = len(self.same)
        if not pairs:
            raise UserError(f"{self.path}: no pairs")
        if len(self.header) < 2:
            # The number of pairs of each kind (LFW's pairsDevTest.txt), or of all.
            if self.header and pairs not in (self.header[0], 2 * self.header[0]):
                raise UserError(
                    f"{self.path}: line 1 says {self.header[0]:,}, but there are {pairs:,} pairs"
                )
            return None
        folds, half = self.header
        if pairs != folds * half * 2:
            raise UserError(
                f"{self.path}: line 1 says {folds} folds of {half} and {half} pairs, "
                f"but there are {pairs:,} pairs"
            )
        same = np.frombuffer(self.same, np.uint8).reshape(folds, -1).sum(axis=1)
        if np.any(same != half):
            fold = int(np.argmax(same != half))
            raise UserError(
                f"{self.path}: line 1 says {half} pairs of one person in each fold, "
                f"but fold {fold} has {same[fold]}"
            )
        return np.repeat(np.arange(folds, dtype=np.int32), 2 * half)


def read_pairs_txt(root: str) -> PairSet:
    """Reads a folder with LFW's `pairs.txt`; an image is called "NAME/0001".

    Raises:
        UserError: where the list is damaged, or an image is not there.
    """
    found = _List(root)
    images = list(found.images())
    folds, names = found.folds(), list(found.keys)
    return PairSet(
        images=[images[i] for i in found.order],
        issame=np.frombuffer(found.same, bool),
        folds=folds,
        ids=[names[i] for i in found.order],
    )


def digest_pairs_txt(root: str) -> str:
    """Hex SHA-256 of the list and of the images in it."""
    found = _List(root)
    whole = hashlib.sha256(found.data)
    for image in found.images():
        whole.update(hashlib.sha256(image).digest())
    return whole.hexdigest()


def write_pairs_txt(
    root: str, images: Sequence[bytes], issame: np.ndarray, folds: np.ndarray | None
) -> None:
    """Makes a folder with LFW's `pairs.txt`, from which the same images and pairs are read.

    Equal images are one file. People are numbered: images are of one person where pairs say so,
    be it through others.

    Raises:
        UserError: where an image is of no format that has a file extension, or where folds are
            stated that the list cannot state.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    numbers: dict[bytes, int] = {}
    order = np.array([numbers.setdefault(image, len(numbers)) for image in images])
    first, second = order[0::2], order[1::2]
    joined = coo_array(
        (np.ones(int(issame.sum()), bool), (first[issame], second[issame])), (len(numbers),) * 2
    )
    people = connected_components(joined, directed=False)[1]
    names, shown = [], np.zeros(len(numbers), int)
    for image, person in zip(numbers, people, strict=True):
        shown[person] += 1
        ending = extension(image)
        if ending is None:
            raise UserError(
                f"image {images.index(image)} is neither JPEG nor PNG nor the like, and gets no "
                "file name; write bin, xz or parquet"
            )
        name = f"person_{person:06d}"
        names.append((name, int(shown[person])))
        os.makedirs(os.path.join(root, name), exist_ok=True)
        with open(os.path.join(root, name, f"{name}_{shown[person]:04d}.{ending}"), "wb") as file:
            file.write(image)
    with open(os.path.join(root, LIST), "w", encoding="utf-8", newline="\n") as text:
        text.write(_header(issame, folds))
        for a, b, same in zip(first, second, issame, strict=True):
            (name, one), (other, two) = names[a], names[b]
            text.write(f"{name}\t{one}\t{two}\n" if same else f"{name}\t{one}\t{other}\t{two}\n")


def _header(issame: np.ndarray, folds: np.ndarray | None) -> str:
    """First line of a list: its folds where all are alike, else the number of pairs.

    There is always one, for published readers skip it unseen (davidsandberg/facenet, src/lfw.py).
    """
    asked = contiguous(len(issame)) if folds is None else folds
    count = len(np.unique(asked))
    half = len(issame) // (2 * count)
    fold = np.repeat([True, False], half)
    if np.array_equal(asked, contiguous(len(issame), count)) and np.array_equal(
        issame, np.tile(fold, count)
    ):
        return f"{count}\t{half}\n"
    if not np.array_equal(asked, contiguous(len(issame))):
        raise UserError("pairs.txt cannot state these folds; write parquet")
    return f"{len(issame)}\n"
