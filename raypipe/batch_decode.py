"""Encoded faces to the pixels that a recognizer is trained on, a batch at once."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from raypipe.errors import UserError
from raypipe.images import ImageError, decode
from raypipe.recognizer import SIDE


def decode_faces(blobs: Sequence[bytes], sources: Sequence[str], *, threads: int = 1) -> Tensor:
    """Decodes images as `raypipe.images.decode` does, on several threads.

    Pillow holds Python's lock for a small part of its work only: on two free cores, two threads
    decode 1.8 times as many images as one. OpenCV decodes JPEG in half the time to the same
    pixels, but turns images by their EXIF tag and does not say what is wrong with those that it
    cannot decode (`benchmarks/augment.py`).

    Args:
        sources: what to call each image in an error.

    Returns:
        uint8 (N, 112, 112, 3), RGB.

    Raises:
        UserError: for the first image that cannot be decoded or is not 112×112, naming its source.
    """
    images = np.empty((len(blobs), SIDE, SIDE, 3), np.uint8)

    def part(rows: np.ndarray) -> None:
        for row in rows.tolist():
            images[row] = _decode(blobs[row], sources[row])

    # A few large parts: handing over every image alone costs more than a second thread brings.
    parts = np.array_split(np.arange(len(blobs)), threads)
    if threads == 1:
        part(parts[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(part, parts):
                pass
    return torch.from_numpy(images)


def _decode(data: bytes, source: str) -> np.ndarray:
    try:
        pixels = decode(data, source=source)
    except ImageError as error:
        raise UserError(f"{error}; run `raypipe verify` on the set and make it anew") from None
    if pixels.shape != (SIDE, SIDE, 3):
        height, width = pixels.shape[:2]
        raise UserError(f"{source}: {width}×{height} pixels, training needs {SIDE}×{SIDE}")
    return pixels
