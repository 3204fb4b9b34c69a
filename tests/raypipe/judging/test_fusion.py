"""Several experts, one verdict: rules by hand, rates that were planted, agreement as scikit-learn
has it."""

import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from raypipe.judging import fusion

NAN = np.nan


def planted(seed: int, found: list[float], accused: list[float], images: int = 4000):
    """Truth and opinions of experts that err at set rates."""
    rng = np.random.default_rng(seed)
    truth = rng.random(images) < 0.1
    chance = np.where(truth[:, None], found, accused)
    return truth, (rng.random(chance.shape) < chance).astype(float)


def f1(said: np.ndarray, truth: np.ndarray) -> float:
    return 2 * (said & truth).sum() / (said.sum() + truth.sum())


def test_rules_by_hand() -> None:
    opinions = np.array(
        [
            [0.9, 0.1, 0.2],
            [0.9, 0.8, 0.2],
            [0.9, 0.8, 0.5],
            [0.1, NAN, 0.2],
            [0.9, NAN, NAN],
            [0.9, 0.1, NAN],
            [NAN, NAN, NAN],
        ]
    )
    assert fusion.by_rule(opinions, "any").tolist() == [True, True, True, False, True, True, False]
    assert (
        fusion.by_rule(opinions, "all").tolist() == [False] * 2 + [True, False, True] + [False] * 2
    )
    assert fusion.by_rule(opinions, "majority").tolist() == [
        *[False, True, True, False, True],
        *[False, False],  # one against one, and nobody at all
    ]


@pytest.mark.parametrize("seed", range(5))
def test_planted_rates_are_found_and_the_combination_is_the_best_expert(seed: int) -> None:
    found, accused = [0.95, 0.8, 0.9], [0.02, 0.1, 0.05]
    truth, opinions = planted(seed, found, accused)
    opinions[np.random.default_rng(seed).random(opinions.shape) < 0.2] = NAN  # not everybody asked
    rates = fusion.estimate(opinions, [False] * opinions.shape[1])
    assert rates.outliers == pytest.approx(0.1, abs=0.02)
    np.testing.assert_allclose(rates.found, found, atol=0.08)
    np.testing.assert_allclose(rates.accused, accused, atol=0.03)
    said = fusion.weigh(opinions, rates) >= 0.5
    single = [f1(fusion.votes(opinions[:, [e]])[:, 0] == 1, truth) for e in range(3)]
    assert f1(said, truth) >= max(single)


def test_probabilities_are_those_of_bayes_by_hand() -> None:
    rates = fusion.Rates(
        outliers=0.2,
        calibrated=[False, False],
        of_outliers=np.array([[0.05, 0.05, 0.2, 0.7], [0.1, 0.3, 0.5, 0.1]]),
        of_others=np.array([[0.7, 0.2, 0.09, 0.01], [0.2, 0.5, 0.2, 0.1]]),
    )
    np.testing.assert_allclose(rates.found, [0.9, 0.6])
    np.testing.assert_allclose(rates.accused, [0.1, 0.3])
    cases = {
        (1.0, 0.97): (0.7 * 0.5, 0.01 * 0.2),
        (0.019, 0.98): (0.05 * 0.1, 0.7 * 0.1),
        (0.5, 0.49): (0.2 * 0.3, 0.09 * 0.5),
        (NAN, 0.0): (0.1, 0.2),
        (NAN, NAN): (1.0, 1.0),
    }
    for opinion, (guilty, innocent) in cases.items():
        wanted = 0.2 * guilty / (0.2 * guilty + 0.8 * innocent)
        assert fusion.weigh(np.array([opinion]), rates)[0] == pytest.approx(wanted)
    again = fusion.Rates.parse(json.loads(json.dumps(rates.dump())))
    np.testing.assert_array_equal(again.of_others, rates.of_others)


def test_a_calibrated_probability_is_evidence_as_it_is() -> None:
    tables = np.array([[0.1, 0.1, 0.4, 0.4]]), np.array([[0.7, 0.2, 0.05, 0.05]])
    rates = fusion.Rates(
        outliers=0.1,
        calibrated=[True, False],
        of_outliers=np.repeat(tables[0], 2, axis=0),
        of_others=np.repeat(tables[1], 2, axis=0),
    )
    alone = np.array([[p, NAN] for p in (0.05, 0.3, 0.9)])
    np.testing.assert_allclose(fusion.weigh(alone, rates), [0.05, 0.3, 0.9])
    assert fusion.weigh(np.array([[1.0, NAN]]), rates)[0] == pytest.approx(0.999)
    both = fusion.weigh(np.array([[0.3, 0.9]]), rates)[0]  # 3/7 · 0.4/0.05
    assert both == pytest.approx(24 / 31)


@pytest.mark.parametrize("seed", range(5))
def test_one_that_errs_helps_a_calibrated_one_where_it_is_unsure(seed: int) -> None:
    rng = np.random.default_rng(seed)
    chance = np.where(rng.random(4000) < 0.8, rng.choice([0.001, 0.999], 4000, p=[0.9, 0.1]),
                      rng.random(4000))  # fmt: skip
    truth = rng.random(4000) < chance
    second = np.where(rng.random(4000) < 0.9, truth, ~truth) * 0.9
    opinions = np.stack([chance, second], axis=1)
    said = fusion.weigh(opinions, fusion.estimate(opinions, [True, False])) >= 0.5
    assert f1(said, truth) > max(f1(opinions[:, e] >= 0.5, truth) for e in (0, 1))


def test_one_expert_alone_is_believed() -> None:
    truth, opinions = planted(0, [1.0], [0.0], 300)
    rates = fusion.estimate(opinions, [False] * opinions.shape[1])
    assert np.array_equal(fusion.weigh(opinions, rates) >= 0.5, truth)
    nobody = fusion.estimate(np.full((3, 2), NAN), [False, False])
    assert (fusion.weigh(np.full((3, 2), NAN), nobody) <= 0.5).all()


def test_kappa_is_that_of_scikit_learn() -> None:
    _, opinions = planted(3, [0.9, 0.7], [0.05, 0.2])
    first, second = fusion.votes(opinions).T
    assert fusion.kappa(first, second) == pytest.approx(cohen_kappa_score(first, second))
    first = first.copy()
    first[:100] = NAN
    assert fusion.kappa(first, second) == pytest.approx(
        cohen_kappa_score(first[100:], second[100:])
    )
    assert fusion.kappa(np.zeros(3), np.zeros(3)) == 1.0
    assert np.isnan(fusion.kappa(np.full(3, NAN), np.zeros(3)))
