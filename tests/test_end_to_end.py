"""The whole way, from folders with planted faults to a scored recognizer and its report."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from raypipe.faceset import FaceSet
from raypipe.manifest import read_manifest

CONFIG = {
    "ray": {"rows_per_block": 4, "no_progress_seconds": 60},
    "embedder": {"kind": "dlib"},
    "sample": {
        "identities": 24,
        "images": 14,
        "near_duplicates": 0.02,
        "corrupt": 0.01,
        "truncated": 0.01,
        "duplicates": 1,
        "leaks": 2,
    },
    "ingest": {"sources": [{"name": "base", "path": "{workspace}/sample/base"}]},
    "embed": {"pool": {"min": 2, "max": 2, "batch_size": 2}},
    "screen": {
        "false_match_rate": 1e-4,
        "galleries": [{"name": "orl", "path": "{workspace}/sample/gallery/orl"}],
    },
    "vectors": {"count": 4, "ceiling": 0.99},
    "expand": {"images": 12, "attempts": 3, "false_match_rate": 0.05},
    "assemble": {
        "min_images": 8,
        "images_per_identity": 12,
        "shard_size": 100,
        "phases": ["vec", "base"],
        "replacement": None,
    },
    "train": {
        "depth": "10",
        "width": 4,
        "epochs": 1,
        "batch_size": 32,
        "lr": 0.05,
        "milestones": [],
        "margin": 0.2,
    },
    "evaluate": {"sets": [{"name": "ORL", "path": "{workspace}/sample/pairs.parquet"}]},
}

SETS = ("ingest", "embed", "clean", "vectors", "screen", "expand", "assemble/identities")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A finished workspace."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "c.yaml").write_text(yaml.safe_dump({**CONFIG, "workspace": str(folder / "w")}))
    result = CliRunner().invoke(app, ["build", str(folder / "c.yaml")])
    assert result.exit_code == 0, result.output
    assert "11 of 11 jobs run" in result.output
    assert str(folder / "w/report/report.html") in result.output.replace("\n", "")
    return folder


def rows(built: Path, job: str) -> dict:
    return {row.identity_id: row for row in FaceSet(str(built / "w" / job)).iter_identities()}


@pytest.mark.slow
def test_every_planted_leak_and_double_is_refused(built: Path) -> None:
    truth = json.loads((built / "w/sample/truth.json").read_text())
    screened = rows(built, "screen")
    leaks = {f"base/{leak['identity']}" for leak in truth["leaks"]}
    refused = {name for name, row in screened.items() if row.rejected == "screen:in_gallery"}
    assert refused == leaks and len(leaks) == 2
    for one, other in truth["duplicates"]:
        first, second = screened[f"base/{one}"], screened[f"base/{other}"]
        assert {first.rejected, second.rejected} == {None, "clean:duplicate_identity"}
        assert first.clean.duplicates == [second.identity_id]
        assert second.clean.duplicates == [first.identity_id]


@pytest.mark.slow
def test_what_was_removed_is_what_was_planted(built: Path) -> None:
    truth = json.loads((built / "w/sample/truth.json").read_text())
    planted = {f"base/{name}" for name, file in truth["files"].items() if file["fault"]}
    removed = {
        f"{row.identity_id}/{image.image_id}"
        for row in rows(built, "clean").values()
        for image in row.images
        if image.rejected
    }
    both = len(planted & removed)
    assert 2 * both / (len(planted) + len(removed)) > 0.93


@pytest.mark.slow
def test_nothing_is_lost_on_the_way(built: Path) -> None:
    for job in SETS:
        counts = read_manifest(str(built / "w" / job)).counts
        for unit, read in (("identities", "total"), ("images", "read")):
            part = counts[unit]
            incoming = part[read] + part.get("made", 0)
            assert part["kept"] + sum(part["rejected"].values()) == incoming
    source = rows(built, "ingest") | rows(built, "vectors")
    for name, row in rows(built, "assemble/identities").items():
        kept = {image.image_id: image.data for image in row.images}
        assert all(kept[image.image_id] == image.data for image in source[name].images)


@pytest.mark.slow
def test_looking_and_running_again(built: Path) -> None:
    runner = CliRunner()
    for job in (*SETS, "assemble", "train"):
        assert runner.invoke(app, ["inspect", str(built / "w" / job)]).exit_code == 0
    for job in (*SETS, "assemble"):
        result = runner.invoke(app, ["verify", str(built / "w" / job)])
        assert result.exit_code == 0, result.output
    again = runner.invoke(app, ["build", str(built / "c.yaml")])
    assert again.exit_code == 0
    assert "nothing to do" in again.output
    other = runner.invoke(app, ["build", str(built / "c.yaml"), "--set", "clean.threshold=0.9"])
    assert other.exit_code == 2
    assert "settings.threshold nothing → 0.9" in other.output.replace("\n", " ")


@pytest.mark.slow
def test_a_changed_shard_is_found(built: Path) -> None:
    shard = next((built / "w/assemble/parquet").glob("*.parquet"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"x")
    result = CliRunner().invoke(app, ["verify", str(built / "w/assemble")])
    shard.write_bytes(whole)
    assert result.exit_code == 1
    assert shard.name in result.output.replace("\n", "")
