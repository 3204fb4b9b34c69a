"""A dial is measured, made monotone, read backwards, and corrected by what comes out."""

import itertools
import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.dial import POINTS, Aim, Curve, check_band, fit, sample
from raypipe.errors import UserError
from raypipe.faceset import Embedded

GRID = np.linspace(0, 2, POINTS)


@pytest.mark.parametrize("rising", [True, False])
def test_a_measured_curve_is_monotone_and_near(rising: bool) -> None:
    rng = np.random.default_rng(0)
    true = 0.9 + 0.1 * (GRID if rising else -GRID)
    curve = fit(GRID, true + 0.05 * rng.standard_normal((24, POINTS)), rising=rising)
    assert list(curve.fitted) == sorted(curve.fitted, reverse=not rising)
    assert np.abs(np.array(curve.fitted) - true).max() < 0.03
    assert np.mean(curve.spreads) == pytest.approx(0.05, rel=0.2)
    assert Curve(**json.loads(json.dumps(asdict(curve)))) == curve


@given(st.lists(st.integers(0, 100), min_size=POINTS, max_size=POINTS), st.booleans())
def test_the_curve_read_backwards(percent: list[int], rising: bool) -> None:
    curve = fit(GRID, np.array([percent]) / 100, rising=rising)
    low, high = curve.reach
    wanted = np.linspace(low, high, 7)
    dials = curve.dial(wanted)
    assert (dials >= 0).all() and (dials <= 2).all()
    assert (np.diff(dials if rising else -dials) >= -1e-12).all()
    np.testing.assert_allclose(np.interp(dials, GRID, curve.fitted), wanted, atol=1e-9)


FALLING = Curve(dials=[0, 1, 2], means=[0.9, 0.7, 0.5], spreads=[0] * 3, fitted=[0.9, 0.7, 0.5])


def test_out_of_reach_is_the_end_of_the_dial_though_the_curve_be_level_there() -> None:
    curve = Curve(dials=[0, 1, 2, 3], means=[], spreads=[], fitted=[0.9, 0.9, 0.6, 0.6])
    assert curve.dial(np.array([0.95, 0.75, 0.1])).tolist() == [0, 1.5, 3]


def test_what_an_identity_misses_is_taken_off_what_is_asked_for_next() -> None:
    targets = np.array([0.6, 0.7, 0.8, 0.95])
    aim = Aim(FALLING, targets)
    # 0.95 is out of reach: the dial stands at its end, and what is missing there is no mistake.
    assert aim.dials([0, 2, 3]) == pytest.approx([1.5, 0.5, 0.0])
    aim.learn(np.array([0.6, 0.8, 0.9]) + 0.05)
    assert aim.dials([0, 2]) == pytest.approx([1.75, 0.75])
    # This time it came out as the corrected curve said, so the correction stays.
    aim.learn(np.array([0.6, 0.8]))
    assert aim.dials([1]) == pytest.approx([1.25])
    assert Aim(FALLING, targets).dials([1]) == pytest.approx([1.0]), "another identity"


@pytest.mark.parametrize(
    ("band", "own", "message"),
    [
        ((0.95, 0.99), -1, r"images of g have a similarity of 0\.500 to 0\.900.* 0\.950 to 0\.990"),
        ((0.1, 0.4), -1, r"0\.100 to 0\.400 are wanted"),
        ((0.85, 0.99), 0.92, r"0\.920 to 0\.990 are wanted"),
        ((0.6, 0.7), 0.75, r"all of \[0\.6, 0\.7\] is below 0\.750"),
    ],
)
def test_a_band_without_images_is_refused(band, own, message) -> None:
    with pytest.raises(UserError, match=message):
        check_band(band, FALLING, own, "g")


def test_a_band_that_is_partly_in_reach_is_fine() -> None:
    for band in ((0.4, 0.55), (0.85, 0.99), (0.6, 0.7), (0.0, 1.0)):
        check_band(band, FALLING, 0.5, "g")


def test_the_sample_is_of_those_who_are_expanded_whatever_the_order() -> None:
    def item(number: int, source: str = "vec", rejected: str | None = None) -> Embedded:
        return Embedded(
            identity_id=f"{source}/{number}{rejected}",
            index=0,
            source=source,
            rejected=rejected,
            image_ids=[],
            image_rejected=[],
            embeddings=np.zeros((0, 0), np.float32),
        )

    people = [item(number) for number in range(100)]
    others = [item(1, "base"), item(2, rejected="screen:in_gallery")]
    names = sample(itertools.chain(people, others), ["vec"], 1)
    assert len(set(names)) == 24 and all(name.startswith("vec/") for name in names)
    assert sample([*others, *reversed(people)], {"vec"}, 1) == names != sample(people, ["vec"], 2)
    assert sample([*people[:3], *others], ["vec"], 1).__len__() == 3
    assert sample(others, ["vec"], 1) == []
