"""Thresholds hold their false match rate, also where it cannot be counted, and survive bad
labels."""

import numpy as np
import pytest
from scipy.stats import beta

from raypipe.errors import UserError
from raypipe.impostors import Histogram, Impostors, calibrate_gallery, calibrate_set
from raypipe.templates import Gallery, unit

SIZE = 64


def exact(rate: float, size: int = SIZE) -> float:
    """Cosine that two random directions reach with a chance: (cosine + 1) / 2 is Beta."""
    return float(2 * beta.isf(rate, (size - 1) / 2, (size - 1) / 2) - 1)


def people(count: int, faces: int, seed: int = 0) -> tuple[list[int], np.ndarray]:
    """Labels and unit embeddings: a random direction a person, and noise."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(count, SIZE)))
    labels = np.repeat(np.arange(count), faces)
    return labels.tolist(), unit(centres[labels] + 0.08 * rng.normal(size=(len(labels), SIZE)))


def gallery(labels: list[int], faces: np.ndarray) -> Gallery:
    """A gallery in the order of its labels."""
    names, person = np.unique(labels, return_inverse=True)
    order = np.argsort(person, kind="stable")
    return Gallery(
        name="g",
        names=[f"p{name:02d}" for name in names],
        image_ids=[str(i) for i in order],
        people=person[order],
        faces=faces[order].astype(np.float32),
    )


@pytest.mark.parametrize("rate", [1e-2, 1e-3, 1e-5, 1e-6])
def test_threshold_holds_the_rate_counted_or_extrapolated(rate):
    rng = np.random.default_rng(1)
    vectors = unit(rng.normal(size=(2000, SIZE)))
    impostors = Impostors(rate, 10**5)
    for part in np.split((vectors[:1000] * vectors[1000:]).sum(axis=1), 10):
        impostors.add(part.astype(np.float32))
    more = unit(rng.normal(size=(10**5 - 1000, SIZE)))
    impostors.add((more @ vectors[0]).astype(np.float32))
    assert impostors.pairs == impostors.histogram.counts.sum() == 10**5
    assert impostors.threshold("test", "nothing") == pytest.approx(exact(rate), abs=0.03)


def test_gallery_threshold_is_that_of_templates_against_single_faces():
    found = calibrate_gallery(gallery(*people(40, 10)), 1e-4)
    assert found.pairs == 40 * 39 * 10
    fresh = people(2000, 10, seed=5)[1].reshape(2000, 10, SIZE)
    probes, faces = unit(fresh[:1000].mean(axis=1)), fresh[1000:, 0]
    rate = (probes @ faces.T >= found.threshold).mean()
    assert 1e-5 < rate < 1e-3
    assert found.recognised == 1.0
    assert found.same == []


def test_a_person_under_two_names_is_named_and_moves_nothing():
    labels, faces = people(40, 10)
    before = calibrate_gallery(gallery(labels, faces), 1e-4)
    twice = [50 if i in range(5, 10) else label for i, label in enumerate(labels)]
    split = gallery(twice, faces)
    after = calibrate_gallery(split, 1e-4)
    assert [[split.names[i], split.names[j]] for i, j in after.same] == [["p00", "p50"]]
    assert after.threshold == pytest.approx(before.threshold, abs=0.02)
    assert after.recognised == 1.0


def test_a_few_wrong_labels_exclude_no_honest_pair():
    labels, faces = people(40, 10)
    rng = np.random.default_rng(3)
    for i in rng.choice(400, 12, replace=False):
        labels[i] = int(rng.integers(40))
    found = calibrate_gallery(gallery(labels, faces), 1e-4)
    assert found.same == []
    assert found.recognised == pytest.approx(0.97, abs=0.02)


def test_an_embedder_that_tells_nobody_apart_excludes_nobody():
    rng = np.random.default_rng(4)
    faces = unit(rng.normal(size=(300, SIZE)))
    found = calibrate_gallery(gallery(np.repeat(np.arange(30), 10).tolist(), faces), 1e-4)
    assert len(found.same) <= 1
    assert found.recognised < 0.05


def test_set_threshold_counts_every_pair_once_and_leaves_out_repeats():
    rng = np.random.default_rng(6)
    templates = unit(rng.normal(size=(300, SIZE))).astype(np.float32)
    genuine = np.append(np.full(299, 0.97) + 0.005 * rng.normal(size=299), np.nan)
    before = calibrate_set(templates, genuine, 1e-5)
    assert before.pairs == 300 * 299 // 2
    assert before.threshold == pytest.approx(exact(1e-5), abs=0.04)
    templates[200] = unit(templates[7] + 0.01 * rng.normal(size=SIZE))
    after = calibrate_set(templates, genuine, 1e-5)
    assert after.same == [(7, 200)]
    assert after.pairs == before.pairs - 1
    assert after.threshold == pytest.approx(before.threshold, abs=0.01)


def test_too_few_comparisons_for_a_rate_are_an_error_that_says_what_to_do():
    small = gallery(*people(5, 4))
    with pytest.raises(
        UserError, match=r"gallery 'g' \(5 people, 20 faces\): 80 comparisons"
    ) as found:
        calibrate_gallery(small, 1e-5)
    assert "set screen.false_match_rate to 0.0002 or more" in str(found.value)
    assert calibrate_gallery(small, 2e-4).threshold > 0
    with pytest.raises(UserError, match="needs 10; give a gallery with more faces"):
        calibrate_gallery(gallery(*people(1, 9)), 0.01)
    with pytest.raises(UserError, match="3 identities: 3 comparisons"):
        calibrate_set(people(3, 1)[1].astype(np.float32), np.full(3, np.nan), 0.01)


def test_histogram_is_exact_and_cut_to_what_is_filled():
    histogram = Histogram().add(np.array([-1.0, 0.1001, 0.1002, 1.0, 1.0000001, np.nan]))
    found = histogram.to_json()
    assert found["start"] == -1.0
    assert sum(found["counts"]) == 5
    assert found["counts"][-1] == 2
    assert found["counts"][int(1.1001 / found["width"])] == 2
    assert Histogram().to_json()["counts"] == []
