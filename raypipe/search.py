"""Exact inner-product search with faiss, in blocks: memory is bounded, the result is the true one.

faiss finds candidates in float32, where rounding depends on the shape of a block and on the
threads. Candidates are scored again in float64, one fixed order of summation, and a query whose
candidates may have missed a neighbour by rounding is scanned in full. So the result is that of
brute force, whatever the block sizes, the number of threads and the device.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

QUERY_BLOCK = 4096
GALLERY_BLOCK = 65_536
_SPARE = 8  # candidates beyond k, so that rounding near the k-th place seldom needs a full scan
_PAIRS = 32  # neighbours a row may have in a block before it is scanned in full
_ROWS = 1024  # rows scored again at once: 1024 × 40 × 512 numbers are 170 MB


@cache
def _faiss() -> Any:
    """faiss, set to go through BLAS however few queries there are.

    Left alone, faiss 1.15 reads the gallery once for every query where there are fewer than 250 of
    512 numbers: 50 of them, an identity's images, take 0.34 s for 65,536 faces on a core, and 0.06
    s through BLAS; a single one takes 0.007 s and 0.02 s.
    """
    import faiss

    faiss.cvar.distance_compute_blas_threshold = 1
    return faiss


@cache
def _gpu() -> Any:
    """faiss's GPU resources, None without a GPU that this process may use or a build for it."""
    faiss = _faiss()
    return faiss.StandardGpuResources() if faiss.get_num_gpus() > 0 else None


def _candidates(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 similarities and int64 indices, (Q, k), of one block."""
    faiss = _faiss()
    if resources := _gpu():
        return faiss.knn_gpu(resources, queries, gallery, k, metric=faiss.METRIC_INNER_PRODUCT)
    return faiss.knn(queries, gallery, k, metric=faiss.METRIC_INNER_PRODUCT)


def _score(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Inner products over the last axis, summed in float64, as float32."""
    return (left.astype(np.float64) * right).sum(axis=-1).astype(np.float32)


def _rounding(left: np.ndarray, right: np.ndarray) -> float:
    """Bound on the error of a float32 inner product of rows (Higham, Accuracy and Stability, 3.1).

    γ_D |x|·|y| ≤ D u ‖x‖ ‖y‖ for u = 2⁻²⁴, twice that for the rounding of the norms and of the
    result.
    """
    lengths = [np.sqrt(np.einsum("nd,nd->n", rows, rows).max()) for rows in (left, right)]
    return left.shape[1] * 2.0**-23 * float(lengths[0]) * float(lengths[1])


def _blocks(rows: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def _best(similarity: np.ndarray, index: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each row, most similar first, lowest index first among equals."""
    order = np.lexsort((index, -similarity), axis=-1)[..., :k]
    return np.take_along_axis(similarity, order, -1), np.take_along_axis(index, order, -1)


def _scan(query: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Brute force for one query (D,): similarities and indices (k,)."""
    similarity, index = np.empty(0, np.float32), np.empty(0, np.int64)
    for start, stop in _blocks(len(gallery), 8 * _ROWS):
        similarity = np.concatenate([similarity, _score(gallery[start:stop], query)])
        index = np.concatenate([index, np.arange(start, stop)])
        similarity, index = _best(similarity, index, k)
    return similarity, index


def nearest(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    *,
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
) -> tuple[np.ndarray, np.ndarray]:
    """The k gallery rows with the largest inner product, for every query.

    Args:
        queries: float32 (Q, D).
        gallery: float32 (G, D), G at least 1.
        k: neighbours; no more than G come back.

    Returns:
        Similarities float32 (Q, k), largest first, and indices int64 (Q, k); among equal
        similarities the lowest index comes first. Memory beyond the arguments does not depend on Q
        × G.
    """
    k = min(k, len(gallery))
    wide = min(k + _SPARE, len(gallery))
    found = np.empty((len(queries), k), np.float32)
    where = np.empty((len(queries), k), np.int64)
    for first, last in _blocks(len(queries), query_block):
        block = np.ascontiguousarray(queries[first:last], np.float32)
        rough = np.empty((len(block), 0), np.float32)
        index = np.empty((len(block), 0), np.int64)
        for start, stop in _blocks(len(gallery), gallery_block):
            near, at = _candidates(block, gallery[start:stop], min(wide, stop - start))
            rough = np.concatenate([rough, near], axis=1)
            index = np.concatenate([index, at + start], axis=1)
            rough, index = _best(rough, index, wide)
        margin = _rounding(block, gallery)
        for start, stop in _blocks(len(block), _ROWS):
            rows = slice(first + start, first + stop)
            exact = _score(block[start:stop, None], gallery[index[start:stop]])
            found[rows], where[rows] = _best(exact, index[start:stop], k)
        if wide < len(gallery):
            unsure = rough[:, -1] + 2 * margin >= found[first:last, -1]
            for row in np.flatnonzero(unsure):
                found[first + row], where[first + row] = _scan(block[row], gallery, k)
    return found, where


def pairs_above(
    vectors: np.ndarray,
    threshold: float,
    *,
    query_block: int = QUERY_BLOCK,
    gallery_block: int = GALLERY_BLOCK,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of rows whose inner product is at least a threshold.

    Args:
        vectors: float32 (N, D).
        threshold: of the inner product.

    Returns:
        i and j, int64 (P,), with i < j and sorted by (i, j), and their similarities float32 (P,).
        Memory grows with the number P of pairs found, not with N × N.
    """
    vectors = np.ascontiguousarray(vectors, np.float32)
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    margin = _rounding(vectors, vectors) if len(vectors) else 0.0
    for start, stop in _blocks(len(vectors), gallery_block):
        gallery = vectors[start:stop]
        for first, last in _blocks(stop, query_block):
            block = vectors[first:last]
            rough, index = _candidates(block, gallery, min(_PAIRS, len(gallery)))
            above = rough >= threshold - margin
            dense = above[:, -1] & (index.shape[1] < len(gallery))
            above[dense] = False
            i, column = np.nonzero(above)
            j = index[i, column]
            for row in np.flatnonzero(dense):
                more = np.flatnonzero(gallery @ block[row] >= threshold - margin)
                i, j = np.append(i, np.full(len(more), row)), np.append(j, more)
            i, j = i + first, j + start
            i, j = i[i < j], j[i < j]
            for low, high in _blocks(len(i), 8 * _ROWS):
                left, right = i[low:high], j[low:high]
                exact = _score(vectors[left], vectors[right])
                keep = exact >= threshold
                parts.append((left[keep], right[keep], exact[keep]))
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    i, j, similarity = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((j, i))
    return i[order], j[order], similarity[order]
