"""Verification sets as pickles, `.bin` of InsightFace, and compressed, `.xz` of SOTA-FR."""

import lzma
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from raypipe.errors import UserError
from raypipe.formats.blob import Blob
from raypipe.formats.pair_set import PairSet
from raypipe.formats.pickles import Array, PickleError, loads

_XZ_MAGIC = b"\xfd7zXZ\0"
# JPEG does not compress, but an image that stands in many pairs does. A set that unpacks to more
# than so many times its size and some more, or to more than 4 GiB, is made to fill the memory.
_RATIO, _SLACK, _MOST = 100, 8 << 20, 4 << 30
_MEMORY = 80 << 20  # what xz -9 needs is 65 MiB
_STREAMS = 100  # parallel compressors write one for each of their blocks, of 24 MB and more
_PRESET = 0  # the higher ones take longer and make JPEG no smaller
_PIECE = 1 << 20


def read_pickle(path: str) -> PairSet:
    blob = Blob(path)
    data = blob.read(0, blob.size)
    if data.startswith(_XZ_MAGIC):
        data = _decompressed(data, path)
    value = loads(data, path)
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise UserError(f"{path}: not a pair of a list of images and a list of truth values")
    bins, truths = value
    issame = _truths(truths, path)
    if not isinstance(bins, (tuple, list)):
        raise UserError(f"{path}: a {type(bins).__name__} where the list of images should be")
    images = [_image(element, i, path) for i, element in enumerate(bins)]
    return PairSet(images=images, issame=issame)


def _image(element: Any, i: int, path: str) -> bytes:
    if isinstance(element, bytes):
        return element
    what = f"a {type(element).__name__}"
    if isinstance(element, Array):
        try:
            values = element.values()
        except PickleError as error:
            raise UserError(f"{path}: image {i} (pair {i // 2}): {error}") from None
        if values.dtype == np.uint8:
            return element.data
        what = f"an array of {values.dtype}"
    raise UserError(f"{path}: image {i} (pair {i // 2}) is {what}, not bytes or an array of uint8")


def _truths(truths: Any, path: str) -> np.ndarray:
    """bool (P,) of a list or an array of truth values, or of 0 and 1."""
    if isinstance(truths, Array):
        try:
            truths = truths.values().tolist()
        except PickleError as error:
            raise UserError(f"{path}: truth values: {error}") from None
    if not isinstance(truths, (tuple, list)):
        raise UserError(f"{path}: a {type(truths).__name__} where the truth values should be")
    for i, truth in enumerate(truths):
        if not isinstance(truth, int) or truth not in (0, 1):
            shown = f"is {truth}" if isinstance(truth, int) else f"is a {type(truth).__name__}"
            raise UserError(f"{path}: truth value of pair {i} {shown:.40}, not True or False")
    return np.array(truths, bool)


def _decompressed(data: bytes, path: str) -> bytes:
    """What xz compressed, within bounds."""
    most = min(_SLACK + _RATIO * len(data), _MOST)
    pieces: list[bytes] = []
    size = 0
    try:
        for _ in range(_STREAMS):
            stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
            while not stream.eof:
                piece = stream.decompress(data, _PIECE)
                data = b""
                if not piece and stream.needs_input:
                    raise UserError(f"{path}: cut off: the compressed file ends too early")
                pieces.append(piece)
                size += len(piece)
                if size > most:
                    raise UserError(
                        f"{path}: unpacks to more than {most:,} bytes, as no set of images of its "
                        "size does: refused"
                    )
            data = stream.unused_data.lstrip(b"\0")  # what may stand between two streams
            if not data:
                return b"".join(pieces)
    except lzma.LZMAError as error:
        raise UserError(f"{path}: not readable as xz ({error})") from None
    raise UserError(f"{path}: more than {_STREAMS} xz streams: refused")


def write_pickle(
    local: str, images: Sequence[bytes], issame: np.ndarray, *, compressed: bool
) -> None:
    """Writes the pickle of (images, issame), lists of bytes and of bool, in protocol 4."""
    # Equal images as one object: the pickler writes an object once, then refers to it.
    known: dict[bytes, bytes] = {}
    bins = [known.setdefault(image, image) for image in images]
    with lzma.open(local, "wb", preset=_PRESET) if compressed else open(local, "wb") as file:
        pickle.dump((bins, issame.tolist()), file, protocol=4)
