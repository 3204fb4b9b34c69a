"""The embed and clean jobs, through Ray, on a small world with planted faults."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jobs import clean, embed, ingest
from raypipe.cleaning.calibration import Calibration
from raypipe.config import Build, parse
from raypipe.config.sample import SampleConfig
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import Identity
from raypipe.manifest import read_manifest
from raypipe.world import make_base

WORLD = SampleConfig(
    identities=14,
    images=10,
    z_noise=0.2,
    strangers=0.08,
    near_duplicates=0.03,
    corrupt=0.01,
    truncated=0,
    duplicates=1,
    too_few=1,
    leaks=0,
)


def build(folder: Path, *overrides: str, workspace: str = "work") -> Build:
    values = {
        "workspace": str(folder / workspace),
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": str(folder / "base")}]},
        "ray": {"rows_per_block": 4},
    }
    return parse(values, "test", list(overrides))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A world, ingested, embedded and cleaned into its `work` folder."""
    folder = tmp_path_factory.mktemp("world")
    truth = make_base(WORLD, 1, str(folder))
    (folder / "truth.json").write_text(json.dumps(truth))
    config = build(folder)
    ingest.run(config)
    clean.run(config)
    return folder


def rows(folder: Path, job: str, workspace: str = "work") -> dict[str, Identity]:
    found = FaceSet(str(folder / workspace / job)).iter_identities()
    return {identity.identity_id: identity for identity in found}


@pytest.mark.slow
def test_every_usable_image_is_embedded(made: Path) -> None:
    read, embedded = rows(made, "ingest"), rows(made, "embed")
    assert embedded.keys() == read.keys()
    for name, identity in embedded.items():
        for image, before in zip(identity.images, read[name].images, strict=True):
            assert image.data == before.data
            assert (image.embedding is not None) == (before.rejected is None)
    vectors = {image.embedding.shape for i in embedded.values() for image in i.kept}
    assert vectors == {(128,)}


@pytest.mark.slow
def test_the_planted_faults_are_found(made: Path) -> None:
    truth = json.loads((made / "truth.json").read_text())
    found = rows(made, "clean")
    right = wrong = 0
    for identity in found.values():
        for image in identity.images:
            planted = truth["files"][image.source]["fault"] == "stranger"
            right += planted and image.rejected == "clean:other_person"
            wrong += planted != (image.rejected == "clean:other_person")
    assert 2 * right / (2 * right + wrong) >= 0.9
    for pair in truth["duplicates"]:
        one, other = (f"base/{folder}" for folder in pair)
        assert found[one].clean.duplicates == [other]
        assert found[other].clean.duplicates == [one]
        assert {found[one].rejected, found[other].rejected} == {None, "clean:duplicate_identity"}
    repeated = [name for name, f in truth["files"].items() if f["fault"] == "near_duplicate"]
    verdicts = {
        image.source: image.rejected for identity in found.values() for image in identity.images
    }
    assert len(repeated) >= 3
    for name in repeated:  # the copy or the image it repeats, whichever comes later
        both = [verdicts[name], verdicts[truth["files"][name]["of"]]]
        assert sorted(map(str, both)) == ["None", "clean:near_duplicate"]
    assert all(len(i.kept) > 0 for i in found.values() if i.rejected is None)


@pytest.mark.slow
def test_nothing_is_lost(made: Path) -> None:
    counts = read_manifest(str(made / "work" / "clean")).counts
    images = counts["images"]
    assert images["kept"] + sum(images["rejected"].values()) == images["read"] == images["total"]
    assert images["total"] == read_manifest(str(made / "work" / "ingest")).counts["images"]["total"]
    assert images["rejected"]["ingest:corrupt"] >= 1
    assert counts["identities"]["rejected"] == {"clean:duplicate_identity": 1}


@pytest.mark.slow
def test_a_second_run_does_nothing(made: Path) -> None:
    files = [path for path in (made / "work").rglob("*") if path.is_file()]
    times = [path.stat().st_mtime_ns for path in files]
    assert clean.run(build(made)) == read_manifest(str(made / "work" / "clean"))
    assert [path.stat().st_mtime_ns for path in files] == times


@pytest.mark.slow
def test_other_pools_and_blocks_give_the_same_content(made: Path) -> None:
    shutil.copytree(made / "work" / "ingest", made / "other" / "ingest")
    pool = "{min: 2, max: 2, batch_size: 3}"
    config = build(
        made, f"embed.pool={pool}", f"clean.pool={pool}", "ray.rows_per_block=3", workspace="other"
    )
    assert (
        clean.run(config).content_digest
        == read_manifest(str(made / "work" / "clean")).content_digest
    )
    calibrations = [
        Calibration.load(str(made / w / "clean/calibration.npz")) for w in ("work", "other")
    ]
    assert np.array_equal(calibrations[0].projection, calibrations[1].projection)


@pytest.mark.slow
def test_another_threshold_needs_no_new_embedding(made: Path) -> None:
    (made / "again").mkdir()
    for job in ("ingest", "embed", "clean"):
        shutil.copytree(made / "work" / job, made / "again" / job)
    config = build(made, "clean.threshold=0.75", workspace="again")
    with pytest.raises(UserError, match=r"threshold nothing → 0\.75"):
        clean.run(config)
    shutil.rmtree(made / "again" / "clean")
    embedded = (made / "again" / "embed" / "manifest.json").stat().st_mtime_ns
    strict = clean.run(config)
    assert (made / "again" / "embed" / "manifest.json").stat().st_mtime_ns == embedded
    usual = read_manifest(str(made / "work" / "clean"))
    assert strict.counts["images"]["kept"] < usual.counts["images"]["kept"]


@pytest.mark.slow
def test_the_published_rule_only_clusters(made: Path) -> None:
    (made / "share").mkdir()
    for job in ("ingest", "embed"):
        shutil.copytree(made / "work" / job, made / "share" / job)
    manifest = clean.run(build(made, "clean.rule=share", workspace="share"))
    assert not (made / "share" / "clean" / "calibration.npz").exists()
    assert set(manifest.counts["images"]["rejected"]) <= {"ingest:corrupt", "clean:other_person"}
    assert {i.clean.rule for i in rows(made, "clean", "share").values()} == {"share"}


@pytest.mark.slow
def test_clean_needs_an_ingested_set(tmp_path: Path, ray_cluster: None) -> None:
    with pytest.raises(UserError, match="ingest is not a finished face set"):
        embed.run(build(tmp_path))
