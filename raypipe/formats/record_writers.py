"""Writes RecordIO in both layouts: a folder with `train.rec`, `.idx` and `.lst`.

The bytes of `.rec` and `.idx` are those that mxnet 1.9.1 writes for the same records. The list has
im2rec's columns (`key TAB label TAB identity/image`), from which readers learn who each label is;
a slash, tab or line break in a name becomes "_" in it.
"""

import os
import re
import struct
from array import array
from typing import BinaryIO

from raypipe import images
from raypipe.errors import UserError
from raypipe.formats import Record
from raypipe.formats.record_chunks import HEADER, MAX_LABEL, encode

_BUFFER = 1 << 20
_ALIGNED = (112, 112)  # height and width where no image tells
_UNFIT = re.compile(r"[/\\\t\r\n]")


class _Files:
    """A `.rec` with its index and list, written from front to back."""

    def __init__(self, path: str) -> None:
        os.makedirs(path)
        self.path = path
        self.count = 0
        self._at = 0
        self._rec = self._open("train.rec")
        self._idx = self._open("train.idx")
        self._lst = self._open("train.lst")

    def _open(self, name: str) -> BinaryIO:
        return open(os.path.join(self.path, name), "xb", buffering=_BUFFER)

    def image(self, key: int, record: Record) -> None:
        """Adds an image and its name."""
        label = record.label
        if not 0 <= label <= MAX_LABEL:
            raise UserError(
                f"{record.image_id}: label {label:,}; RecordIO holds labels as float32, which "
                f"counts from 0 to {MAX_LABEL:,}"
            )
        self.add(key, HEADER.pack(0, label, key, 0) + record.image)
        person, name = (_UNFIT.sub("_", text) for text in (record.identity, record.image_id))
        line = f"{key}\t{label:f}\t{person}/{name}\n"
        self._lst.write(line.encode("utf-8", "backslashreplace"))
        self.count += 1

    def range(self, key: int, start: int, stop: int) -> None:
        """Adds a record without image, which holds a range of keys."""
        self.add(key, _range(key, start, stop))

    def add(self, key: int, record: bytes) -> None:
        self._idx.write(b"%d\t%d\n" % (key, self._at))
        self._at += self._rec.write(encode(record))

    def finish(self, first: bytes = b"") -> None:
        """Closes the files, after the first record has been replaced by one of the same size."""
        if first:
            self._rec.seek(0)
            self._rec.write(encode(first))
        for file in (self._rec, self._idx, self._lst):
            file.close()


class Im2recWriter:
    """im2rec's layout: keys from 0, every record an image.

    Attributes:
        by_label: False; labels may come in any order.
    """

    by_label = False

    def __init__(self, path: str) -> None:
        """A writer to a local folder to be made."""
        self._files = _Files(path)

    def write(self, record: Record) -> None:
        """See `raypipe.formats.Writer`."""
        self._files.image(self._files.count, record)

    def finish(self) -> None:
        """See `raypipe.formats.Writer`."""
        self._files.finish()


class InsightfaceWriter:
    """InsightFace's layout: ranges of keys in the first record and in one an identity.

    Images have the keys from 1 on. A label that has no images gets an empty range. Eight bytes an
    identity are held in memory. `property` has number of classes, height and width.

    Attributes:
        by_label: True; labels must not fall.
    """

    by_label = True

    def __init__(self, path: str) -> None:
        """A writer to a local folder to be made."""
        self._files = _Files(path)
        self._files.range(0, 0, 0)  # how many identities there are is known at the end
        self._starts = array("q")  # key of each label's first image
        self._size = _ALIGNED

    def write(self, record: Record) -> None:
        """See `raypipe.formats.Writer`."""
        key = self._files.count + 1
        if record.label < len(self._starts) - 1:
            raise UserError(
                f"{record.image_id}: label {record.label} after {len(self._starts) - 1}; "
                "InsightFace's layout needs rising labels"
            )
        if key == 1:
            self._size = _size(record)
        self._files.image(key, record)
        self._starts.extend([key] * (record.label + 1 - len(self._starts)))

    def finish(self) -> None:
        """See `raypipe.formats.Writer`."""
        end = self._files.count + 1
        stops = [*self._starts[1:], end]
        for label, (start, stop) in enumerate(zip(self._starts, stops, strict=False)):
            self._files.range(end + label, start, stop)
        identities = len(self._starts)
        self._files.finish(_range(0, end, end + identities))
        height, width = self._size
        with open(os.path.join(self._files.path, "property"), "x") as file:
            file.write(f"{identities},{height},{width}\n")


def _range(key: int, start: int, stop: int) -> bytes:
    return HEADER.pack(2, 0, key, 0) + struct.pack("<2f", start, stop)


def _size(record: Record) -> tuple[int, int]:
    """Height and width of an image; those of an aligned crop where it cannot be decoded."""
    try:
        return images.decode(record.image, source=record.image_id).shape[:2]
    except images.ImageError:
        return _ALIGNED
