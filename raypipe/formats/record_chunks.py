"""RecordIO as bytes: chunks, the records they make up, and the header of an image.

A chunk is a magic word, a word of 3 bits of kind and 29 of length, the data, and zeros up to a
multiple of four; all little-endian. Where the data of a record holds the magic word at a multiple
of four, it is left out and the record split there, so that an aligned magic word in a sound file is
always the beginning of a chunk (dmlc-core, `recordio.cc` and `recordio_split.cc`). The record of an
image begins with flag, label, id and id2; if the flag is n > 0, n labels follow and `label` is 0
(mxnet 1.9, `python/mxnet/recordio.py`).
"""

import struct
from typing import NamedTuple

from raypipe.errors import UserError

MAGIC = 0xCED7230A
LENGTH = 2**29 - 1
MAX_LABEL = 2**24  # float32 tells no neighbours apart beyond
WHOLE, FIRST, MIDDLE, LAST = range(4)
PAIR = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
# What is read of a record to tell its label: chunk header, image header, first label.
PEEK = PAIR.size + HEADER.size + 4
WORD = MAGIC.to_bytes(4, "little")


class Span(NamedTuple):
    """A record: where its chunks are in a file, [offset, end), and what its header says.

    Attributes:
        offset: of its first chunk, in bytes.
        end: of its last chunk with the zeros after it.
        size: bytes of the record itself.
        head: its header.
    """

    offset: int
    end: int
    size: int
    head: "Head"


class Fault(NamedTuple):
    """What is wrong with a record, and where it begins."""

    offset: int
    what: str


class Head(NamedTuple):
    """What the header of a record says.

    Attributes:
        label: class; None for a record without image that has two labels, with which InsightFace
            keeps the range of keys of all images and of each identity.
        begin: where in the record the image begins.
    """

    label: int | None
    begin: int


def parse_head(head: bytes, size: int) -> Head | str:
    """Reads the header of an image from a record's first bytes; a text says what is wrong."""
    if size < HEADER.size:
        return f"a record of {size} bytes, too short for the header of an image"
    flag, label = struct.unpack_from("<If", head)
    begin = HEADER.size + 4 * flag
    if begin > size:
        return f"{flag:,} labels in a record of {size:,} bytes"
    if flag == 2 and begin == size:
        return Head(None, begin)
    if flag:
        (label,) = struct.unpack_from("<f", head, HEADER.size)
    if not 0 <= label <= MAX_LABEL or label != int(label):
        return f"label {label:g}, which is no whole number from 0 to {MAX_LABEL:,}"
    return Head(int(label), begin)


def encode(record: bytes) -> bytes:
    """The chunks of a record, byte for byte as mxnet writes them.

    Raises:
        UserError: for a record of 2**29 bytes or more.
    """
    if len(record) > LENGTH:
        raise UserError(f"an image of {len(record):,} bytes; RecordIO holds up to {LENGTH:,}")
    found = []
    begin, at = 0, record.find(WORD)
    while at >= 0:
        if at % 4:
            at = record.find(WORD, at + 1)
            continue
        kind = MIDDLE if begin else FIRST
        found += [PAIR.pack(MAGIC, kind << 29 | at - begin), record[begin:at]]
        begin = at + 4
        at = record.find(WORD, begin)
    length = len(record) - begin
    kind = LAST if begin else WHOLE
    return b"".join(
        [*found, PAIR.pack(MAGIC, kind << 29 | length), record[begin:], bytes(-length % 4)]
    )


def decode(data: bytes) -> bytes | None:
    """The record of which these are the chunks, None where they are not."""
    found = bytearray()
    view = memoryview(data)
    at = 0
    while at + PAIR.size <= len(data):
        magic, word = PAIR.unpack_from(data, at)
        kind, begin, end = word >> 29, at + PAIR.size, at + PAIR.size + (word & LENGTH)
        allowed = (MIDDLE, LAST) if at else (WHOLE, FIRST)
        if magic != MAGIC or kind not in allowed or end > len(data):
            return None
        if kind == WHOLE:
            return data[begin:end]
        if at:
            found += WORD
        found += view[begin:end]
        if kind == LAST:
            return bytes(found)
        at = end + -end % 4
    return None
