"""How many identities are unique: counted as by hand, at any size of block and any likeness."""

import json

import numpy as np
import pyarrow as pa
import pytest

from raypipe.impostors import Histogram
from raypipe.screening import SEARCHED
from raypipe.separability import around, curves, measure
from raypipe.templates import unit


def crowd(people: int, drawn: int, noise: float, seed: int) -> np.ndarray:
    """Unit float32 (drawn, 16): pictures of people who are drawn again and again."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 16))[rng.integers(people, size=drawn)]
    return unit(centres + noise * rng.normal(size=centres.shape)).astype(np.float32)


def by_hand(templates: np.ndarray, threshold: float, first: int) -> int:
    double = templates.astype(np.float64)
    staying: list[int] = []
    for row in range(first):
        similarity = (double[staying] * double[row]).sum(axis=1).astype(np.float32)
        if not (similarity >= threshold).any():
            staying.append(row)
    return len(staying)


@pytest.mark.parametrize("block", [1, 7, 1024])
@pytest.mark.parametrize(
    ("people", "noise"),
    [(400, 0.3), (40, 0.3), (1, 0.2), (3, 0.0)],
    ids=["strangers", "repeats", "one person", "copies"],
)
def test_the_curves_are_those_of_a_loop_over_all_pairs(people, noise, block):
    templates = crowd(people, 300, noise, seed=people)
    thresholds, points = [0.3, 0.7, 0.9, 0.97], [0, 1, 50, 299, 300]
    expected = [[by_hand(templates, value, first) for first in points] for value in thresholds]
    np.testing.assert_array_equal(curves(templates, thresholds, points, block=block), expected)


def test_a_refused_identity_refuses_nobody():
    angles = np.array([0.0, 0.5, 1.0])
    templates = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    strict, loose = np.cos(0.6), np.cos(1.1)
    np.testing.assert_array_equal(
        curves(templates, [loose, strict], [1, 2, 3]), [[1, 1, 1], [1, 1, 2]]
    )


def test_a_similarity_of_exactly_the_threshold_is_one_person():
    templates = np.array([[1, 0], [0.6, 0.8]], np.float32)
    threshold = float(np.float32(0.6))
    assert curves(templates, [threshold, np.nextafter(threshold, 1) + 1e-7], [2]).tolist() == [
        [1],
        [2],
    ]


def unique(threshold: float, impostor: np.ndarray) -> dict:
    return {"threshold": threshold, "impostor": Histogram().add(impostor).to_json()}


@pytest.mark.parametrize(("mean", "deviation"), [(0.1, 0.06), (1.8, 0.1)])
def test_thresholds_lie_half_a_standard_deviation_apart(mean, deviation):
    rng = np.random.default_rng(1)
    threshold = round(float(np.tanh(mean + 4.26 * deviation)), 6)
    found = around(unique(threshold, np.tanh(rng.normal(mean, deviation, 100_000))))
    assert found[2] == threshold
    np.testing.assert_allclose(np.diff(np.arctanh(found)), deviation / 2, rtol=0.03)


def test_a_source_is_measured_in_the_order_of_its_index():
    templates = crowd(30, 90, 0.2, seed=2)
    rows = [
        {"identity_id": f"{source}/{i}", "index": i, "source": source, "template": template}
        for source in ("seed", "base")
        for i, template in enumerate(templates if source == "seed" else templates[::-1])
    ]
    order = np.random.default_rng(3).permutation(len(rows))
    searched = pa.Table.from_pylist(rows, schema=SEARCHED).take(pa.array(order))
    limit = unique(0.8, np.random.default_rng(4).normal(0, 0.25, 10_000).clip(-1, 1))
    found = json.loads(json.dumps(measure(searched, "seed", limit)))
    assert found["calibrated"] == 0.8 == found["thresholds"][2]
    assert (found["drawn"][0], found["drawn"][-1], len(found["drawn"])) == (0, 90, 21)
    assert found["unique"] == curves(templates, found["thresholds"], found["drawn"]).tolist()
    assert found["unique"][2][-1] == by_hand(templates, 0.8, 90) < 90
