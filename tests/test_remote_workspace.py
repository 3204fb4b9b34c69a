"""A whole build in a bucket, with sources, weights and workspace there: the same as in a folder."""

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
from raypipe.manifest import read_manifest
from raypipe.models.loading import shipped

# Two builds; a machine that is busy with other things takes ten times as long.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

JOBS = ("sample", "ingest", "embed", "clean", "vectors", "screen", "expand")
JOBS += ("assemble/identities", "assemble", "train", "evaluate")
EMBEDDER, GENERATOR = "dlib_resnet_v1.safetensors", "vec2face_small.safetensors"


def configuration(workspace: str, models: str) -> dict[str, Any]:
    """A small build; `models` is the folder of its weights."""
    return {
        "workspace": workspace,
        "ray": {"num_cpus": 8, "rows_per_block": 4, "object_store_memory": 200 * 2**20},
        "embedder": {"kind": "dlib", "weights": f"{models}/{EMBEDDER}"},
        "sample": {"identities": 16, "images": 8, "duplicates": 1, "leaks": 1},
        "ingest": {"sources": [{"name": "base", "path": "{workspace}/sample/base"}]},
        "embed": {"pool": {"min": 2, "max": 2, "batch_size": 2}},
        "clean": {"sample_identities": 10},
        "screen": {
            "false_match_rate": 0.005,
            "galleries": [{"name": "orl", "path": "{workspace}/sample/gallery/orl"}],
        },
        "vectors": {"count": 2, "ceiling": 0.99},
        "expand": {
            "images": 4,
            "attempts": 2,
            "false_match_rate": 0.05,
            "weights": f"{models}/{GENERATOR}",
        },
        "assemble": {
            "min_images": 4,
            "images_per_identity": 8,
            "shard_size": 50,
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
        timeout=1500,
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


def test_a_bucket_gives_what_a_folder_gives(remote: str, ray_cluster: None, tmp_path: Path) -> None:
    local = str(tmp_path / "w")
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(configuration(local, os.path.dirname(shipped(EMBEDDER)))))
    result = CliRunner().invoke(app, ["build", str(config)])
    assert result.exit_code == 0, result.output
    assert {job: facts(remote, job) for job in JOBS} == {job: facts(local, job) for job in JOBS}
    for file in ("train/recognizer.safetensors", "train/epochs/epoch-001.safetensors"):
        here, there = (storage.read_bytes(storage.join(root, file)) for root in (local, remote))
        assert here == there, file


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


def test_weights_are_kept_and_nothing_else_is_left(remote: str, scratch_folder: Path) -> None:
    kept = {path.name for path in (scratch_folder / "cache").rglob("*.safetensors")}
    assert {EMBEDDER, GENERATOR, "recognizer.safetensors"} <= kept
    # Ray's own folder has its logs.
    assert [path.name for path in (scratch_folder / "tmp").iterdir() if path.name != "ray"] == []
