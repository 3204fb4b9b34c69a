"""The whole way, from folders with planted faults to a scored recognizer and its report; in a
folder, and in a bucket with sources, weights and workspace there."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from raypipe import storage
from raypipe.faceset import FaceSet
from raypipe.manifest import read_manifest
from raypipe.models.loading import shipped

EMBEDDER, GENERATOR = "dlib_resnet_v1.safetensors", "vec2face_small.safetensors"


def configuration(workspace: str, models: str) -> dict[str, Any]:
    """A small build; `models` is the folder of its weights."""
    return {
        "workspace": workspace,
        "ray": {
            "num_cpus": 8,
            "rows_per_block": 4,
            "object_store_memory": 200 * 2**20,
            "no_progress_seconds": 120,
        },
        "embedder": {"kind": "dlib", "weights": f"{models}/{EMBEDDER}"},
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
        "expand": {
            "images": 12,
            "attempts": 3,
            "false_match_rate": 0.05,
            "weights": f"{models}/{GENERATOR}",
        },
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
            "epochs": 2,
            "batch_size": 32,
            "lr": 0.05,
            "milestones": [],
            "margin": 0.2,
            "keep_every": 1,
            "log": ["tensorboard"],
        },
        "evaluate": {"sets": [{"name": "ORL", "path": "{workspace}/sample/pairs.parquet"}]},
    }


SETS = ("ingest", "embed", "clean", "vectors", "screen", "expand", "assemble/identities")
JOBS = ("sample", *SETS, "assemble", "train", "evaluate")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A finished workspace."""
    folder = tmp_path_factory.mktemp("build")
    config = configuration(str(folder / "w"), os.path.dirname(shipped(EMBEDDER)))
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
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


@pytest.fixture(scope="module")
def scratch_folder() -> Iterator[Path]:
    """Where a build keeps what is local; short, for the paths of Ray's sockets have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def remote(s3_bucket: str, scratch_folder: Path) -> str:
    """A finished workspace in a bucket, built by a process that has nothing else to write to."""
    for name in (EMBEDDER, GENERATOR):
        with open(shipped(name), "rb") as file:
            storage.write_bytes(f"{s3_bucket}/models/{name}", file.read())
    workspace = f"{s3_bucket}/runs/Zoë 1"
    config = yaml.safe_dump(configuration(workspace, f"{s3_bucket}/models"))
    storage.write_bytes(f"{s3_bucket}/c.yaml", config.encode())
    (scratch_folder / "tmp").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.build", f"{s3_bucket}/c.yaml"],
        env={
            **os.environ,
            "TMPDIR": str(scratch_folder / "tmp"),
            "RAYPIPE_CACHE": str(scratch_folder / "cache"),
            # PyTorch's cache of compiled kernels is kept on purpose, in TMPDIR by default.
            "TORCHINDUCTOR_CACHE_DIR": str(scratch_folder / "inductor"),
        },
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return workspace


def facts(workspace: str, job: str) -> dict[str, Any]:
    """What a job made, of what. The inputs of `ingest` stand for times of files, and in how many
    bytes of Parquet rows lie depends on which of them come to share a file."""
    manifest = read_manifest(storage.join(workspace, job))
    assert manifest is not None, job
    return {
        "content": manifest.content_digest,
        "counts": {name: value for name, value in manifest.counts.items() if name != "bytes"},
        "settings": manifest.origin.settings,
        "models": manifest.origin.models,
        "inputs": manifest.origin.inputs if job != "ingest" else None,
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_bucket_gives_what_a_folder_gives(remote: str, built: Path) -> None:
    local = str(built / "w")
    assert {job: facts(remote, job) for job in JOBS} == {job: facts(local, job) for job in JOBS}
    for file in ("train/recognizer.safetensors", "train/epochs/epoch-001.safetensors"):
        here, there = (storage.read_bytes(storage.join(root, file)) for root in (local, remote))
        assert here == there, file


@pytest.mark.slow
def test_what_is_in_the_bucket_is_whole(remote: str) -> None:
    found = {
        entry.path.removeprefix(f"{remote}/"): entry
        for entry in storage.listdir(remote, recursive=True)
        if entry.is_file
    }
    assert found["report/report.html"].size > 10_000
    assert any(name.startswith("train/tensorboard/events") for name in found)
    assert not any(name.endswith((".tmp", "started.json")) for name in found)
    assert not any("checkpoint" in name for name in found)
    result = CliRunner().invoke(app, ["verify", f"{remote}/assemble"])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_weights_are_kept_and_nothing_else_is_left(remote: str, scratch_folder: Path) -> None:
    kept = {path.name for path in (scratch_folder / "cache").rglob("*.safetensors")}
    assert {EMBEDDER, GENERATOR, "recognizer.safetensors"} <= kept
    # Ray's own folder has its logs.
    assert [path.name for path in (scratch_folder / "tmp").iterdir() if path.name != "ray"] == []
