import math

import numpy as np
import pytest

from raypipe.formats.ijb import TemplatePairs
from raypipe.ijb import FARS, cosines, operating_point, roc_curve, template_features


def made_pairs(images=60, templates=9, media=4, pairs=40, seed=0):
    """Templates of different sizes; a medium's number occurs in several templates."""
    rng = np.random.default_rng(seed)
    members = np.append(np.arange(templates), rng.integers(0, templates, images - templates))
    return TemplatePairs(
        names=[f"{i}.jpg" for i in range(images)],
        templates=rng.permutation(members).astype(np.int32),
        media=rng.integers(0, media, images),
        points=np.zeros((images, 5, 2), np.float32),
        scores=rng.uniform(0.1, 1, images).astype(np.float32),
        first=rng.integers(0, templates, pairs).astype(np.int32),
        second=rng.integers(0, templates, pairs).astype(np.int32),
        same=np.arange(pairs) % 4 == 0,
    )


def scalar_features(pairs, features):
    """Templates as the protocol is written down, one image and one number at a time."""
    size = len(features[0])
    found = []
    for template in range(max(pairs.templates) + 1):
        of_medium = {}
        for i in range(len(features)):
            if pairs.templates[i] == template:
                weighted = [float(pairs.scores[i]) * float(value) for value in features[i]]
                of_medium.setdefault(int(pairs.media[i]), []).append(weighted)
        total = [0.0] * size
        for shown in of_medium.values():
            for d in range(size):
                total[d] += sum(image[d] for image in shown) / len(shown)
        length = math.sqrt(sum(value * value for value in total))
        found.append([value / length for value in total])
    return found


def scalar_point(scores, same, far):
    """The curve's corners by counting at every score, and the nearest of them."""
    points = []
    for threshold in sorted(set(scores), reverse=True):
        accepted = [label for score, label in zip(scores, same, strict=True) if score >= threshold]
        points.append((accepted.count(False), accepted.count(True), threshold))
    corners = [(0, 0, math.inf)]
    for k, (false, true, threshold) in enumerate(points):
        if 0 < k < len(points) - 1:
            before, after = points[k - 1], points[k + 1]
            if after[0] - false == false - before[0] and after[1] - true == true - before[1]:
                continue
        corners.append((false, true, threshold))
    impostors, genuine = same.count(False), same.count(True)
    best = None
    for false, true, threshold in reversed(corners):
        away = abs(false / impostors - far)
        if best is None or away < best[0]:
            best = (away, true / genuine, false / impostors, threshold)
    return best[1:]


def test_equals_the_protocol_written_with_scalars():
    pairs = made_pairs()
    features = np.random.default_rng(1).standard_normal((60, 7)).astype(np.float32) * 20
    expected = scalar_features(pairs, features.tolist())
    blocks = [features[:1], features[1:30], features[30:]]
    found = template_features(pairs, blocks)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    scores = cosines(found, pairs.first, pairs.second)
    for score, first, second in zip(scores, pairs.first, pairs.second, strict=True):
        dot = sum(a * b for a, b in zip(expected[first], expected[second], strict=True))
        assert score == pytest.approx(dot, abs=1e-6)
    roc = roc_curve(scores, pairs.same)
    for far in (*FARS, 0.2, 0.5, 0.9):
        expected_point = scalar_point(scores.tolist(), pairs.same.tolist(), far)
        assert operating_point(roc, far) == pytest.approx(expected_point, abs=1e-6)


def test_a_video_counts_as_one_photograph_and_the_detector_weighs():
    pairs = TemplatePairs(
        names=["a", "b", "c"],
        templates=np.zeros(3, np.int32),
        media=np.array([7, 7, 8]),
        points=np.zeros((3, 5, 2), np.float32),
        scores=np.array([1, 1, 0.5], np.float32),
        first=np.zeros(1, np.int32),
        second=np.zeros(1, np.int32),
        same=np.ones(1, bool),
    )
    features = np.array([[4, 0], [2, 0], [0, 8]], np.float32)  # lengths are kept
    assert template_features(pairs, [features])[0] == pytest.approx([0.6, 0.8])


def test_a_template_of_zeros_stays_zero():
    pairs = made_pairs()
    assert not template_features(pairs, [np.zeros((60, 3), np.float32)]).any()


@pytest.mark.parametrize("digits", [1, 2, 4, 17])
def test_is_the_curve_and_the_choice_of_published_code(digits):
    """Rounded scores tie, and lie on straight stretches of the curve."""
    from sklearn import metrics

    rng = np.random.default_rng(digits)
    same = rng.random(200_000) < 0.02
    scores = np.round(rng.normal(0, 0.1, 200_000) + 0.4 * same, digits)
    fars, tars, thresholds = metrics.roc_curve(same, scores)
    roc = roc_curve(scores, same)
    np.testing.assert_array_equal(roc.fars, fars)
    np.testing.assert_array_equal(roc.tars, tars)
    np.testing.assert_array_equal(roc.thresholds, thresholds)
    assert roc.auc == pytest.approx(metrics.auc(fars, tars))
    backwards_fars, backwards_tars = fars[::-1], tars[::-1]
    for far in FARS:
        index = min(zip(abs(backwards_fars - far), range(len(fars)), strict=True))[1]
        assert operating_point(roc, far)[:2] == (backwards_tars[index], backwards_fars[index])


@pytest.mark.parametrize("same", [[True, False], [False, True], [True, False, True]])
def test_short_curves(same):
    from sklearn import metrics

    for scores in (np.zeros(len(same)), np.arange(len(same), dtype=float)):
        fars, tars, _ = metrics.roc_curve(same, scores)
        roc = roc_curve(scores, np.array(same))
        assert (roc.fars.tolist(), roc.tars.tolist()) == (fars.tolist(), tars.tolist())


def test_between_two_equally_near_rates_the_higher_is_taken():
    same = np.array([True, False, True, False])
    roc = roc_curve(np.array([4.0, 3.0, 2.0, 1.0]), same)
    assert operating_point(roc, 0.25) == (1.0, 0.5, 2.0)
    assert operating_point(roc, 1e-6) == (0.5, 0.0, 4.0)
