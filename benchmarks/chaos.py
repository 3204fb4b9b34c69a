"""Kills a build at random moments and compares what comes out with an undisturbed run.

    python benchmarks/chaos.py [KILLS]

A small world goes through every job twice: once undisturbed, once with kill -9 of the driver, of an
actor or of all of Ray, by turns, at moments drawn from a seed; after each kill of the driver or of
Ray the same command is given again. A build that ends before all kills are spent is compared, and
the others hit a new one. Content digests of every job and every byte of the training set must be
equal. Exit status 1 where they are not.
"""

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil
import yaml

from raypipe import storage
from raypipe.manifest import read_manifest

JOBS = (
    "ingest",
    "embed",
    "clean",
    "vectors",
    "seed",
    "screen",
    "expand",
    "assemble/identities",
    "assemble",
    "train",
    "evaluate",
)
KINDS = ("driver", "actor", "ray")


def configuration(folder: Path, workspace: Path) -> list[str]:
    """Writes a YAML for a small build; returns the command that runs it."""
    path = folder / f"{workspace.name}.yaml"
    sources = [{"name": "base", "path": "{workspace}/sample/base"}]
    galleries = [{"name": "orl", "path": "{workspace}/sample/gallery/orl"}]
    values = {
        "workspace": str(workspace),
        "ray": {"num_cpus": 8, "rows_per_block": 4, "object_store_memory": 200 * 2**20},
        "embedder": {"kind": "dlib"},
        "sample": {"identities": 60, "images": 20},
        "ingest": {"sources": sources},
        "embed": {"pool": {"min": 2, "max": 2, "batch_size": 2}},
        "screen": {"galleries": galleries},
        "vectors": {"count": 12, "ceiling": 0.99},
        "seeds": {
            "number": 8,
            "prompts": {"grammar": "portraits"},
            "diffusion": {"steps": 6, "guidance": 2.0, "batch_size": 2},
            "pool": {"min": 2, "max": 2, "batch_size": 2},
            "reference_pool": {"batch_size": 2},
        },
        "expand": {
            "sources": ["vec", "seed"],
            "images": 20,
            "false_match_rate": 0.01,
            "pool": {"min": 2, "max": 2, "batch_size": 2},
        },
        "assemble": {
            "images_per_identity": 24,
            "shard_size": 200,
            "phases": ["vec", "seed", "base"],
            "replacement": None,
        },
        "train": {
            "depth": "10",
            "width": 4,
            "epochs": 2,
            "batch_size": 48,
            "lr": 0.05,
            "milestones": [],
            "margin": 0.2,
        },
        "evaluate": {"sets": [{"name": "ORL", "path": "{workspace}/sample/pairs.parquet"}]},
    }
    path.write_text(yaml.safe_dump(values))
    return [sys.executable, "-m", "jobs.build", str(path)]


def start(line: list[str], log: Path) -> subprocess.Popen:
    with log.open("ab") as output:
        return subprocess.Popen(line, stdout=output, stderr=output)


def kill(process: subprocess.Popen, kind: str, rng: random.Random) -> str:
    """Kills; returns what was hit."""
    children = psutil.Process(process.pid).children(recursive=True)
    if kind == "actor":
        actors = [child for child in children if _is_actor(child)]
        if actors:
            victim = rng.choice(sorted(actors, key=lambda child: child.pid))
            name = _title(victim)
            victim.send_signal(signal.SIGKILL)
            return name
        kind = "driver"
    for child in children if kind == "ray" else []:
        with suppress(psutil.NoSuchProcess):
            child.send_signal(signal.SIGKILL)
    process.kill()
    process.wait()
    psutil.wait_procs(children, timeout=60)
    return kind


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:
        return ""


def _is_actor(process: psutil.Process) -> bool:
    title = _title(process)
    return title.startswith("ray::") and "IDLE" not in title and "Agent" not in title


def digests(workspace: Path) -> dict[str, str]:
    """Content digest of every job, and the bytes of the training set."""
    found = {}
    for job in JOBS:
        manifest = read_manifest(str(workspace / job))
        found[job] = manifest.content_digest if manifest else "missing"
    shards = sorted((workspace / "assemble").glob("*/*"))
    for path in shards:
        if path.parent.name in ("parquet", "webdataset"):
            found[f"{path.parent.name}/{path.name}"] = storage.sha256_file(str(path))
    return found


def main(kills: int) -> int:
    """Runs both builds and prints the comparison; the exit status."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "log"
        began = time.monotonic()
        whole = start(configuration(folder, folder / "whole"), log)
        if whole.wait() != 0:
            print(log.read_text()[-3000:])
            return 1
        length = time.monotonic() - began
        print(f"undisturbed: {length:.0f} s", flush=True)
        expected = digests(folder / "whole")
        wrong: set[str] = set()
        compared = killed = builds = 0
        while killed < kills:
            builds += 1
            workspace = folder / f"killed-{builds}"
            line = configuration(folder, workspace)
            process, before = start(line, log), killed
            while killed < kills:
                try:
                    process.wait(rng.uniform(3, length / 3))
                    break  # it ended first: compared below, and the other kills hit a new build
                except subprocess.TimeoutExpired:
                    killed += 1
                done = [job for job in JOBS if (workspace / job / "manifest.json").exists()]
                hit = kill(process, KINDS[killed % 3], rng)
                print(f"{killed}: {hit}, {len(done)} of {len(JOBS)} jobs done", flush=True)
                if process.poll() is not None:
                    process = start(line, log)
            if process.wait() != 0:
                print(log.read_text()[-3000:])
                return 1
            found = digests(workspace)
            differ = {key for key in expected | found if expected.get(key) != found.get(key)}
            wrong |= differ
            compared += len(expected)
            print(
                f"build {builds}, killed {killed - before} times: {len(expected)} digests, "
                f"{len(differ)} differ {sorted(differ)}",
                flush=True,
            )
            shutil.rmtree(workspace)
        print(f"{killed} kills, {builds} builds, {compared} digests compared, {len(wrong)} differ")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
