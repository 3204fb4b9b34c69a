"""The sample job, with the photographs themselves."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.sample import content_digest, run
from raypipe.config import Build, parse
from raypipe.errors import UserError
from raypipe.manifest import Manifest

SAMPLE = {"identities": 6, "images": 4, "duplicates": 1, "leaks": 2}


def build(workspace: Path, *overrides: str) -> Build:
    values = {
        "workspace": str(workspace),
        "embedder": {"kind": "dlib"},
        "sample": SAMPLE,
        "ingest": {"sources": [{"name": "base", "path": "{workspace}/sample/base"}]},
    }
    return parse(values, "test", list(overrides))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    workspace = tmp_path_factory.mktemp("world")
    return workspace, run(build(workspace))


@pytest.mark.slow
def test_the_world_is_whole(made) -> None:
    workspace, manifest = made
    root = workspace / "sample"
    assert sorted(path.name for path in root.iterdir()) == [
        "base",
        "gallery",
        "manifest.json",
        "pairs.parquet",
        "run.json",
        "truth.json",
    ]
    photographs = manifest.counts["photographs"]
    assert photographs["kept"] + sum(photographs["rejected"].values()) == 400
    assert photographs["kept"] >= 390
    assert len(list((root / "base").iterdir())) == manifest.counts["base"]["folders"] == 8
    assert len(list((root / "base").rglob("*.jpg"))) == manifest.counts["base"]["files"]
    assert len(list((root / "gallery").rglob("*.png"))) == manifest.counts["gallery"]["images"]
    pairs = pq.read_table(root / "pairs.parquet")
    assert len(pairs) == manifest.counts["pairs"]["pairs"] >= 2000
    assert (root / "pairs.parquet").stat().st_size < 12_000_000  # each picture stored once


@pytest.mark.slow
def test_a_run_that_was_killed_is_made_anew_to_the_same_bytes(made) -> None:
    workspace, manifest = made
    root = workspace / "sample"
    (root / "manifest.json").unlink()
    (root / "pairs.parquet").unlink()
    (root / "base" / "000000" / "000.jpg").write_bytes(b"half")
    (root / "making" / "base" / "000077").mkdir(parents=True)
    again = run(build(workspace))
    assert again.content_digest == manifest.content_digest
    for name in ("manifest.json", "run.json"):
        (root / name).rename(workspace / name)
    assert content_digest(str(root)) == manifest.content_digest
    for name in ("manifest.json", "run.json"):
        (workspace / name).rename(root / name)


@pytest.mark.slow
def test_a_second_run_does_nothing_and_other_settings_are_noticed(made) -> None:
    workspace, manifest = made
    files = [path for path in workspace.rglob("*") if path.is_file()]
    times = [path.stat().st_mtime_ns for path in files]
    assert run(build(workspace)).content_digest == manifest.content_digest
    assert [path.stat().st_mtime_ns for path in files] == times
    with pytest.raises(UserError, match=r"settings\.z_noise 0\.2 → 0\.3"):
        run(build(workspace, "sample.z_noise=0.3"))


def test_a_configuration_without_the_part_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part 'sample'"):
        run(build(tmp_path, "sample=null"))
