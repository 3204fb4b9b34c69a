"""The identities that a set is calibrated on: few enough to hold, the same ones on any machine."""

import hashlib
import heapq
from collections.abc import Iterable

import numpy as np

from raypipe.faceset import Embedded

_IMAGES = (
    100  # of one identity at most, so that a few huge folders neither fill the memory nor rule
)


def draw(
    identities: Iterable[Embedded], size: int, seed: int
) -> tuple[list[tuple[str, np.ndarray]], int]:
    """Draws identities with at least two usable images.

    Which ones are taken depends on their identity_id and the seed alone: those with the smallest
    SHA-256 of both.

    Args:
        identities: of a whole set, in any order; only `size` of them are held at a time.
        size: identities to draw.
        seed: seed of the run.

    Returns:
        identity_id and raw embeddings float32 (n, D) of the drawn, in the order of their hashes,
        and how many identities there were to draw from.
    """
    heap: list[tuple[int, str, np.ndarray]] = []
    population = 0
    for found in identities:
        usable = [reason is None for reason in found.image_rejected]
        if found.rejected is not None or sum(usable) < 2:
            continue
        population += 1
        text = f"{seed}\0{found.identity_id}".encode()
        rank = -int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
        if len(heap) < size:
            heapq.heappush(heap, (rank, found.identity_id, found.embeddings[usable][:_IMAGES]))
        elif (rank, found.identity_id) > heap[0][:2]:
            heapq.heapreplace(heap, (rank, found.identity_id, found.embeddings[usable][:_IMAGES]))
    heap.sort(key=lambda item: item[:2], reverse=True)
    return [(name, embeddings) for _, name, embeddings in heap], population
