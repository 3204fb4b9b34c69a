"""From a cleaned set to images of new people, through Ray: vectors, screening, expansion."""

import shutil
from pathlib import Path

import pytest

from jobs import expand, screen, vectors
from raypipe import storage
from raypipe.config import Build, parse
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.manifest import Manifest, read_started
from raypipe.reasons import explain
from raypipe.recheck import OUT_OF_BAND
from raypipe.verifying import Verification

pytestmark = pytest.mark.slow

PEOPLE, NEW, WANTED = 30, 5, 6


def build(workspace: Path, *overrides: str) -> Build:
    values = {
        "workspace": str(workspace),
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": str(workspace / "unused")}]},
        "ray": {"rows_per_block": 4},
        "vectors": {"count": NEW, "ceiling": 0.99},
        "screen": {"false_match_rate": 1e-3},
        "expand": {"images": WANTED, "attempts": 3, "false_match_rate": 0.05},
    }
    return parse(values, "test", list(overrides))


@pytest.fixture(scope="module")
def screened(cleaned: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A workspace up to `screen`: generated people, and vectors drawn after them."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(cleaned / "clean", work / "clean")
    vectors.run(build(work))
    screen.run(build(work))
    return work


def copied(work: Path, target: Path) -> Path:
    for job in ("clean", "vectors", "screen"):
        shutil.copytree(work / job, target / job)
    return target


@pytest.fixture(scope="module")
def expanded(screened: Path) -> tuple[Path, Manifest]:
    return screened, expand.run(build(screened))


def test_vectors_are_screened_beside_the_set(screened: Path) -> None:
    rows = list(FaceSet(str(screened / "screen")).iter_identities())
    drawn = [row for row in rows if row.source == "vec"]
    assert len(rows) == PEOPLE + NEW and len(drawn) == NEW
    assert sorted(row.index for row in rows) == list(range(PEOPLE + NEW))
    for row in drawn:
        assert row.rejected is None
        assert row.screen.nearest is not None
        assert 0.8 < row.screen.nearest_similarity < 0.99


def test_every_new_person_gets_images_that_passed(expanded: tuple[Path, Manifest]) -> None:
    work, manifest = expanded
    facts = storage.read_json(str(work / "expand/thresholds.json"))
    own = facts["thresholds"]["own"]
    before = {row.identity_id: row for row in FaceSet(str(work / "screen")).iter_identities()}
    made = 0
    for row in FaceSet(str(work / "expand")).iter_identities():
        if row.source == "base":
            assert row.expand is None
            assert row.images[0].data == before[row.identity_id].images[0].data
            continue
        assert row.images[0].data == b"" and row.expand.threshold == own
        assert row.expand.drawn == len(row.images) - 1 <= 3 * WANTED
        assert len(row.kept) <= row.expand.wanted == WANTED
        if len(row.kept) < WANTED:
            assert row.expand.drawn > WANTED
        for image in row.images[1:]:
            assert (image.rejected is None) == (
                image.similarity >= own
                and image.nearest_similarity < facts["thresholds"]["other"]
                and image.nearest_similarity < image.similarity
            )
            assert image.rejected is None or explain(image.rejected)
            assert image.weights == manifest.origin.models["vec2face_small.safetensors"]
        made += row.expand.drawn
    assert manifest.counts["images"]["made"] == made
    assert sum(manifest.counts["images"]["rejected"].values()) < NEW + made
    assert Verification(str(work / "expand"), manifest).run() == []


def test_more_actors_make_the_same_set(expanded: tuple[Path, Manifest], tmp_path: Path) -> None:
    work, manifest = expanded
    again = expand.run(
        build(
            copied(work, tmp_path),
            "expand.pool={min: 3, max: 3, batch_size: 1, num_cpus: 0.5}",
            "ray.rows_per_block=2",
        )
    )
    assert again.content_digest == manifest.content_digest


THREE = ("expand.pool={min: 3, max: 3, batch_size: 1, num_cpus: 0.5}", "ray.rows_per_block=2")
BAND = (0.945, 0.955)  # narrow: images miss it whatever rounds how


def on_two_clusters(work: Path, tmp_path: Path, *changes: str) -> tuple[str, Manifest]:
    """Expands on one actor and on three; checks that both sets are the same."""
    for name in ("one", "three"):
        (tmp_path / name).mkdir()
        copied(work, tmp_path / name)
    manifest = expand.run(build(tmp_path / "one", *changes))
    again = expand.run(build(tmp_path / "three", *changes, *THREE))
    assert again.content_digest == manifest.content_digest
    root = str(tmp_path / "one" / "expand")
    assert Verification(root, manifest).run() == []
    return root, manifest


def test_a_band_makes_the_same_set_on_any_cluster(
    expanded: tuple[Path, Manifest], tmp_path: Path
) -> None:
    changes = (f"expand.band={list(BAND)}", "expand.images=4")
    root, _ = on_two_clusters(expanded[0], tmp_path, *changes)
    dial = storage.read_json(f"{root}/dial.json")
    assert len(dial["identities"]) == NEW
    reasons = set()
    for row in FaceSet(root).iter_identities():
        if row.source == "vec":
            assert all(BAND[0] <= image.similarity <= BAND[1] for image in row.kept)
            reasons |= {image.rejected for image in row.images[1:]}
    assert {None, OUT_OF_BAND} <= reasons


def test_two_generators_make_the_same_set_on_any_cluster(
    expanded: tuple[Path, Manifest], tmp_path: Path
) -> None:
    mix = "{kind: cemiface, similarity: 1, steps: 2, share: 0.4}"
    changes = (f"expand.mix=[{mix}]", "expand.images=4", "expand.attempts=1")
    root, manifest = on_two_clusters(expanded[0], tmp_path, *changes)
    assert {"vec2face_small.safetensors", "cemiface_small.safetensors"} < set(
        manifest.origin.models
    )
    for row in FaceSet(root).iter_identities():
        if row.source == "vec":
            makers = sorted(image.generator for image in row.images[1:5])
            assert makers == ["cemiface", "cemiface", "vec2face", "vec2face"]


def test_a_band_out_of_reach_is_refused_and_may_be_changed(
    expanded: tuple[Path, Manifest], tmp_path: Path
) -> None:
    work = copied(expanded[0], tmp_path)
    with pytest.raises(UserError, match=r"vec2face_small\.safetensors have a similarity of 0\.\d"):
        expand.run(build(work, "expand.band=[0.998, 1]"))
    assert read_started(str(work / "expand")) is None
    assert not storage.exists(str(work / "expand/thresholds.json"))


def test_two_weight_files_of_one_name_are_refused(
    expanded: tuple[Path, Manifest], tmp_path: Path
) -> None:
    work = copied(expanded[0], tmp_path)
    mix = "expand.mix=[{weights: elsewhere/vec2face_small.safetensors, share: 0.5}]"
    with pytest.raises(UserError, match=r"two weight files of one name; rename one"):
        expand.run(build(work, mix))


def test_images_that_do_not_get_where_they_should_are_named(
    expanded: tuple[Path, Manifest], tmp_path: Path
) -> None:
    goal = "{name: quality, estimator: 'raypipe.estimators:face_quality', goal: at_least,"
    attributes = f"expand.attributes={{goals: [{goal} value: 50, tolerance: 1}}], steps: 1}}"
    config = build(copied(expanded[0], tmp_path), attributes, "expand.images=2")
    manifest = expand.run(config)
    assert "face_attributes.safetensors" in manifest.origin.models
    for row in FaceSet(str(tmp_path / "expand")).iter_identities():
        if row.source == "vec":
            assert row.expand.unreached == [image.image_id for image in row.images[1:]]


def test_what_cannot_be_measured_is_said_and_may_be_changed(
    expanded: tuple[Path, Manifest], tmp_path: Path
) -> None:
    work = copied(expanded[0], tmp_path)
    with pytest.raises(UserError, match=r"expand: .* set expand\.false_match_rate to"):
        expand.run(build(work, "expand.false_match_rate=1e-9"))
    assert read_started(str(work / "expand")) is None


def test_without_its_part_of_the_configuration_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part 'expand'"):
        expand.run(build(tmp_path, "expand=null"))
    with pytest.raises(UserError, match="no part 'vectors'"):
        vectors.run(build(tmp_path, "vectors=null"))
