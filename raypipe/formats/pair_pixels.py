"""Verification sets as pixels: a folder with `{name}.npy` and `issame.txt`.

The layout is that of HaiyuWu/SOTA-Face-Recognition-Train-and-Test, utils/prepare_test_images.py:
uint8 (2P, 3, height, width), RGB, and a line 0 or 1 a pair.
"""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats.blob import Blob
from raypipe.formats.pair_set import PairSet
from raypipe.formats.pairs_txt import content, fields_of
from raypipe.images import encode_png

TRUTHS = "issame.txt"
_BLOCK = 256
# The header that numpy.save writes; only this type, order and number of dimensions will do.
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '\|u1', 'fortran_order': False, "
    rb"'shape': \(([0-9]{1,9}), 3, ([0-9]{1,5}), ([0-9]{1,5})\), \} *\n",
    re.DOTALL,
)


def npy_files(root: str) -> tuple[str, str]:
    """Paths of the pixels and of the truth values of a folder with `issame.txt`.

    Raises:
        UserError: where there is not one file of pixels.
    """
    found = [entry for entry in storage.listdir(root) if entry.name.endswith(".npy")]
    if len(found) != 1:
        raise UserError(f"{root}: {len(found)} .npy files beside {TRUTHS}; expected one")
    return found[0].path, storage.join(root, TRUTHS)


def read_npy(root: str) -> PairSet:
    """Reads a folder with pixels and `issame.txt`.

    Returns:
        The images as PNG, which loses nothing.

    Raises:
        UserError: where a file is damaged, or they are not of one set.
    """
    path, truths = npy_files(root)
    same = bytearray()
    for number, fields in fields_of(content(truths), truths):
        if fields not in (["0"], ["1"]):
            raise UserError(f"{truths}: line {number}: expected 0 or 1")
        same.append(fields == ["1"])
    blob = Blob(path)
    header = _NPY.match(blob.read(0, 1024))
    if header is None:
        raise UserError(f"{path}: not pixels as numpy saves them: uint8 (2P, 3, height, width)")
    count, height, width = (int(side) for side in header.groups())
    size = 3 * height * width
    if size == 0 or count * size != blob.size - header.end():
        raise UserError(
            f"{path}: its header says {count:,} images of {width}×{height}, which is not what "
            f"its {blob.size:,} bytes hold; it was cut off or changed"
        )
    if count != 2 * len(same):
        raise UserError(f"{root}: {count:,} images in the .npy, {len(same):,} pairs in {TRUTHS}")

    def encode(data: bytes) -> bytes:
        return encode_png(
            np.frombuffer(data, np.uint8).reshape(3, height, width).transpose(1, 2, 0)
        )

    images: list[bytes] = []
    with ThreadPoolExecutor() as threads:
        for start in range(0, count, _BLOCK):
            data = [
                blob.read(header.end() + i * size, size)
                for i in range(start, min(start + _BLOCK, count))
            ]
            images.extend(threads.map(encode, data))
    return PairSet(images=images, issame=np.frombuffer(same, bool))
