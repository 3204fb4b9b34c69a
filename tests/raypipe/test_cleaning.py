"""The cleaning rules on embeddings and pictures with known truth."""

from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from raypipe.cleaning.calibration import Calibration, calibrate, fisher, levels
from raypipe.cleaning.cluster import calibrated_cluster, reach, scores, share_cluster, unit
from raypipe.cleaning.doubles import Double, find_doubles, load_doubles, save_doubles
from raypipe.cleaning.laws import decision, duplicate_limit, histogram, mixture
from raypipe.cleaning.marking import mark
from raypipe.cleaning.pictures import repeated
from raypipe.cleaning.sampling import draw
from raypipe.config.clean import CleanConfig, ShareConfig
from raypipe.config.sample import SampleConfig
from raypipe.errors import UserError
from raypipe.faceset import Embedded
from raypipe.identities import Identity, Image
from raypipe.images import decode, encode_jpeg, resize
from raypipe.world import make_base

World = tuple[list[np.ndarray], list[np.ndarray]]


def world(
    seed: int = 0,
    people: int = 40,
    images: int | list[int] = 20,
    dimension: int = 128,
    strangers: float = 0.1,
    spread: float = 1.0,
    mixed: tuple[int, ...] = (),
) -> World:
    """Embeddings of every folder and which of them are strangers.

    People and images are normal with different covariances, and far from the origin, so that raw
    cosines say little. A mixed folder is 55 % one person, 45 % the next.
    """
    rng = np.random.default_rng(seed)
    scale = 1 / np.sqrt(1 + np.arange(dimension) / (dimension / 8))
    centres = rng.standard_normal((people, dimension)) * scale
    rotation = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    within = 1 / np.sqrt(1 + np.arange(dimension) / (dimension / 16))
    mean = 3 * rng.standard_normal(dimension)
    counts = images if isinstance(images, list) else [images] * people
    embeddings, truth = [], []
    for i, count in enumerate(counts):
        bad = rng.random(count) < strangers
        other = (i + rng.integers(1, people, count)) % people
        if i in mixed:
            bad, other = np.arange(count) >= np.ceil(0.55 * count), np.full(count, (i + 1) % people)
        noise = (rng.standard_normal((count, dimension)) * within) @ rotation
        shown = centres[np.where(bad, other, i)]
        embeddings.append((mean + shown + 1.2 * spread * noise).astype(np.float32))
        truth.append(bad)
    return embeddings, truth


def named(embeddings: list[np.ndarray]) -> list[tuple[str, np.ndarray]]:
    return [(f"{i:03d}", group) for i, group in enumerate(embeddings)]


def removed(embeddings: list[np.ndarray]) -> list[np.ndarray]:
    """What the calibrated rule removes of every folder."""
    found = calibrate(named(embeddings), seed=0, population=len(embeddings))
    return [
        ~calibrated_cluster(found.transform(e), found.threshold, found.coherence).kept
        for e in embeddings
    ]


def f1(found: list[np.ndarray], truth: list[np.ndarray]) -> float:
    one, two = np.concatenate(found), np.concatenate(truth)
    return float(2 * (one & two).sum() / (one.sum() + two.sum()))


@pytest.mark.parametrize("strangers", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("spread", [0.5, 1.0, 1.5])
def test_strangers_are_found(strangers: float, spread: float) -> None:
    embeddings, truth = world(strangers=strangers, spread=spread)
    assert f1(removed(embeddings), truth) >= 0.97


@pytest.mark.slow
def test_strangers_are_found_in_512_dimensions_with_few_images() -> None:
    embeddings, truth = world(people=30, images=12, dimension=512)
    assert f1(removed(embeddings), truth) >= 0.97


def test_strangers_are_found_among_five_people() -> None:
    embeddings, truth = world(people=5)
    assert f1(removed(embeddings), truth) >= 0.9


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0])
def test_a_clean_set_loses_nothing(spread: float) -> None:
    embeddings, _ = world(strangers=0, spread=spread)
    assert np.concatenate(removed(embeddings)).sum() == 0


def test_of_a_folder_of_two_people_the_larger_part_stays() -> None:
    mixed = tuple(range(0, 40, 8))
    embeddings, truth = world(strangers=0.02, mixed=mixed)
    found = removed(embeddings)
    for i in mixed:
        assert np.array_equal(found[i], truth[i])


def test_folders_with_two_or_three_images() -> None:
    embeddings, truth = world(images=[2, 3] * 20, strangers=0)
    assert np.concatenate(removed(embeddings)).sum() == 0
    embeddings, truth = world(images=[3, 20] * 20, strangers=0.1)
    whole = [i for i, bad in enumerate(truth) if (~bad).sum() >= 2]  # two must agree on a person
    found = removed(embeddings)
    assert f1([found[i] for i in whole], [truth[i] for i in whole]) >= 0.97


def test_embeddings_that_tell_nobody_apart_are_an_error() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal((20, 64)).astype(np.float32) for _ in range(30)]
    with pytest.raises(UserError, match="check embedder"):
        calibrate(named(noise), seed=0, population=30)


def test_one_person_cannot_be_calibrated_on() -> None:
    with pytest.raises(UserError, match="two identities"):
        calibrate(named(world()[0][:1]), seed=0, population=1)


def test_a_calibration_is_stored_exactly(tmp_path: Path) -> None:
    found = calibrate(named(world(people=10)[0]), seed=0, population=10)
    found.save(str(tmp_path / "c.npz"))
    again = Calibration.load(str(tmp_path / "c.npz"))
    assert vars(found).keys() == vars(again).keys()
    for name, value in vars(found).items():
        assert np.array_equal(value, getattr(again, name)), name
    assert type(again.threshold) is float


def test_a_calibration_of_before_has_no_intraclass_correlation(tmp_path: Path) -> None:
    found = calibrate(named(world(people=10)[0]), seed=0, population=10)
    found.save(str(tmp_path / "c.npz"))
    with np.load(tmp_path / "c.npz") as stored:
        np.savez(tmp_path / "old.npz", **{k: v for k, v in stored.items() if k != "intraclass"})
    assert Calibration.load(str(tmp_path / "old.npz")).intraclass == 0


@pytest.mark.parametrize("images", [4, 12])
def test_how_much_people_differ_is_measured(images: int) -> None:
    rng = np.random.default_rng(0)
    found = []
    for spreads in (np.full(300, 0.6), rng.uniform(0.3, 0.9, 300)):
        centres = 8 * unit(rng.standard_normal((300, 1, 64)))
        noise = rng.standard_normal((300, images, 64)) * spreads[:, None, None]
        people = named(list((centres + noise).astype(np.float32)))
        found.append(calibrate(people, seed=0, population=300).intraclass)
    assert found[0] < 0.1
    assert 0.3 < found[1] < 1


def test_nobody_differs_where_pairs_are_all_there_is() -> None:
    assert calibrate(named(world(images=2)[0]), seed=0, population=40).intraclass == 0


def test_the_level_of_the_others_by_hand() -> None:
    vectors = around([0, 20, 60, 150])
    kept = np.array([True, True, True, False])
    near, middle, far = np.cos(np.radians([20, 40, 60]))
    expected = np.sqrt([middle, far, near, (near + middle + far) / 3])
    np.testing.assert_allclose(np.tanh(levels(vectors, kept)), expected)
    found = levels(vectors, np.array([True, True, False, False]))
    assert np.isnan(found).tolist() == [True, True, False, False]  # no two others
    np.testing.assert_allclose(found[2:], fisher(np.sqrt([near] * 2)))


def test_the_decision_lies_where_the_densities_cross() -> None:
    one, other = NormalDist(1.2, 0.3), NormalDist(0.0, 0.3)
    assert np.arctanh(decision(one, other, 0.5)) == pytest.approx(0.6, abs=0.01)
    for prior in (0.01, 0.9):
        z = float(np.arctanh(decision(one, other, prior)))
        assert prior * one.pdf(z) == pytest.approx((1 - prior) * other.pdf(z), rel=0.02)


def test_the_share_of_strangers_is_estimated() -> None:
    rng = np.random.default_rng(0)
    impostor = np.tanh(rng.normal(0, 0.15, 50_000))
    for share in (0.0, 0.1, 0.4):
        own = np.tanh(
            np.where(
                rng.random(5000) < share, rng.normal(0, 0.15, 5000), rng.normal(1.2, 0.25, 5000)
            )
        )
        threshold, found = mixture(histogram(own), histogram(impostor))
        assert found == pytest.approx(share, abs=0.02)
        assert 0.1 < threshold < 0.6


def test_the_limit_for_doubles_rises_with_the_population() -> None:
    rng = np.random.default_rng(0)
    same = histogram(np.tanh(rng.normal(2.2, 0.3, 2000)))
    other = histogram(np.tanh(rng.normal(0, 0.15, 50_000)))
    limits = [duplicate_limit(same, other, n) for n in (10, 1000, 300_000)]
    assert limits == sorted(limits)
    assert 0.3 < limits[0] < limits[2] < 0.95


def test_similarity_to_a_centre_of_few_images() -> None:
    rng = np.random.default_rng(0)
    person = unit(rng.standard_normal((2000, 1, 256)))
    images = unit(person + 0.06 * rng.standard_normal((2000, 9, 256)))
    coherence = float((images[:, 0] * images[:, 1]).sum(-1).mean())
    for n in (1, 3, 8):
        centre = unit(images[:, 1 : n + 1].sum(axis=1))
        measured = float((images[:, 0] * centre).sum(-1).mean())
        assert measured == pytest.approx(np.sqrt(coherence) * reach(coherence, n), abs=0.005)


def test_an_image_does_not_vote_for_itself() -> None:
    vectors = np.eye(3)
    kept = np.array([True, True, False])
    assert scores(vectors, kept) == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("n", [0, 1])
def test_one_image_agrees_with_nobody(n: int) -> None:
    found = calibrated_cluster(np.eye(4)[:n], 0.3, 0.5)
    assert not found.kept.any()
    assert found.sizes == []


def around(angles: list[float]) -> np.ndarray:
    """Vectors in a plane; the cosine of two is that of the angle (in degrees) between them."""
    radians = np.radians(angles)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_share_keeps_a_very_clean_folder_whole() -> None:
    found = share_cluster(around([0, 1, 2, 3, 4]), ShareConfig())
    assert found.kept.all()
    assert found.threshold == 0.60  # the first of equal shares


def test_share_takes_the_first_threshold_inside_the_range() -> None:
    # At 0.60 (53.1°) all five are linked; the last leaves once 50° are too far: cos 50° = 0.643.
    found = share_cluster(around([0, 1, 2, 3, 53]), ShareConfig())
    assert found.kept.tolist() == [True] * 4 + [False]
    assert found.threshold == pytest.approx(0.66)
    assert found.sizes == [4]
    assert found.labels.tolist() == [0, 0, 0, 0, -1]


def test_share_loosens_where_the_largest_cluster_is_small() -> None:
    # Pairs 54° apart (0.588) join only below 0.60.
    found = share_cluster(around([0, 5, 59, 64, 150, 250]), ShareConfig())
    assert found.threshold == pytest.approx(0.58)
    assert found.kept.tolist() == [True] * 4 + [False] * 2


def test_share_tightens_where_all_is_noise_as_published() -> None:
    # 56° apart (0.559): two tries looser would have linked them, stricter never does.
    found = share_cluster(around([0, 56, 112]), ShareConfig())
    assert not found.kept.any()


def test_who_stays_of_doubles_and_in_any_order() -> None:
    centres = around([0, 4, 8, 90]).astype(np.float32)
    index = np.array([3, 5, 7, 9])
    kept = np.array([10, 12, 10, 20])
    names = ["a", "b", "c", "d"]
    close = float(np.cos(np.radians(5)))
    expected = {  # b has most images and a and c are both b; a and c alone would be different
        "a": (["b"], False),
        "b": (["a", "c"], True),
        "c": (["b"], False),
    }
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        found = find_doubles(
            [names[i] for i in order], index[order], kept[order], centres[order], close
        )
        assert {name: (d.others, d.stays) for name, d in found.items()} == expected
        assert found["a"].similarity == pytest.approx(np.cos(np.radians(4)), abs=1e-6)
    equal = find_doubles(["x", "y"], np.array([8, 2]), np.array([5, 5]), centres[:2], close)
    assert equal["y"].stays
    assert not equal["x"].stays


def test_doubles_are_stored(tmp_path: Path) -> None:
    doubles = {"a": Double(others=["b"], similarity=0.9, stays=True)}
    save_doubles(str(tmp_path / "d.json"), doubles)
    assert load_doubles(str(tmp_path / "d.json")) == doubles


def embedded(name: str, images: int, rejected: str | None = None) -> Embedded:
    return Embedded(
        identity_id=name,
        index=int(name),
        source="base",
        rejected=rejected,
        image_ids=[str(k) for k in range(images)],
        image_rejected=["ingest:corrupt", *[None] * (images - 1)],
        embeddings=np.full((images, 2), float(name), np.float32),
    )


def test_the_sample_depends_on_names_and_seed_alone() -> None:
    rows = [embedded(str(i), 4) for i in range(50)]
    one, population = draw(rows, 10, seed=1)
    two, _ = draw(reversed(rows), 10, seed=1)
    assert population == 50
    assert [name for name, _ in one] == [name for name, _ in two]
    assert len({name for name, _ in one}) == 10
    assert all(len(embeddings) == 3 for _, embeddings in one)
    assert {name for name, _ in draw(rows, 10, seed=2)[0]} != {name for name, _ in one}
    assert draw([embedded("1", 2), embedded("2", 9, "ingest:empty")], 10, seed=1) == ([], 0)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> list[list[np.ndarray]]:
    """Generated people, six images of each at z-noise 0.1."""
    root = tmp_path_factory.mktemp("faces")
    config = SampleConfig(
        identities=10, images=6, z_noise=0.1, strangers=0, near_duplicates=0, corrupt=0,
        truncated=0, duplicates=0, too_few=0, leaks=0,
    )  # fmt: skip
    make_base(config, 0, str(root))
    return [
        [decode(file.read_bytes(), source=str(file)) for file in sorted(folder.iterdir())]
        for folder in sorted((root / "base").iterdir())
    ]


def shifted(rgb: np.ndarray, x: int, y: int) -> np.ndarray:
    padded = np.pad(rgb, ((4, 4), (4, 4), (0, 0)), mode="edge")
    return padded[4 + y : 116 + y, 4 + x : 116 + x]


def brighter(rgb: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(rgb * factor, 0, 255).astype(np.uint8)


def test_alike_images_of_a_person_are_not_one_picture(faces: list[list[np.ndarray]]) -> None:
    for images in faces:
        assert (repeated(images, CleanConfig().near_duplicate) == -1).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda rgb: rgb,
        lambda rgb: shifted(rgb, 1, 0),
        lambda rgb: shifted(rgb, -2, 3),
        lambda rgb: brighter(rgb, 1.04),
        lambda rgb: brighter(rgb, 0.85),
        lambda rgb: brighter(shifted(rgb, 1, 0), 1.04),
    ],
    ids=["encoded", "shifted", "shifted further", "brighter", "darker", "as planted"],
)
def test_one_picture_is_found_again(faces: list[list[np.ndarray]], change) -> None:
    for images in faces:
        copy = decode(encode_jpeg(change(images[1]), 70), source="copy")
        found = repeated([*images, copy], CleanConfig().near_duplicate)
        assert found.tolist() == [-1] * 6 + [1]


def test_black_pictures_are_not_compared() -> None:
    black = np.zeros((112, 112, 3), np.uint8)
    assert repeated([black, black], 0.9).tolist() == [-1, -1]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(named(world()[0]), seed=0, population=40)


def identity(embeddings: np.ndarray, name: str = "000") -> Identity:
    """An identity whose pictures are all different."""
    rng = np.random.default_rng(0)
    return Identity(
        identity_id=name,
        index=int(name),
        source="base",
        images=[
            Image(
                image_id=str(k),
                data=encode_jpeg(resize(rng.integers(0, 256, (14, 14, 3), np.uint8), (112, 112))),
                source="test",
                embedding=embedding,
            )
            for k, embedding in enumerate(embeddings)
        ],
    )


def test_strangers_are_marked_with_the_evidence(calibration: Calibration) -> None:
    embeddings, truth = world()
    for i in range(5):
        row = identity(embeddings[i], f"{i:03d}")
        mark(row, CleanConfig(), calibration, {})
        reasons = ["clean:other_person" if bad else None for bad in truth[i]]
        assert [image.rejected for image in row.images] == reasons
        assert row.rejected is None
        assert row.clean.rule == "calibrated"
        assert row.clean.cluster_sizes[0] == (~truth[i]).sum()
        assert sum(row.clean.cluster_sizes) == len(truth[i])
        for image in row.images:
            assert (image.similarity >= row.clean.threshold) == (image.rejected is None)
            assert (image.cluster == 0) == (image.rejected is None)


def test_another_threshold_gives_another_result(calibration: Calibration) -> None:
    usual, strict = identity(world()[0][0]), identity(world()[0][0])
    mark(usual, CleanConfig(), calibration, {})
    middle = float(np.median([image.similarity for image in usual.kept]))
    mark(strict, CleanConfig(), replace(calibration, threshold=0.97 * middle), {})
    assert 2 <= len(strict.kept) < len(usual.kept)


def test_nothing_consistent_is_rejected_whole(calibration: Calibration) -> None:
    embeddings, _ = world(strangers=0)
    for rows in ([embeddings[i][0] for i in range(8)], [embeddings[0][0]], []):
        row = identity(np.array(rows))
        mark(row, CleanConfig(), calibration, {})
        assert row.rejected == "clean:inconsistent"
        assert all(image.cluster == -1 and image.similarity is None for image in row.images)


def test_share_needs_two_images() -> None:
    for images in (0, 1):
        row = identity(around([0.0])[:images].astype(np.float32))
        mark(row, CleanConfig(rule="share"), None, {})
        assert row.rejected == "clean:inconsistent"


def test_what_was_rejected_before_stays_as_it_was(calibration: Calibration) -> None:
    row = identity(world(strangers=0)[0][0])
    row.images[3].rejected, row.images[3].embedding = "ingest:corrupt", None
    mark(row, CleanConfig(), calibration, {})
    assert row.images[3].rejected == "ingest:corrupt"
    assert row.images[3].cluster is None
    assert len(row.kept) == 19
    gone = identity(world()[0][0])
    gone.rejected = "ingest:bad_name"
    mark(gone, CleanConfig(), calibration, {})
    assert gone.clean is None
    assert len(gone.kept) == 20


def test_the_later_of_two_equal_pictures_is_rejected(calibration: Calibration) -> None:
    row = identity(world(strangers=0)[0][0])
    row.images[7].data = row.images[2].data
    mark(row, CleanConfig(), calibration, {})
    assert [i for i, image in enumerate(row.images) if image.rejected] == [7]
    assert row.images[7].rejected == "clean:near_duplicate"


def test_both_doubles_name_the_other(calibration: Calibration) -> None:
    doubles = {
        "000": Double(others=["007"], similarity=0.93, stays=True),
        "007": Double(others=["000"], similarity=0.93, stays=False),
    }
    embeddings = world(strangers=0)[0]
    rows = [identity(embeddings[0], name) for name in ("000", "007", "008")]
    for row in rows:
        mark(row, CleanConfig(), calibration, doubles)
    assert [row.rejected for row in rows] == [None, "clean:duplicate_identity", None]
    assert [row.clean.duplicates for row in rows] == [["007"], ["000"], []]
    assert [row.clean.duplicate_similarity for row in rows] == [0.93, 0.93, None]
    assert rows[0].clean.duplicate_threshold == calibration.duplicate_threshold


def test_share_does_nothing_but_cluster() -> None:
    row = identity(around([0, 1, 2, 3, 53]).astype(np.float32))
    row.images[1].data = row.images[0].data
    mark(row, CleanConfig(rule="share"), None, {})
    assert [image.rejected for image in row.images] == [None] * 4 + ["clean:other_person"]
    assert row.clean.rule == "share"
    assert row.clean.duplicate_threshold is None
