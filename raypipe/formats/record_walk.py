"""The way from record to record through a file that may be damaged.

A record that is not whole is named by its offset, and the walk goes on at the next aligned magic
word that begins a record, as dmlc-core's `recordio_split.cc` finds the beginning of a split.
"""

import numpy as np

from raypipe.formats.blob import Blob
from raypipe.formats.record_chunks import (
    FIRST,
    HEADER,
    LAST,
    LENGTH,
    MAGIC,
    MIDDLE,
    PAIR,
    PEEK,
    WHOLE,
    WORD,
    Fault,
    Head,
    Span,
    parse_head,
)
from raypipe.images import extension

PAGE = 4096  # read at once where only the headers of large records are wanted
_LARGE = 2**16  # a window that is not given up for a look elsewhere
_ENDINGS = {"jpg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}
_NEVER = 2**63 - 1
_NOTHING = np.zeros(0, np.int64)
_SMALLEST = PAIR.size + HEADER.size  # a record with an image takes more
_FLAGS = 256  # more labels than that are not taken for a header where one is guessed


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
        self._ahead = Window(blob, PEEK) if block > _LARGE else self.window
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
        stop, size, start = found
        end = min(stop + -stop % 4, self._size)
        follows = end >= self._size or self._begins(end)
        inner = self._listed_from(at + 1)
        if self.block > PAGE or not follows:
            inner = self._next(at + PAIR.size, end)
        if inner < end and self._begins(inner):
            self.at = self._next(inner, self._stop)
            return [Fault(at, f"a record of {size:,} bytes that reaches into the next one")]
        # Where no header follows, either that is damaged or the record's length.
        listed = self._listed_from(end) == end
        if not (
            follows or listed or self._was_header(end) or self._is_whole(at, stop, start, size)
        ):
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
        """End of the data, size and first bytes of the record at an offset, if it is whole."""
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
            if not split:
                return end, size, bytes(start)
            end += -end % 4
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
                start += WORD + follows[PAIR.size : PAIR.size + length]
                del start[PEEK - PAIR.size :]
            size += 4 + length
            split = kind == MIDDLE

    def _next(self, at: int, stop: int) -> int:
        """The first offset in [at, stop) where a record begins, else `stop`."""
        at += -at % 4
        while at < stop:
            data = self.window.get(at, 4096 if stop - at > 4096 else stop - at + 4)
            place = data.find(WORD)
            while place >= 0:
                if place % 4 == 0 and at + place < stop and self._begins(at + place):
                    return at + place
                place = data.find(WORD, place + 1)
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
        if data[:4] == WORD[: len(data)]:
            return True
        if len(data) < PEEK:
            return False
        flag, _, _, id2 = HEADER.unpack_from(data, PAIR.size)
        # Any size: only the label is looked at.
        return flag < _FLAGS and id2 == 0 and isinstance(parse_head(data[8:], LENGTH), Head)

    def _is_whole(self, at: int, stop: int, start: bytes, size: int) -> bool:
        """Whether the image of a record ends as images of its kind do, as far as that is known."""
        head = parse_head(start, size)
        if isinstance(head, str):
            return False
        kind = extension(self._look(at + PAIR.size + head.begin, 12))
        ending = _ENDINGS.get(kind or "", b"")
        return self._look(stop - len(ending), len(ending)) == ending


def _is_start(head: bytes) -> bool:
    """Whether bytes are the header of a record's first chunk."""
    return len(head) >= PAIR.size and head[:4] == WORD and head[7] >> 5 in (WHOLE, FIRST)
