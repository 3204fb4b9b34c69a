"""Search equals brute force, whatever the blocks, and its order is fixed."""

import faiss
import numpy as np
import pytest

from raypipe.search import nearest, pairs_above


def vectors(rows: int, size: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, size))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def similarities(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    return (queries.astype(np.float64) @ gallery.astype(np.float64).T).astype(np.float32)


def brute(queries: np.ndarray, gallery: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    similarity = similarities(queries, gallery)
    index = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, index, 1), index


@pytest.mark.parametrize(("query_block", "gallery_block"), [(7, 33), (64, 1000), (4096, 65_536)])
@pytest.mark.parametrize("k", [1, 5])
def test_nearest_is_brute_force_for_any_blocks(query_block, gallery_block, k):
    queries, gallery = vectors(150, 48, 1), vectors(700, 48, 2)
    similarity, index = nearest(
        queries, gallery, k, query_block=query_block, gallery_block=gallery_block
    )
    expected, at = brute(queries, gallery, k)
    np.testing.assert_array_equal(index, at)
    np.testing.assert_array_equal(similarity, expected)
    assert (similarity.dtype, index.dtype) == (np.float32, np.int64)


def test_same_bytes_for_any_threads_and_blocks():
    queries, gallery = vectors(300, 128, 3), vectors(2000, 128, 4)
    before = faiss.omp_get_max_threads()
    results = []
    try:
        for threads, block in ((1, 10), (2, 300), (2, 4096)):
            faiss.omp_set_num_threads(threads)
            results.append(
                nearest(queries, gallery, 3, query_block=block, gallery_block=17 * block)
            )
    finally:
        faiss.omp_set_num_threads(before)
    for similarity, index in results[1:]:
        assert similarity.tobytes() == results[0][0].tobytes()
        assert index.tobytes() == results[0][1].tobytes()


def test_lowest_index_wins_a_tie_even_among_many_copies():
    gallery = np.repeat(vectors(4, 32, 5), 60, axis=0)
    similarity, index = nearest(gallery[[0, 60, 130]], gallery, 3, gallery_block=50)
    np.testing.assert_array_equal(index, [[0, 1, 2], [60, 61, 62], [120, 121, 122]])
    np.testing.assert_allclose(similarity, 1, atol=1e-6)


def test_asks_for_no_more_neighbours_than_there_are():
    similarity, index = nearest(vectors(3, 8, 6), vectors(2, 8, 7), 5)
    assert similarity.shape == index.shape == (3, 2)
    assert set(index.ravel()) == {0, 1}
    none, nowhere = nearest(np.empty((0, 8), np.float32), vectors(2, 8, 7), 1)
    assert none.shape == nowhere.shape == (0, 1)


@pytest.mark.parametrize(("query_block", "gallery_block"), [(5, 64), (100, 70), (4096, 65_536)])
def test_pairs_above_is_brute_force_for_any_blocks(query_block, gallery_block):
    rows = vectors(400, 16, 8)
    rows[300:380] = rows[10]  # 81 copies: more than a block's candidates
    threshold = 0.6
    i, j, similarity = pairs_above(
        rows, threshold, query_block=query_block, gallery_block=gallery_block
    )
    full = similarities(rows, rows)
    expected = np.argwhere(np.triu(full >= threshold, 1))
    np.testing.assert_array_equal(np.stack([i, j], 1), expected)
    np.testing.assert_array_equal(similarity, full[i, j])


def test_a_pair_exactly_at_the_threshold_is_found():
    rows = np.array([[1, 0], [0.5, 0.5], [0, 1]], np.float32)
    assert [a.tolist() for a in pairs_above(rows, 0.5)] == [[0, 1], [1, 2], [0.5, 0.5]]
    assert pairs_above(rows, 0.75)[0].size == 0
    assert pairs_above(np.empty((0, 4), np.float32), 0.5)[0].size == 0
