"""Kills a build at random moments and compares what comes out with an undisturbed run.

    python benchmarks/chaos.py [KILLS]

A small world goes through every job twice: once undisturbed, once with kill -9 of the driver, of an
actor or of all of Ray, by turns, at moments drawn from a seed; after each kill of the driver or of
Ray the same command is given again. Content digests of every job and every byte of the training set
must be equal. Exit status 1 where they are not.
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
    "screen",
    "assemble/identities",
    "assemble",
    "train",
    "evaluate",
)
KINDS = ("driver", "actor", "ray")


def configuration(folder: Path, workspace: Path) -> list[str]:
    """Writes a YAML for a small build; returns the command that runs it."""
    path = folder / f"{workspace.name}.yaml"
    sources = [{"name": name, "path": f"{{workspace}}/sample/{name}"} for name in ("base", "new")]
    galleries = [{"name": "orl", "path": "{workspace}/sample/gallery/orl"}]
    values = {
        "workspace": str(workspace),
        "ray": {"num_cpus": 8, "rows_per_block": 4, "object_store_memory": 200 * 2**20},
        "embedder": {"kind": "dlib"},
        "sample": {"identities": 60, "images": 20, "new": 4},
        "ingest": {"sources": sources},
        "embed": {"pool": {"min": 2, "max": 2, "batch_size": 2}},
        "screen": {"galleries": galleries},
        "assemble": {"images_per_identity": 24, "shard_size": 200},
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
        line = configuration(folder, folder / "killed")
        process = start(line, log)
        for number in range(kills):
            # Long enough now and then to pass any one stage, so that all of them are hit.
            moment = rng.uniform(3, max(20.0, length / 3))
            time.sleep(moment)
            if process.poll() is not None:
                print(f"{number + 1}: it had ended; from the start again", flush=True)
                shutil.rmtree(folder / "killed")
                process = start(line, log)
                time.sleep(rng.uniform(5, length / 2))
            done = [job for job in JOBS if (folder / "killed" / job / "manifest.json").exists()]
            hit = kill(process, KINDS[number % 3], rng)
            print(f"{number + 1}: {hit}, {len(done)} of {len(JOBS)} jobs done", flush=True)
            if process.poll() is not None:
                process = start(line, log)
        status = process.wait()
        if status != 0:
            print(log.read_text()[-3000:])
            return 1
        expected, found = digests(folder / "whole"), digests(folder / "killed")
        wrong = [
            key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)
        ]
        print(f"{len(expected)} digests compared, {len(wrong)} differ {sorted(wrong)}")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10))
