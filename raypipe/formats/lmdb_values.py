"""What the values of face LMDBs hold: msgpack of [image, label] or [image, feature, label].

Written by utils/imagelist2lmdb.py of https://github.com/HaiyuWu/SOTA-Face-Recognition-Train-and-Test
and by scripts/prepare_training_set.py of https://github.com/HaiyuWu/Vec2Face. Heads of thousands of
values are parsed at once: one by one with msgpack takes longer than to read their images. Codes are
those of https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from raypipe.errors import UserError
from raypipe.formats.blob import Blob

HEAD = 9  # bytes of the longest head, that of a 64-bit integer
# A function of byte offsets (n,) that gives the `HEAD` bytes at each, as uint8 (n, HEAD).
Gather = Callable[[np.ndarray], np.ndarray]

_PAIR, _TRIPLE = 0x92, 0x93
# Code → type of the number behind it. Old writers know no `bin`; they put bytes into `str`.
_BYTES = {0xC4: ">u1", 0xC5: ">u2", 0xC6: ">u4", 0xD9: ">u1", 0xDA: ">u2", 0xDB: ">u4"}
_UNSIGNED = {0xCC: ">u1", 0xCD: ">u2", 0xCE: ">u4", 0xCF: ">u8"}
_SIGNED = {0xD0: ">i1", 0xD1: ">i2", 0xD2: ">i4", 0xD3: ">i8"}
_SHORT_BYTES = range(0xA0, 0xC0)  # the code says the length
_SHORT_INTEGERS = range(0x80)
# numpy's loader makes an array of any size that a header asks for, and evaluates the header.
_NPY = re.compile(
    rb"\x93NUMPY(?:\x01\0..|[\x02\x03]\0....)\{'descr': '([<>|][iuf][1248])', "
    rb"'fortran_order': (?:False|True), 'shape': \(([0-9, ]{0,60})\), *\} *\n",
    re.DOTALL,
)


class Values(NamedTuple):
    """Where things are in values; int64 (n,), in the offsets that `parse` was given.

    Attributes:
        image: where it begins.
        size: bytes in the image.
        feature: where the .npy file begins.
        feature_size: bytes in it; 0 where there is none.
        label: class number.
        sound: bool; where it is false, the others mean nothing.
    """

    image: np.ndarray
    size: np.ndarray
    feature: np.ndarray
    feature_size: np.ndarray
    label: np.ndarray
    sound: np.ndarray


def parse(gather: Gather, at: np.ndarray, size: np.ndarray) -> Values:
    """Finds image, feature and label in values, without a look at the bytes of the first two.

    Args:
        at: where the values begin, int64 (n,).
        size: bytes in each, int64 (n,).
    """
    head = gather(at)
    triple = head[:, 0] == _TRIPLE
    sound = triple | (head[:, 0] == _PAIR)
    length, width = _number(head[:, 1:], _BYTES, _SHORT_BYTES)
    image = at + 1 + width
    sound &= (width > 0) & (image + length < at + size)
    after = np.where(sound, image + length, at)
    feature, feature_size = after, np.zeros_like(at)
    if triple.any():
        more, width = _number(gather(after), _BYTES, _SHORT_BYTES)
        sound &= ~triple | ((width > 0) & (after + width + more < at + size))
        feature = after + width
        feature_size = np.where(triple & sound, more, 0)
        after = np.where(triple & sound, feature + more, after)
    label, width = _number(gather(after), _UNSIGNED | _SIGNED, _SHORT_INTEGERS)
    sound &= (width > 0) & (label >= 0) & (after + width == at + size)
    return Values(image, length, feature, feature_size, label, sound)


def integer(data: bytes) -> int | None:
    """The number that is all of a value, or None where it is something else."""
    head = np.zeros((1, HEAD), np.uint8)
    if len(data) > HEAD:
        return None
    head[0, : len(data)] = np.frombuffer(data, np.uint8)
    value, width = _number(head, _UNSIGNED | _SIGNED, _SHORT_INTEGERS)
    return int(value[0]) if width[0] == len(data) > 0 and value[0] >= 0 else None


def _number(head: np.ndarray, codes: dict[int, str], short: range) -> tuple[np.ndarray, np.ndarray]:
    """The number that each head says, and bytes in the head: 0 where it has another code.

    An unsigned number over 2^63 comes out negative.
    """
    first = head[:, 0].astype(np.int64)
    is_short = (first >= short.start) & (first < short.stop)
    value = np.where(is_short, first - short.start, 0)
    width = is_short.astype(np.int64)
    present = np.bincount(first, minlength=256)
    for code, name in codes.items():
        if present[code]:
            rows, kind = first == code, np.dtype(name)
            digits = np.ascontiguousarray(head[rows, 1 : 1 + kind.itemsize])
            value[rows] = digits.view(kind)[:, 0].astype(np.int64)
            width[rows] = 1 + kind.itemsize
    return value, width


def npy(data: bytes) -> np.ndarray | None:
    """The array in a .npy file of numbers (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).

    None where it is something else, or its size is not what its header says.
    """
    match = _NPY.match(data)
    if match is None:
        return None
    kind = np.dtype(match[1].decode())
    shape = [int(size) for size in match[2].decode().split(",") if size.strip().isdigit()]
    count = 1
    for size in shape:
        count *= size
    if match.end() + count * kind.itemsize != len(data):
        return None
    return np.frombuffer(data, kind, offset=match.end()).reshape(shape)


def vector(data: bytes) -> np.ndarray | None:
    """The float32 vector (D,) in a .npy file, or None where it holds something else."""
    array = npy(data)
    if array is None or array.dtype != np.float32 or max(array.shape, default=0) != array.size:
        return None
    return array.reshape(-1)


def read_mask(path: str, count: int) -> np.ndarray:
    """The numbers in a mask, int64.

    Raises:
        UserError: where it is not an array of different numbers from 0 to `count` - 1.
    """
    blob = Blob(path)
    # Numbers that differ are no more than `count`.
    array = npy(blob.read(0, blob.size)) if blob.size <= 8 * count + 2**16 else None
    if array is None or array.ndim != 1 or array.dtype.kind not in "iu":
        raise UserError(
            f"{path}: no mask for this set; expected a .npy file with a 1-D array of whole "
            f"numbers, at most {count:,}, each the number of a record"
        )
    outside = np.flatnonzero((array < 0) | (array >= count))
    if len(outside):
        raise UserError(
            f"{path}: entry {outside[0]} is {array[outside[0]]}, but the records have the numbers "
            f"0 to {count - 1}"
        )
    order = np.argsort(array, kind="stable")
    again = order[1:][np.diff(array[order]) == 0]
    if len(again):
        raise UserError(f"{path}: entry {again.min()} is {array[again.min()]} once more")
    return array.astype(np.int64)
