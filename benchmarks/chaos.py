"""Kills nodes, actors and drivers of a build at random moments, and compares what comes out.

    python benchmarks/chaos.py [KILLS]

A build of 300 base identities and new ones goes through every job twice on a cluster of a head and
three nodes, real processes of `ray start` on this machine: once undisturbed, and once with kill -9,
at moments drawn from a seed over the time that the first one took, by turns of the driver, of an
actor and of a whole node. After a kill of the driver the same command is given again; a killed node
is replaced. Where the build ends before all kills are spent, the others hit a new one. Content
digests of every job, and every byte of the training set, must be equal. Exit status 1 where they
are not.
"""

import os
import random
import shutil
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

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from local_cluster import LocalCluster, local_cluster  # noqa: E402

JOBS = (
    *("ingest", "embed", "clean", "judge", "vectors", "seed"),
    *("screen/galleries/orl/ingest", "screen/galleries/orl/embed", "screen", "expand"),
    *("assemble/identities", "assemble", "train", "evaluate"),
)
KINDS = ("driver", "actor", "node")
NODES, CPUS = 3, 4


def configuration(folder: Path, workspace: Path) -> list[str]:
    """Writes a YAML for a small build; returns the command that runs it."""
    path = folder / f"{workspace.name}.yaml"
    sources = [{"name": "base", "path": "{workspace}/sample/base"}]
    galleries = [{"name": "orl", "path": "{workspace}/sample/gallery/orl"}]
    two = {"min": 2, "max": 2, "batch_size": 2}
    values = {
        "workspace": str(workspace),
        "ray": {"rows_per_block": 8},
        "embedder": {"kind": "dlib"},
        "sample": {"identities": 300, "images": 8},
        "ingest": {"sources": sources},
        "embed": {"pool": two},
        "clean": {"min_images": 4},
        "judge": {"kind": "none", "experts": ["clustering", "quality"]},
        "screen": {"galleries": galleries},
        "vectors": {"count": 12, "ceiling": 0.99},
        "seeds": {
            "number": 6,
            "prompts": {"grammar": "portraits"},
            "diffusion": {"steps": 6, "guidance": 2.0, "batch_size": 2},
            "pool": two,
            "reference_pool": {"batch_size": 2},
        },
        "expand": {
            "sources": ["vec", "seed"],
            "images": 8,
            "false_match_rate": 0.01,
            "pool": two,
        },
        "assemble": {
            "images_per_identity": 8,
            "min_images": 4,
            "shard_size": 500,
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
            "max_failures": 100,
        },
        "evaluate": {"sets": [{"name": "ORL", "path": "{workspace}/sample/pairs.parquet"}]},
    }
    path.write_text(yaml.safe_dump(values))
    return [sys.executable, "-m", "jobs.build", str(path)]


class Build:
    """A build on a cluster, and what may be done to it."""

    def __init__(self, cluster: LocalCluster, folder: Path, name: str) -> None:
        self.workspace = folder / name
        self._cluster = cluster
        self._line = configuration(folder, self.workspace)
        self._log = folder / f"{name}.log"
        self.start()

    def start(self) -> None:
        """Gives the command, for the first time or again."""
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                self._line,
                env={**self._cluster.environment, "PYTHONPATH": str(ROOT)},
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    def ends_within(self, seconds: float | None) -> bool:
        """Waits.

        Raises:
            SystemExit: where the build failed, with the end of its log.
        """
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        if status:
            print(self._log.read_text()[-4000:])
            raise SystemExit(1)
        return True

    def kill(self, kind: str, rng: random.Random) -> str:
        """Kills something and puts right what nobody else will; returns what was hit."""
        if kind == "actor":
            found = [
                (process.pid, title)
                for node in self._cluster.nodes
                for process in node.family()
                if _is_actor(title := _title(process))
            ]
            if found:
                pid, title = rng.choice(sorted(found))
                os.kill(pid, 9)
                return title
            kind = "driver"
        if kind == "driver":
            self.process.kill()
            self.process.wait()
            self.start()
            return kind
        self._cluster.remove(rng.choice(self._cluster.nodes))
        while len(self._cluster.nodes) < NODES:
            with suppress(AssertionError):  # on a busy machine a node may not start in time
                self._cluster.add(1, CPUS)
        return kind

    def done(self) -> int:
        """Jobs that are complete."""
        return sum((self.workspace / job / "manifest.json").exists() for job in JOBS)

    def digests(self) -> dict[str, str]:
        """Content digest of every job, and of every file of the training set."""
        found = {}
        for job in JOBS:
            manifest = read_manifest(str(self.workspace / job))
            found[job] = manifest.content_digest if manifest else "missing"
        for path in sorted((self.workspace / "assemble").glob("*/*")):
            if path.parent.name in ("parquet", "webdataset"):
                name = f"{path.parent.name}/{path.name}"
                found[name] = storage.sha256_file(str(path))
        return found

    def identities(self) -> int:
        """In the set that was assembled, rejected ones among them."""
        manifest = read_manifest(str(self.workspace / "assemble/identities"))
        return manifest.counts["identities"]["total"] if manifest else 0


def _is_actor(title: str) -> bool:
    # Agents are parts of a node, which dies with them.
    return title.startswith("ray::") and "IDLE" not in title and "Agent" not in title


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.NoSuchProcess:
        return ""


def main(kills: int) -> int:
    """Runs both builds and prints the comparison; the exit status."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name, local_cluster() as cluster:
        cluster.add(NODES, CPUS)
        folder = Path(name)
        began = time.monotonic()
        whole = Build(cluster, folder, "whole")
        whole.ends_within(None)
        length = time.monotonic() - began
        print(f"undisturbed: {length:.0f} s", flush=True)
        expected = whole.digests()
        wrong: set[str] = set()
        killed = builds = compared = 0
        while killed < kills:
            builds, before, began = builds + 1, killed, time.monotonic()
            build = Build(cluster, folder, f"killed-{builds}")
            while killed < kills and not build.ends_within(rng.uniform(0, 2) * length / kills):
                hit = build.kill(KINDS[killed % len(KINDS)], rng)
                killed += 1
                print(f"{killed}: {hit}; {build.done()} of {len(JOBS)} jobs done", flush=True)
            build.ends_within(None)
            found = build.digests()
            differ = {key for key in expected | found if expected.get(key) != found.get(key)}
            wrong |= differ
            compared += len(expected)
            print(
                f"build {builds}: {build.identities()} identities, {killed - before} kills, "
                f"{time.monotonic() - began:.0f} s; {len(expected)} digests compared, "
                f"{len(differ)} differ {sorted(differ)}",
                flush=True,
            )
            shutil.rmtree(build.workspace)
        print(f"{killed} kills, {builds} builds, {compared} digests compared, {len(wrong)} differ")
        return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 21))
