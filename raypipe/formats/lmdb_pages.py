"""The pages of an LMDB file, read without mapping it and without trusting a byte of it.

The C library maps the file and follows what it finds there: the tests let it die of SIGBUS on a
file that was cut off. It also writes a lock file beside the data, must not be used across a fork,
and reads local files only. Looking keys up takes a B+tree of four kinds of page, so that is here;
files are written with the library.

Layout: `MDB_page`, `MDB_node`, `MDB_db` and `MDB_meta` of libraries/liblmdb/mdb.c in LMDB 0.9, as
a 64-bit little-endian machine writes them (https://github.com/LMDB/lmdb).
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from raypipe.errors import UserError
from raypipe.formats.blob import Blob

# Why a value is not there: the index into `FAULTS` is given as a size of ~index.
MISSING, LOST, CUT, ODD = range(4)
FAULTS = (
    "is missing",
    "is lost with a page that is damaged or cut off",
    "lies beyond the end of the file",
    "is kept in a way that raypipe does not read (sorted duplicates, or a database of its own)",
)
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _META, _DIRTY = 1, 2, 8, 16
_BIG = 1  # the value has pages of its own
_PAGE = 16  # bytes of the header of a page
_NODE = 8
_DB = "IHHQQQQQ"  # pad, flags, depth, branches, leaves, overflow pages, entries, root
# Page number, pad, flags, lower, upper; magic, version, address, map size; the tree of free pages,
# the tree of keys; last page, transaction.
_META_PAGE = struct.Struct(f"<QHHHHIIQQ{_DB}{_DB}QQ")
_SIZES = [256 << k for k in range(8)]
_DEEPEST = 32
_CACHED = 8 << 20
_BRANCHES = 256
_FARTHEST = 2**47  # page number: its byte offset fits into 63 bits


class Leaf(NamedTuple):
    """The leaf page that has the wanted keys [start, stop), or the page that bars the way there."""

    number: int
    start: int
    stop: int
    found: bool


class Nodes(NamedTuple):
    """What leaf pages hold; arrays are int64, one element a key.

    Attributes:
        data: the pages, one after the other.
        whole: bool, one element a page: whether it is one.
        key: where the key begins in `data`.
        key_size: bytes in the key.
        at: byte offset of the value in the file.
        size: bytes in the value; ~index into `FAULTS` where it cannot be read.
    """

    data: bytes
    whole: np.ndarray
    key: np.ndarray
    key_size: np.ndarray
    at: np.ndarray
    size: np.ndarray


class Meta(NamedTuple):
    """What a meta page says: the size of pages, the tree of keys, and which commit wrote it."""

    page_size: int
    flags: int
    depth: int
    entries: int
    root: int
    commit: int


class Pages:
    """Looks keys up. The file is opened on first use, so this can be sent to a worker."""

    def __init__(self, path: str) -> None:
        self.blob = Blob(path)
        self._forget()

    def _forget(self) -> None:
        self._meta: Meta | None = None
        self._newest: Meta | None = None
        self._pages: dict[int, bytes] = {}
        self._branches: dict[int, tuple[list[bytes], list[int]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"blob": self.blob}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.blob = state["blob"]
        self._forget()

    @property
    def meta(self) -> Meta:
        """Where the tree begins.

        Raises:
            UserError: where the file is no LMDB file of the kind that is read here.
        """
        if self._meta is None:
            found = self._metas()
            self._newest = found[0]
            # The commit before is whole in the file too, should the end of the last be cut off.
            self._meta = next((meta for meta in found if self._has_root(meta)), found[0])
        return self._meta

    @property
    def entries(self) -> int:
        """Keys in the file as it was written; not to be trusted."""
        return self.meta.entries if self._newest is None else self._newest.entries

    @property
    def lost_root(self) -> int | None:
        """Byte offset of the root that the last commit wrote, where an older one had to do."""
        meta, newest = self.meta, self._newest
        if newest is None or newest is meta:
            return None
        return newest.root * newest.page_size

    def _metas(self) -> list[Meta]:
        """The one or two sound meta pages, the newer first."""
        path = self.blob.path
        head = self.blob.read(0, _SIZES[-1] + _META_PAGE.size)
        found = []
        # Page 1 lies at the page size, which both pages name.
        for offset in [0, *_SIZES]:
            if len(head) < offset + _META_PAGE.size:
                break
            field = _META_PAGE.unpack_from(head, offset)
            number, flags, magic, version, page_size = (field[i] for i in (0, 2, 5, 6, 9))
            if (
                (magic, version, flags & _META) == (_MAGIC, _VERSION, _META)
                and page_size in _SIZES
                and (number, offset) in ((0, 0), (1, page_size))
            ):
                found.append(Meta(page_size, *(field[i] for i in (18, 19, 23, 24, 26))))
        if not found:
            raise UserError(
                f"{path}: no LMDB file that raypipe reads (version 0.9 of a 64-bit machine); if it "
                "is of another version or machine, copy it there with mdb_dump and here with "
                "mdb_load"
            )
        newest = max(found, key=lambda meta: meta.commit)
        if newest.flags or newest.depth > _DEEPEST:
            raise UserError(f"{path}: damaged, or an LMDB file with a key order of its own")
        return [newest] + [
            meta
            for meta in found
            if meta is not newest and meta[:2] == newest[:2] and meta.depth <= _DEEPEST
        ]

    def _has_root(self, meta: Meta) -> bool:
        if not meta.depth:
            return True
        (page,) = self._read([meta.root], meta.page_size)
        kind = _LEAF if meta.depth == 1 else _BRANCH
        return bool(_slots(page, [meta.root], meta.page_size, kind).whole[0]) if page else False

    def _read(self, numbers: Sequence[int], size: int) -> list[bytes]:
        """Pages by number; an empty one for each that is not all in the file."""
        wanted = sorted({number for number in numbers if number not in self._pages})
        inside = self.blob.size // size
        wanted = [number for number in wanted if number < inside]
        found = self.blob.read_many([(number * size, size) for number in wanted])
        fresh = dict(zip(wanted, found, strict=True))
        result = [fresh.get(number) or self._pages.get(number, b"") for number in numbers]
        self._pages.update(fresh)
        while len(self._pages) * size > _CACHED:
            del self._pages[next(iter(self._pages))]
        return result

    def _branch(self, number: int) -> tuple[list[bytes], list[int]] | None:
        """The keys that part the children of a branch page, and the children."""
        if number in self._branches:
            return self._branches[number]
        size = self.meta.page_size
        (page,) = self._read([number], size)
        slots = _slots(page, [number], size, _BRANCH) if page else None
        if slots is None or not slots.whole[0] or not len(slots.node) or slots.bad:
            return None
        ends = zip(slots.key.tolist(), (slots.key + slots.key_size).tolist(), strict=True)
        keys = [page[start:stop] for start, stop in ends][1:]  # the first has none
        children = (slots.low | slots.flags << 32).tolist()
        while len(self._branches) >= _BRANCHES:
            del self._branches[next(iter(self._branches))]
        self._branches[number] = keys, children
        return keys, children

    def leaves(self, wanted: Sequence[Any], key: Callable[[Any], bytes]) -> list[Leaf]:
        """The leaf pages in which wanted keys are, if they are anywhere.

        Args:
            wanted: what to look up, in the order of its keys.
            key: gives the key of one of them.
        """
        found: list[Leaf] = []
        if self.meta.depth and wanted:
            self._descend(self.meta.root, self.meta.depth, 0, len(wanted), wanted, key, found)
        return found

    # Not a function within `leaves`: one that calls itself would keep `wanted` until the garbage
    # collector comes by, 2 MB each time.
    def _descend(
        self,
        number: int,
        level: int,
        start: int,
        stop: int,
        wanted: Sequence[Any],
        key: Callable[[Any], bytes],
        found: list[Leaf],
    ) -> None:
        # The level falls with each page, so a ring of pages is no trap.
        inside = number < self.blob.size // self.meta.page_size
        branch = self._branch(number) if level > 1 and inside else None
        if branch is None:
            found.append(Leaf(min(number, _FARTHEST), start, stop, level == 1 and inside))
            return
        keys, children = branch
        while start < stop:
            child = bisect_right(keys, key(wanted[start]))
            end = stop
            if child < len(keys):
                end = bisect_left(wanted, keys[child], start + 1, stop, key=key)
            self._descend(children[child], level - 1, start, end, wanted, key, found)
            start = end

    def nodes(self, numbers: Sequence[int]) -> Nodes:
        """What leaf pages hold, all parsed at once."""
        size = self.meta.page_size
        data = b"".join(page or bytes(size) for page in self._read(numbers, size))
        slots = _slots(data, numbers, size, _LEAF)
        start = np.array(numbers, np.uint64)[slots.page].astype(np.int64) * size
        within = slots.node % size + _NODE + slots.key_size  # where in its page the value is,
        big = slots.flags == _BIG  # or the number of the first of the pages that are its own
        eights = np.ndarray((len(data) - 7, 8), np.uint8, data, strides=(1, 1))
        first = eights[np.minimum(slots.key + slots.key_size, len(data) - 8)].view("<u8")[:, 0]
        first = np.minimum(first, _FARTHEST).astype(np.int64)
        at = np.where(big, first * size + _PAGE, start + within)
        length = np.where(at + slots.low > self.blob.size, ~CUT, slots.low)
        length = np.where(slots.flags > _BIG, ~ODD, length)
        length = np.where(within + np.where(big, 8, slots.low) > size, ~LOST, length)
        return Nodes(data, slots.whole, slots.key, slots.key_size, at, length)

    def lookup(self, key: bytes) -> tuple[int, int]:
        """Byte offset and size of the value of a key in the file.

        A size below 0 is ~index into `FAULTS`; the offset is then where the fault is.
        """
        for leaf in self.leaves([key], lambda wanted: wanted):
            at = leaf.number * self.meta.page_size
            if not leaf.found:
                return at, ~LOST
            nodes = self.nodes([leaf.number])
            if not nodes.whole[0]:
                return at, ~LOST
            for i in np.flatnonzero(nodes.key_size == len(key)):
                if nodes.data[nodes.key[i] : nodes.key[i] + len(key)] == key:
                    return int(nodes.at[i]), int(nodes.size[i])
            return at, ~MISSING
        return 0, ~MISSING


class _Slots(NamedTuple):
    """The sound nodes of pages that follow each other in `data`; `whole` has an element a page."""

    whole: np.ndarray
    bad: int
    page: np.ndarray
    node: np.ndarray
    low: np.ndarray
    flags: np.ndarray
    key: np.ndarray
    key_size: np.ndarray


def _slots(data: bytes, numbers: Sequence[int], size: int, kind: int) -> _Slots:
    half = np.frombuffer(data, "<u2").reshape(len(numbers), size // 2)
    stored = np.frombuffer(data, "<u8").reshape(len(numbers), size // 8)[:, 0]
    flags, lower, upper = half[:, 5:8].T.astype(np.int64)
    flags &= ~_DIRTY
    whole = (stored == np.array(numbers, np.uint64)) & (flags == kind)
    whole &= (lower >= _PAGE) & (lower <= upper) & (upper <= size)
    counts = np.where(whole, (lower - _PAGE) // 2, 0)
    page = np.repeat(np.arange(len(numbers)), counts)
    place = np.arange(len(page)) - np.repeat(np.cumsum(counts) - counts, counts)
    offset = half[page, _PAGE // 2 + place].astype(np.int64)
    sound = (offset >= lower[page]) & (offset + _NODE <= size) & (offset % 2 == 0)
    word = np.where(sound, offset // 2, 0)
    key_size = half[page, word + 3].astype(np.int64)
    sound &= offset + _NODE + key_size <= size
    page, word, key_size, offset = page[sound], word[sound], key_size[sound], offset[sound]
    low, high, flags = (half[page, word + i].astype(np.int64) for i in range(3))
    return _Slots(
        whole=whole,
        bad=int(len(sound) - len(page)),
        page=page,
        node=page * size + offset,
        low=low | high << 16,
        flags=flags,
        key=page * size + offset + _NODE,
        key_size=key_size,
    )
