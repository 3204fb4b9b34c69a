"""Kill -9 of the driver, of an actor and of all of Ray, through the real command."""

import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from actors.embed import EmbedActor
from face_sets import write_set
from jobs.inspection import print_verification
from raypipe.config.sample import FAULTLESS, SampleConfig
from raypipe.identities import Identity, Image
from raypipe.manifest import read_manifest
from raypipe.world import make_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated people, enough of them that a kill lands between two written files."""
    root = tmp_path_factory.mktemp("people")
    make_base(SampleConfig(identities=60, images=6, **FAULTLESS), 0, str(root))
    return root / "base"


@pytest.fixture(scope="module")
def ingested(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the people are ingested, to be copied."""
    workspace = tmp_path_factory.mktemp("ingested") / "work"
    write_set(str(workspace / "ingest"), identities(people), job="ingest")
    return workspace


def identities(people: Path) -> list[Identity]:
    return [
        Identity(
            identity_id=f"base/{folder.name}",
            index=index,
            source="base",
            images=[
                Image(image_id=file.name, data=file.read_bytes(), source=file.name)
                for file in sorted(folder.iterdir())
            ],
        )
        for index, folder in enumerate(sorted(people.iterdir()))
    ]


def command(people: Path, workspace: Path) -> list[str]:
    config = workspace.parent / f"{workspace.name}.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "workspace": str(workspace),
                "ray": {
                    "num_cpus": 6,
                    "rows_per_block": 3,
                    "object_store_memory": 100 * 2**20,
                    "no_progress_seconds": 60,
                },
                "embedder": {"kind": "dlib"},
                "ingest": {"sources": [{"name": "base", "path": str(people)}]},
                "embed": {"pool": {"min": 2, "max": 2, "batch_size": 2}},
            }
        )
    )
    return [sys.executable, "-m", "jobs.cli", "JOB", str(config)]


def run(line: list[str], job: str) -> subprocess.CompletedProcess:
    line = [part if part != "JOB" else job for part in line]
    return subprocess.run(line, capture_output=True, text=True, timeout=200)


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)


def rows(workspace: Path) -> int:
    return len(list((workspace / "embed" / "rows").glob("*.parquet")))


@pytest.fixture(scope="module")
def expected(people: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the same work done here, in one loop."""
    root = str(tmp_path_factory.mktemp("whole"))
    embed = EmbedActor({"kind": "dlib"})
    return write_set(root, embed(identities(people))).content_digest


@pytest.mark.parametrize("victim", ["driver", "actor", "ray"])
def test_what_was_killed_ends_as_if_nothing_had_happened(
    victim: str, people: Path, ingested: Path, expected: str, tmp_path: Path
) -> None:
    workspace = tmp_path / "work"
    shutil.copytree(ingested, workspace)
    line = command(people, workspace)
    process = subprocess.Popen([part if part != "JOB" else "embed" for part in line])
    while rows(workspace) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    children = family(process)
    if victim == "actor":
        workers = [child for child in children if "MapBatches(" in " ".join(child.cmdline())]
        workers[0].send_signal(signal.SIGKILL)
        assert process.wait(120) == 0
    else:
        process.kill()
        process.wait()
        if victim == "ray":  # or its processes end by themselves, some time later
            end(children)
        assert not (workspace / "embed" / "manifest.json").exists()
        assert run(line, "embed").returncode == 0
        end(children)
    manifest = read_manifest(str(workspace / "embed"))
    assert manifest is not None and manifest.content_digest == expected
    assert print_verification(str(workspace / "embed"))


def test_a_full_disk_is_named_and_leaves_no_half_file(people: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    workspace = tmp_path / "small" / "work"
    line = command(people, workspace)
    # A file system of its own, of one MiB, seen by this process and its children alone.
    shell = (
        f"mount -t tmpfs -o size=1m tmpfs {tmp_path / 'small'} && "
        f"{' '.join(line).replace('JOB', 'ingest')}; code=$?; "
        f"ls {workspace}/ingest; exit $code"
    )
    Path(line[-1]).rename(tmp_path / "work.yaml")
    shell = shell.replace(line[-1], str(tmp_path / "work.yaml"))
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", shell],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 2, done.stderr
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert "manifest.json" not in done.stdout.split()
