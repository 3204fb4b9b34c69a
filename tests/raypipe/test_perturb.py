"""Variations of an identity vector: exact shares, restored lengths, bounded angles."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.perturb import SHARES, directed, mixture, noisy, reference, sigmas
from raypipe.shares import allot
from raypipe.templates import unit

# As long as features of the published embedder are, where the cosines below come from.
VECTOR = (0.967 * unit(np.random.default_rng(0).standard_normal(512)) * 512**0.5).astype(np.float32)


def cosines(variations: np.ndarray, vector: np.ndarray = VECTOR) -> np.ndarray:
    return unit(variations) @ unit(vector)


@settings(deadline=None)
@given(st.integers(0, 500))
def test_the_shares_are_exact_by_identity(count: int):
    parts = allot(count, SHARES)
    assert sum(parts) == count
    assert (np.abs(np.subtract(parts, count * np.array([0.4, 0.4, 0.2]))) < 1).all()
    given = Counter(sigmas(count, seed=1, identity_id="a").tolist())
    assert [given[sigma] for sigma in (0.3, 0.5, 0.7)] == parts


def test_fifty_images_are_twenty_twenty_ten_and_mixed():
    assert [allot(count, SHARES) for count in (50, 1, 3)] == [[20, 20, 10], [1, 0, 0], [1, 1, 1]]
    one, other = (sigmas(50, seed=1, identity_id=name).tolist() for name in "ab")
    assert one != other and one != sorted(one)


def test_the_mixture_is_as_published():
    spread = sigmas(1000, seed=4, identity_id="vec/1")
    made = mixture(VECTOR, range(1000), count=1000, seed=4, identity_id="vec/1")
    assert made.dtype == np.float32 and made.shape == (1000, 512)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), np.linalg.norm(VECTOR), rtol=1e-5)
    for sigma, expected in ((0.3, 0.955), (0.5, 0.888), (0.7, 0.810)):
        assert cosines(made[spread == sigma]).mean() == pytest.approx(expected, abs=0.004)
    small = mixture(0.1 * VECTOR, range(9), count=9, seed=4, identity_id="x", scale=0.1)
    whole = mixture(VECTOR, range(9), count=9, seed=4, identity_id="x")
    np.testing.assert_allclose(small, 0.1 * whole, rtol=1e-4, atol=1e-6)


def test_the_reference_mode_is_as_published():
    made = reference(VECTOR, range(300), seed=4, identity_id="vec/1")
    assert cosines(made).mean() == pytest.approx(1 / np.sqrt(1 + 0.04 / 0.967**2), abs=0.002)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), np.linalg.norm(VECTOR), rtol=1e-5)


MODES = {
    "mixture": lambda images, **more: mixture(VECTOR, images, count=30, **more),
    "reference": lambda images, **more: reference(VECTOR, images, **more),
    "directed": lambda images, **more: directed(VECTOR, images, lowest=0.6, nearest=0.2, **more),
    "noisy": lambda images, **more: noisy(VECTOR, images, np.take(NOISE, images), **more),
}
NOISE = np.linspace(0.2, 2, 30)


@pytest.mark.parametrize("mode", MODES)
@settings(max_examples=20, deadline=None)
@given(images=st.lists(st.integers(0, 29), max_size=8))
def test_an_image_is_the_same_whatever_is_asked_for_with_it(mode: str, images: list[int]):
    make = MODES[mode]
    every = make(range(30), seed=7, identity_id="a")
    assert make(images, seed=7, identity_id="a").tobytes() == every[images].tobytes()
    assert make(images, seed=7, identity_id="a").shape == (len(images), 512)


@pytest.mark.parametrize("mode", MODES)
def test_seed_identity_and_attempt_each_change_every_image(mode: str):
    make = MODES[mode]
    first = make(range(30), seed=7, identity_id="a")
    for other in (
        make(range(30), seed=8, identity_id="a"),
        make(range(30), seed=7, identity_id="b"),
        make(range(30), seed=7, identity_id="a", attempt=1),
    ):
        assert (np.abs(first - other).max(axis=1) > 0.1).all()
    assert len(np.unique(first, axis=0)) == 30


def test_every_image_may_have_a_sigma_of_its_own():
    made = noisy(VECTOR, range(300), np.repeat([0.0, 0.5, 2.0], 100), seed=4, identity_id="a")
    means = cosines(made).reshape(3, 100).mean(axis=1)
    assert means == pytest.approx([1, 0.888, 1 / np.sqrt(1 + 4 / 0.967**2)], abs=0.006)


def test_another_attempt_keeps_the_sigma():
    spread = sigmas(2000, seed=7, identity_id="a")
    again = mixture(VECTOR, range(2000), count=2000, seed=7, identity_id="a", attempt=3)
    assert cosines(again[spread == 0.7]).mean() == pytest.approx(0.81, abs=0.003)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(-1, 1), st.floats(0, 1), st.integers(2, 40))
def test_a_turned_vector_stays_on_its_side(seed: int, cosine: float, lowest: float, dimension: int):
    rng = np.random.default_rng(seed)
    scale = np.float32(rng.uniform(0.1, 30))
    vector = (scale * rng.standard_normal(dimension)).astype(np.float32)
    aside = rng.standard_normal(dimension)
    aside = unit(aside - (aside @ unit(vector)) * unit(vector))
    other = cosine * unit(vector) + np.sqrt(1 - cosine**2) * aside
    made = directed(vector, range(20), lowest=lowest, nearest=cosine, seed=seed, identity_id="a")
    own = cosines(made, vector)
    assert (own >= max(lowest, np.sqrt((1 + cosine) / 2)) - 1e-6).all()
    assert (own >= cosines(made, other) - 1e-6).all()
    np.testing.assert_allclose(
        np.linalg.norm(made.astype(np.float64), axis=1),
        np.linalg.norm(vector.astype(np.float64)),
        rtol=1e-6,
    )


def test_the_angle_fills_its_range():
    def turn(nearest: float) -> np.ndarray:
        made = directed(VECTOR, range(500), lowest=0.6, nearest=nearest, seed=1, identity_id="a")
        return cosines(made)

    far = turn(-0.9)
    assert far.min() == pytest.approx(0.6, abs=0.01) and far.max() == pytest.approx(1, abs=0.01)
    assert far.mean() == pytest.approx(0.8, abs=0.01)
    near = turn(0.28)
    assert 0.8 <= near.min() < 0.805 and near.mean() == pytest.approx(0.9, abs=0.01)
