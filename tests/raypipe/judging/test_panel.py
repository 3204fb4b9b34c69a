"""Experts that say what the test tells them, on rows with features that leave no doubt, or some."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from raypipe.cleaning.calibration import Calibration, calibrate
from raypipe.cleaning.cluster import calibrated_cluster, reach
from raypipe.cleaning.laws import laws
from raypipe.cleaning.marking import mark
from raypipe.config.clean import CleanConfig
from raypipe.config.judge import JudgeConfig
from raypipe.identities import Identity, Image, from_table, row_digest, to_table
from raypipe.images import encode_png
from raypipe.judging import fusion
from raypipe.judging.doubt import doubts, open_case
from raypipe.judging.experts import NAMES, Case, Expert, View, calibrated
from raypipe.judging.panel import Panel

IMAGES, DIMENSIONS = 8, 16
STRANGER = 3  # place of the image of somebody else


def person(seed: int) -> Identity:
    """Eight noise pictures; features around a centre, but for one."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal(DIMENSIONS)
    images = []
    for place in range(IMAGES):
        vector = centre + 0.3 * rng.standard_normal(DIMENSIONS)
        if place == STRANGER:
            vector = rng.standard_normal(DIMENSIONS)
        data = encode_png(rng.integers(0, 255, (32, 32, 3), np.uint8))
        images.append(
            Image(
                image_id=f"{place}", data=data, source="made", embedding=vector.astype(np.float32)
            )
        )
    return Identity(identity_id=f"p{seed}", index=seed, source="base", images=images)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    people = [person(seed) for seed in range(60)]
    sample = [(p.identity_id, np.stack([i.embedding for i in p.images])) for p in people]
    return calibrate(sample, seed=0, population=len(sample))


@pytest.fixture
def cleaned(calibration: Calibration) -> Identity:
    found = person(1)
    mark(found, CleanConfig(), calibration, {})
    assert [i.image_id for i in found.images if i.rejected] == [f"{STRANGER}"]
    return found


def says(*outliers: int, problem: str | None = None) -> Expert:
    """An expert that names places of images."""

    def opinions(cases: Sequence[Case]) -> list[View]:
        found = []
        for case in cases:
            outlier = np.isin([int(i.image_id) for i in case.images], outliers) * 0.9
            if problem:
                outlier = np.full(len(case.images), np.nan)
            found.append(View(outlier=outlier, reasons={0: "because"}, problem=problem, sheets=1))
        return found

    return opinions


def panel(calibration: Calibration | None, experts: list[Expert], fusion: str) -> Panel:
    names = ["clustering", "quality", "vision"][: len(experts)]
    local = {"base_url": "http://127.0.0.1/v1", "endpoints": ["127.0.0.1"]}
    vision = {"kind": "openai", **local} if "vision" in names else {}
    config = JudgeConfig(experts=names, fusion=fusion, **vision)
    return Panel(config, experts, calibration, near_duplicate=0.995, seed=0)


def out(identity: Identity) -> dict[str, str]:
    return {i.image_id: i.rejected for i in identity.images if i.rejected}


def test_the_doubt_is_on_the_side_of_the_rule(cleaned: Identity, calibration: Calibration) -> None:
    case = open_case(cleaned, JudgeConfig(), calibration, 0)
    assert case is not None and case.asked is None
    assert (np.flatnonzero(case.doubt >= 0.5) == [STRANGER]).all()
    kept = np.array([True, True, False])
    found = doubts(np.array([0.9, -0.2, 0.95]), np.eye(3), kept, calibration)
    assert found[0] < 0.01 and found[1] == 0.499 and found[2] == 0.501


def alike(angle: float, count: int) -> np.ndarray:
    """Unit vectors (count, count + 1) at an angle (in degrees) to an axis that they share."""
    apart = np.radians(angle)
    return np.hstack([np.full((count, 1), np.cos(apart)), np.sin(apart) * np.eye(count)])


def test_less_similar_is_more_doubtful(calibration: Calibration) -> None:
    similarity = np.linspace(-0.5, 0.9, 30)
    found = doubts(similarity, alike(40, 30), similarity > 0.3, calibration)
    assert (np.diff(found) <= 0).all()


def test_it_is_more_doubtful_where_the_others_are_alike(calibration: Calibration) -> None:
    kept = np.arange(IMAGES) != STRANGER
    similarity = np.where(kept, 0.95, 0.5)
    known = replace(calibration, intraclass=0.4)
    loose, tight = (doubts(similarity, alike(a, IMAGES), kept, known) for a in (45, 15))
    assert tight[STRANGER] > loose[STRANGER]
    known = replace(calibration, intraclass=0.0)
    loose, tight = (doubts(similarity, alike(a, IMAGES), kept, known) for a in (45, 15))
    np.testing.assert_array_equal(tight, loose)


def test_the_prediction_is_that_of_the_joint_normal_law(calibration: Calibration) -> None:
    """Conditioned by matrices: each of the seven others at the level that was found."""
    kept = np.arange(IMAGES) != STRANGER
    others, share = IMAGES - 1, 0.4
    known = replace(calibration, intraclass=share)
    genuine, impostor = laws(known.genuine, known.impostor, 0.005)
    covariance = share + (1 - share) * np.eye(IMAGES)
    weights = np.linalg.solve(covariance[1:, 1:], covariance[1:, 0])
    apart = np.arctanh(np.cos(np.radians(25))) - np.arctanh(np.sqrt(known.coherence))
    own = NormalDist(
        genuine.mean + float(weights @ np.full(others, apart)),
        genuine.stdev * float(np.sqrt(1 - weights @ covariance[1:, 0])),
    )
    z = (own.mean + impostor.mean) / 2
    likely = known.strangers * impostor.pdf(z), (1 - known.strangers) * own.pdf(z)
    similarity = np.full(IMAGES, np.tanh(z) * reach(known.coherence, others - 1))
    found = doubts(similarity, alike(25, IMAGES), kept, known)[STRANGER]
    assert found == pytest.approx(max(likely[0] / sum(likely), 0.501))
    assert 0.501 < found < 0.999


@pytest.mark.parametrize("images", [3, 6, 12])
def test_probabilities_are_better_for_knowing_how_alike_the_others_are(images: int) -> None:
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.4, 1.6, 300)[:, None, None]
    strange = rng.random((300, images)) < 0.08
    centres = np.where(
        strange[:, :, None],
        rng.standard_normal((300, images, DIMENSIONS)),
        rng.standard_normal((300, 1, DIMENSIONS)),
    )
    made = centres + spread * rng.standard_normal(centres.shape)
    people = [(f"{k}", own) for k, own in enumerate(made.astype(np.float32))]
    known = calibrate(people, seed=0, population=len(people))
    losses = []
    for used in (known, replace(known, intraclass=0.0)):
        loss = 0.0
        for (_, own), other in zip(people, strange, strict=True):
            vectors = known.transform(own)
            cluster = calibrated_cluster(vectors, known.threshold, known.coherence)
            if cluster.kept.any():
                found = doubts(cluster.similarity, vectors, cluster.kept, used)
                right = np.clip(np.where(other, found, 1 - found), 1e-3, 1)
                loss -= float(np.log(right).sum())
        losses.append(loss)
    assert losses[0] < losses[1]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("any", {"3": "clean:other_person", "5": "judge:other_person", "6": "judge:other_person"}),
        ("all", {}),
        ("majority", {"5": "judge:other_person"}),
    ],
)
def test_rules_take_out_and_restore(
    cleaned: Identity, calibration: Calibration, rule: str, expected: dict[str, str]
) -> None:
    """Clustering names 3, the second names 5, the third 5 and 6."""
    experts = [says(3), says(5), says(5, 6)]
    panel(calibration, experts, rule).judge([cleaned], None)
    assert out(cleaned) == expected
    assert cleaned.judge is not None
    assert cleaned.judge.restored == ([] if "3" in expected else ["3"])
    assert len(cleaned.judge.verdicts) == IMAGES * 4
    named = {v.image_id for v in cleaned.judge.verdicts if v.expert == "combined" and v.outlier}
    assert named == expected.keys()
    assert next(v.reason for v in cleaned.judge.verdicts if v.expert == "vision") == "because"


def test_weights_follow_the_rates(cleaned: Identity, calibration: Calibration) -> None:
    good, bad = [0.01, 0.01, 0.49, 0.49], [0.49, 0.49, 0.01, 0.01]
    deaf = [0.25] * 4
    rates = fusion.Rates(
        outliers=0.2,
        calibrated=[False] * 3,
        of_outliers=np.array([deaf, deaf, good]),
        of_others=np.array([deaf, deaf, bad]),
    )
    panel(calibration, [says(3), says(5), says(6)], "weights").judge([cleaned], rates)
    assert out(cleaned) == {"6": "judge:other_person"}


def test_a_restored_copy_gives_way(cleaned: Identity, calibration: Calibration) -> None:
    cleaned.images[STRANGER].data = cleaned.images[STRANGER + 1].data
    panel(calibration, [says(), says()], "any").judge([cleaned], None)
    assert out(cleaned) == {f"{STRANGER}": "judge:near_duplicate"}


def test_what_is_left_must_agree(calibration: Calibration) -> None:
    """Five images of one person and four of another."""
    one, two = person(1), person(5)
    images = [*one.images[4:], one.images[0], *two.images[4:]]
    for place, image in enumerate(images):
        image.image_id = f"{place}"
    both = Identity(identity_id="x", index=0, source="base", images=images)
    mark(both, CleanConfig(), calibration, {})
    assert out(both).keys() == {"5", "6", "7", "8"}
    # The four are restored, one of the others is taken out: those kept before are still one person.
    panel(calibration, [says(0), says(0)], "any").judge([both], None)
    assert out(both) == {"0": "judge:other_person"}
    everything = [says(*range(9)), says(*range(9))]
    panel(calibration, everything, "all").judge([both], None)
    assert both.rejected == "judge:inconsistent"


def test_silence_is_no_vote_and_is_written_down(
    cleaned: Identity, calibration: Calibration
) -> None:
    before = out(cleaned)
    experts = [says(3), says(3), says(1, 2, problem="status 500 from the service")]
    panel(calibration, experts, "majority").judge([cleaned], None)
    assert out(cleaned) == before
    assert cleaned.judge is not None and cleaned.judge.problem == "status 500 from the service"
    assert not any(v.expert == "vision" for v in cleaned.judge.verdicts)


def test_what_was_refused_before_is_not_judged(calibration: Calibration) -> None:
    refused, single = person(1), person(2)
    refused.rejected = "clean:duplicate_identity"
    for image in single.images[1:]:
        image.rejected = "ingest:corrupt"
    panel(calibration, [says()], "any").judge([refused, single], None)
    assert refused.judge is None and single.judge is None


def test_evidence_goes_through_arrow(cleaned: Identity, calibration: Calibration) -> None:
    panel(calibration, [says(3), says(5)], "any").judge([cleaned], None)
    (again,) = from_table(to_table([cleaned]))
    assert again.judge == cleaned.judge
    assert row_digest(again) == row_digest(cleaned)


def test_every_expert_is_a_file_and_says_whether_it_is_calibrated() -> None:
    assert NAMES == ("clustering", "embedder", "quality", "vision")
    assert calibrated(NAMES, ["calibration", "second"]) == [True, True, False, False]
    assert calibrated(NAMES, []) == [False] * 4
