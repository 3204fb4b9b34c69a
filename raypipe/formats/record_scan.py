"""Many records of a `.rec` at a time, by numpy.

In a sound file every aligned magic word begins a chunk, so one comparison finds all records in a
window, and a few more show which of them are whole, unsplit and follow on each other. That is 3 to
5 times as fast as a loop in Python. Everything else is left to the `Walker`.
"""

from typing import NamedTuple

import numpy as np

from raypipe.formats.record_chunks import HEADER, MAGIC, MAX_LABEL, PAIR
from raypipe.formats.record_index import Keys
from raypipe.formats.record_walk import Walker

_HEADS = (PAIR.size + HEADER.size) // 4  # words before the first of several labels


class Run(NamedTuple):
    """Records that follow on each other.

    Attributes:
        keys: int64 (n,).
        offsets: int64 (n,), where they begin in the file.
        ends: int64 (n,), where they end.
        labels: int64 (n,); -1 for a record without image that has two labels.
        begins: int64 (n,), where their images begin in `data`.
        stops: int64 (n,), where those end.
        data: bytes of a window of the file.
    """

    keys: np.ndarray
    offsets: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    begins: np.ndarray
    stops: np.ndarray
    data: bytes


class Scanner:
    """Takes a walker over runs of records."""

    def __init__(self, walker: Walker, keys: Keys, stop: int) -> None:
        self._walker = walker
        self._keys = keys
        self._stop = stop
        self._data: bytes | None = None

    def run(self) -> Run | None:
        """Moves over the records that come next, None where `Walker.step` must."""
        window, at = self._walker.window, self._walker.at
        window.get(at, 1)
        self._scan()
        first = int(self._starts.searchsorted(at - window.base))
        if first >= len(self._starts) - 1 and window.base < at:  # goes on beyond the window
            window.load(at)
            self._scan()
            first = 0
        base = window.base
        if first >= len(self._starts) or self._starts[first] != at - base:
            return None
        last = int(self._bad[self._bad.searchsorted(first)])
        last = min(last, int(self._starts.searchsorted(self._stop - base)))
        if last == first:
            return None
        offsets = self._starts[first:last] + base
        keys = self._keys.take(offsets)
        some = slice(first, first + len(keys))
        if not len(keys):
            return None
        ends = self._ends[some] + base
        self._walker.at = int(ends[-1])
        return Run(
            keys,
            offsets[: len(keys)],
            ends,
            self._labels[some],
            self._begins[some],
            self._stops[some],
            window.data,
        )

    def _scan(self) -> None:
        """Finds the records in the window; offsets are from its beginning."""
        data = self._walker.window.data
        if data is self._data:
            return
        self._data = data
        words = np.frombuffer(data, "<u4", len(data) // 4)
        # More than there is room for images are left for later, which bounds the memory.
        starts = np.flatnonzero(words == MAGIC)[: len(words) // _HEADS + 2]
        if len(starts) and starts[-1] + 1 == len(words):
            starts = starts[:-1]
        self._starts = starts * 4
        # The last record has no successor in the window, and is never good.
        follows = starts[1:]
        starts = starts[:-1]
        length = words[starts + 1].astype(np.int64)
        most = len(words) - 1
        flag = words[np.minimum(starts + 2, most)].astype(np.int64)
        place = np.where(flag == 0, starts + 3, starts + _HEADS)
        labels = words.view("<f4")[np.minimum(place, most)]
        head = HEADER.size + 4 * flag
        good = length >= head  # false as well for a split record, by the next line
        good &= starts + 2 + (length + 3) // 4 == follows
        if len(follows):
            good &= words[follows + 1] >> 30 == 0
        with np.errstate(invalid="ignore"):
            good &= (labels >= 0) & (labels <= MAX_LABEL) & (labels == np.floor(labels))
        self._bad = np.append(np.flatnonzero(~good), len(starts))
        ranges = (flag == 2) & (length == head)
        good &= ~ranges
        self._labels = np.where(good, labels, -1).astype(np.int64)
        self._begins = self._starts[:-1] + PAIR.size + head
        self._stops = self._starts[:-1] + PAIR.size + length
        self._ends = self._starts[1:]
