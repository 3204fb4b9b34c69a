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

import numpy as np

from raypipe.errors import UserError
from raypipe.formats.blob import Blob
from raypipe.images import extension

MAGIC = 0xCED7230A
LENGTH = 2**29 - 1
PAGE = 4096  # read at once where only the headers of large records are wanted
MAX_LABEL = 2**24  # float32 tells no neighbours apart beyond
WHOLE, FIRST, MIDDLE, LAST = range(4)
PAIR = struct.Struct("<II")
HEADER = struct.Struct("<IfQQ")
# What is read of a record to tell its label: chunk header, image header, first label.
PEEK = PAIR.size + HEADER.size + 4
_MAGIC = MAGIC.to_bytes(4, "little")
_ENDINGS = {"jpg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}
_NEVER = 2**63 - 1
_NOTHING = np.zeros(0, np.int64)
_SMALLEST = PAIR.size + HEADER.size  # a record with an image takes more
_FLAGS = 256  # more labels than that are not taken for a header where one is guessed


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
    begin, at = 0, record.find(_MAGIC)
    while at >= 0:
        if at % 4:
            at = record.find(_MAGIC, at + 1)
            continue
        kind = MIDDLE if begin else FIRST
        found += [PAIR.pack(MAGIC, kind << 29 | at - begin), record[begin:at]]
        begin = at + 4
        at = record.find(_MAGIC, begin)
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
            found += _MAGIC
        found += view[begin:end]
        if kind == LAST:
            return bytes(found)
        at = end + -end % 4
    return None


class Window:
    """The part of a file that was read last, at least a block of it.

    Attributes:
        base: offset of its first byte in the file.
        data: its bytes.
    """

    def __init__(self, blob: Blob, block: int) -> None:
        self.base = 0
        self.data = b""
        self._blob = blob
        self._block = block

    def get(self, offset: int, length: int) -> bytes:
        """Bytes of the file, fewer at its end."""
        at = offset - self.base
        ends = self.base + len(self.data) == self._blob.size
        if at < 0 or (at + length > len(self.data) and not ends):
            self.load(offset, length)
            at = 0
        return self.data[at : at + length]

    def load(self, offset: int, length: int = 0) -> None:
        """Moves the window to an offset."""
        self.data = self._blob.read(offset, max(length, self._block))
        self.base = offset


class Walker:
    """Walks over the records of a file that begin in [start, stop), and over what is damaged.

    Time and memory are linear in the bytes walked over, whatever they hold.

    Attributes:
        at: offset of the next record; `stop` or more at the end.
        block: bytes read at least at a time.
        window: what was read last.
    """

    def __init__(
        self, blob: Blob, start: int, stop: int, *, block: int, listed: np.ndarray = _NOTHING
    ) -> None:
        """A walk from the first record at `start` or after it.

        Args:
            blob: the file.
            start: 0 or where a record is looked for.
            stop: no record that begins here or later is walked over.
            block: how many bytes are read at least at a time; up to `PAGE`, images are skipped.
            listed: int64, rising offsets at which an index says records begin: those from `start`
                on, up to the first one from `stop` on.
        """
        self.window = Window(blob, block)
        self.block = block
        self._ahead = Window(blob, PEEK) if block > 2**16 else self.window
        self._size = blob.size
        self._stop = stop
        self._listed = listed
        self._faulty = -_SMALLEST
        self.at = self._next(start, stop) if start else 0

    def step(self) -> list[Span | Fault]:
        """Moves over one record: it, or what is wrong with it, and what is wrong right after it.

        Faults closer together than the smallest image takes are one.
        """
        found = self._step()
        told: list[Span | Fault] = []
        for item in found:
            if isinstance(item, Span):
                told.append(item)
                continue
            if item.offset >= self._faulty + _SMALLEST:
                told.append(item)
            self._faulty = item.offset
        return told

    def _step(self) -> list[Span | Fault]:
        at = self.at
        found = self._record(at)
        if isinstance(found, Fault):
            self.at = self._next(at + 4, self._stop)
            return [found]
        end, size, start = found
        follows = end >= self._size or self._begins(end)
        inner = self._listed_from(at + 1)
        if self.block > PAGE or not follows:
            inner = self._next(at + PAIR.size, end)
        if inner < end and self._begins(inner):
            self.at = self._next(inner, self._stop)
            return [Fault(at, f"a record of {size:,} bytes that reaches into the next one")]
        # Where no header follows, either that is damaged or the record's length.
        listed = self._listed_from(end) == end
        if not (follows or listed or self._was_header(end) or self._is_whole(at, start, size)):
            self.at = self._next(end, self._stop)
            return [Fault(at, f"no record follows its {size:,} bytes")]
        head = parse_head(start, size)
        whole = Fault(at, head) if isinstance(head, str) else Span(at, end, size, head)
        if follows:
            self.at = end
            return [whole]
        self.at = self._next(end + 4, self._stop)
        if end >= self._stop and listed:  # the next part says so
            return [whole]
        return [whole, Fault(end, "no header of a record")]

    def _record(self, at: int) -> tuple[int, int, bytes] | Fault:
        """End, size and first bytes of the record at an offset, if its chunks are whole."""
        head = self.window.get(at, PEEK)
        if not _is_start(head):
            return Fault(at, "no header of a record")
        length = PAIR.unpack_from(head)[1] & LENGTH
        split = head[7] >> 5 == FIRST
        size, part = length, at
        start = bytearray(head[PAIR.size : PAIR.size + length])
        while True:
            if part + PAIR.size + length > self._size:
                return Fault(at, f"a record whose {length:,} bytes run past the end of the file")
            end = part + PAIR.size + length
            end = min(end + -end % 4, self._size)
            if not split:
                return end, size, bytes(start)
            # A record holds no beginning of another. Were that not checked at each step, a file of
            # many beginnings with one long tail would take quadratic time.
            inner = self._next(part + PAIR.size, end)
            if inner < end:
                return Fault(at, f"a split record that has no part at byte {end}")
            follows = self.window.get(end, PEEK)
            if len(follows) < PAIR.size:
                return Fault(at, "a split record that the end of the file cuts off")
            magic, word = PAIR.unpack_from(follows)
            kind, length, part = word >> 29, word & LENGTH, end
            if magic != MAGIC or kind not in (MIDDLE, LAST):
                return Fault(at, f"a split record that has no part at byte {end}")
            if len(start) < PEEK - PAIR.size:
                start += _MAGIC + follows[PAIR.size : PAIR.size + length]
                del start[PEEK - PAIR.size :]
            size += 4 + length
            split = kind == MIDDLE

    def _next(self, at: int, stop: int) -> int:
        """The first offset in [at, stop) where a record begins, else `stop`."""
        at += -at % 4
        while at < stop:
            data = self.window.get(at, 4096 if stop - at > 4096 else stop - at + 4)
            place = data.find(_MAGIC)
            while place >= 0:
                if place % 4 == 0 and at + place < stop and self._begins(at + place):
                    return at + place
                place = data.find(_MAGIC, place + 1)
            if len(data) <= PAIR.size:
                break
            at += (len(data) - 3) // 4 * 4
        return stop

    def _begins(self, at: int) -> bool:
        return at % 4 == 0 and _is_start(self._look(at, PAIR.size))

    def _look(self, at: int, length: int) -> bytes:
        """Bytes of the file, without giving up a large window for them."""
        place = at - self.window.base
        if place >= 0 and place + length <= len(self.window.data):
            return self.window.data[place : place + length]
        return self._ahead.get(at, length)

    def _listed_from(self, at: int) -> int:
        """The first listed offset from one on."""
        place = int(self._listed.searchsorted(at))
        return int(self._listed[place]) if place < len(self._listed) else _NEVER

    def _was_header(self, at: int) -> bool:
        """Whether what is no header looks like one that was damaged, by what is left of it."""
        data = self._look(at, PEEK)
        if data[:4] == _MAGIC[: len(data)]:
            return True
        if len(data) < PEEK:
            return False
        flag, _, _, id2 = HEADER.unpack_from(data, PAIR.size)
        # Any size: only the label is looked at.
        return flag < _FLAGS and id2 == 0 and isinstance(parse_head(data[8:], LENGTH), Head)

    def _is_whole(self, at: int, start: bytes, size: int) -> bool:
        """Whether the image of a record ends as images of its kind do, as far as that is known."""
        head = parse_head(start, size)
        if isinstance(head, str):
            return False
        kind = extension(self._look(at + PAIR.size + head.begin, 12))
        ending = _ENDINGS.get(kind or "", b"")
        return self._look(at + PAIR.size + size - len(ending), len(ending)) == ending


def _is_start(head: bytes) -> bool:
    """Whether bytes are the header of a record's first chunk."""
    return len(head) >= PAIR.size and head[:4] == _MAGIC and head[7] >> 5 in (WHOLE, FIRST)
