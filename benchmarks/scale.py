"""What the engine itself costs, an identity, as a set grows; and how a killed run resumes.

    python benchmarks/scale.py [IDENTITIES ...]

Without numbers 3,000, 30,000 and 300,000. A stage with a stand-in for a model, which hands rows on
as they are, runs over so many identities with two small images each, in blocks of the default size,
each time on a fresh local Ray. Then, at the largest number, everything is killed when half of the
files are written, and the stage is started again. Exit status 1 where

- an identity more costs over 1.2 times as much, in processor time, between the last two numbers as
  between the two before, or
- the resumed run passes its first new row later than 60 seconds after its start, Ray's own start
  included, or its content is not that of the undisturbed run.
"""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from ray._private.internal_api import get_memory_info_reply
from ray._private.state import state

from jobs.cluster import connect
from jobs.stage import Step, run_stage, totals
from raypipe import storage
from raypipe.config import Build, parse
from raypipe.config.base import Pool
from raypipe.faceset import write_files
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg
from raypipe.manifest import Manifest, Origin, summarise, write_manifest
from screening import machine

COUNTS = (3_000, 30_000, 300_000)
IMAGES = 2
CORES = len(os.sched_getaffinity(0))
POLL_SECONDS = 1.0
WORTH = 1.2  # times the cost of an identity before it counts as grown
RESUME_SECONDS = 60.0


class HandOn:
    """Hands rows on as they are, and notes when this actor saw its first."""

    def __init__(self, folder: str) -> None:
        self._mark: Path | None = Path(folder) / str(os.getpid())

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        if self._mark:
            self._mark.write_text(str(time.time()))
            self._mark = None
        return identities


def face_set(root: str, count: int, rows: int) -> None:
    """Writes a finished face set of `count` identities, `rows` a file."""
    rng = np.random.default_rng(0)
    faces = [encode_jpeg(rng.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(64)]
    data = itertools.cycle(faces)

    def identities() -> Iterator[Identity]:
        for index in range(count):
            images = [
                Image(image_id=f"{k}.jpg", data=next(data), source="noise") for k in range(IMAGES)
            ]
            name = f"base/{index:07d}"
            yield Identity(identity_id=name, index=index, source="base", images=images)

    write_files(root, identities(), "source", rows)
    counts, digest = summarise(root)
    origin = Origin(job="source", settings={}, inputs={}, models={})
    counted = totals(counts, images_made=0)
    write_manifest(root, Manifest(origin=origin, counts=counted, content_digest=digest))


def configuration(folder: Path) -> Build:
    """The configuration of a run; what it does not name has its default."""
    return parse(
        {
            "workspace": str(folder),
            "ray": {"num_cpus": CORES + 4, "object_store_memory": 2**30},
            "embedder": {"kind": "dlib"},
            "ingest": {"sources": [{"name": "base", "path": "unused"}]},
        },
        "benchmark",
    )


def stage(folder: Path, name: str) -> None:
    """The driver: runs the stage, and notes what only it knows in `NAME.json`."""
    config = configuration(folder)
    connect(config)
    found = {
        "connected": time.time(),
        "memory": psutil.Process().memory_info().rss,
        "object_store": 0,
        "spilled": 0,
    }
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(POLL_SECONDS):
            stats = get_memory_info_reply(state).store_stats
            found["object_store"] = max(found["object_store"], stats.object_store_bytes_used)
            found["spilled"] = stats.spilled_bytes_total

    marks = folder / f"{name}-marks"
    marks.mkdir()
    step = Step(
        name="hand on",
        actor=HandOn,
        arguments={"folder": str(marks)},
        pool=Pool(min=CORES, max=CORES),
    )
    watcher = threading.Thread(target=watch)
    watcher.start()
    made = run_stage(config, job="stage", source=f"{folder}/source", steps=[step], settings={})
    found["ended"] = time.time()
    stop.set()
    watcher.join()
    found |= {
        "digest": made.content_digest,
        "stream": storage.read_json(f"{folder}/stage/run.json")["stages"][0]["seconds"],
    }
    (folder / f"{name}.json").write_text(json.dumps(found))
    ray.shutdown()


class Processes:
    """Memory and processor time of the driver and of all processes that it started."""

    def __init__(self, driver: subprocess.Popen) -> None:
        self._driver = psutil.Process(driver.pid)
        self._seconds: dict[tuple[int, float], float] = {}
        self.driver_memory = self.ray_memory = 0

    def look(self) -> None:
        """Takes a sample; shared memory is left out of Ray's."""
        memory = 0
        try:
            family = [self._driver, *self._driver.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            try:
                used, times = process.memory_info(), process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            self._seconds[process.pid, process.create_time()] = times.user + times.system
            if process is self._driver:
                self.driver_memory = max(self.driver_memory, used.rss)
            else:
                memory += used.rss - used.shared
        self.ray_memory = max(self.ray_memory, memory)

    @property
    def driver_seconds(self) -> float:
        """Processor time of the driver."""
        return self._seconds[self._driver.pid, self._driver.create_time()]

    @property
    def seconds(self) -> float:
        """Processor time of all together."""
        return sum(self._seconds.values())


def run(folder: Path, name: str, kill: Callable[[], bool] = lambda: False) -> dict[str, Any]:
    """Runs the stage in a process of its own, and returns what was measured.

    Args:
        kill: asked again and again; once it says so, everything is killed.

    Returns:
        Seconds, MiB, files and the content digest; nothing where it was killed.
    """
    started = time.time()
    command = [sys.executable, __file__, "stage", str(folder), name]
    said = folder / f"{name}.log"
    with open(said, "w") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log)
    processes = Processes(driver)
    while driver.poll() is None:
        processes.look()
        if kill():
            family = psutil.Process(driver.pid).children(recursive=True)
            for process in (driver, *family):
                process.kill()
            driver.wait()
            psutil.wait_procs(family)
            return {}
        time.sleep(POLL_SECONDS)
    if driver.returncode:
        sys.exit(f"{said.read_text()}\nthe stage ended with exit status {driver.returncode}")
    found = json.loads((folder / f"{name}.json").read_text())
    first = min(float(mark.read_text()) for mark in (folder / f"{name}-marks").iterdir())
    return {
        "connect": found["connected"] - started,
        "first": first - started,
        "stream": found["stream"],
        "finish": found["ended"] - first - found["stream"],
        "seconds": found["ended"] - found["connected"],
        "processor": processes.seconds,
        "driver_processor": processes.driver_seconds,
        "driver": (processes.driver_memory - found["memory"]) / 2**20,
        "ray": processes.ray_memory / 2**20,
        "store": found["object_store"] / 2**20,
        "spilled": found["spilled"] / 2**20,
        "files": len(storage.listdir(f"{folder}/stage/rows")),
        "digest": found["digest"],
    }


def main() -> None:
    """Prints the table and how the resume went."""
    counts = sorted(map(int, sys.argv[1:])) or list(COUNTS)
    problems: list[str] = []
    print(f"{machine()}, Ray {ray.__version__}; {IMAGES} images an identity\n")
    print(
        "| identities | start, s | rows, s | end, s | ms an identity "
        "| processor, ms an identity | of it the driver | each further: ms | processor "
        "| driver, MiB | Ray's processes, MiB | object store, MiB | spilled, MiB | files |"
    )
    print("|---" * 14 + "|")
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as temporary:
        costs: list[float] = []
        before: tuple[int, dict[str, Any]] | None = None
        for count in counts:
            folder = Path(temporary) / str(count)
            rows = configuration(folder).ray.rows_per_block
            face_set(f"{folder}/source", count, rows)
            found = run(folder, "whole")
            further = ["", ""]
            if before:
                more, less = count - before[0], before[1]
                cost = [(found[n] - less[n]) / more * 1000 for n in ("seconds", "processor")]
                further = [f"{value:.2f}" for value in cost]
                costs.append(cost[1])
            each = 1000 / count
            cells = [
                f"{count:,}",
                f"{found['first'] - found['connect']:.0f}",
                f"{found['stream']:.0f}",
                f"{found['finish']:.0f}",
                f"{found['seconds'] * each:.2f}",
                f"{found['processor'] * each:.2f}",
                f"{found['driver_processor'] * each:.2f}",
                *further,
                *(f"{found[name]:,.0f}" for name in ("driver", "ray", "store", "spilled")),
                f"{found['files']:,}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
            before = count, found
        if len(costs) > 1 and costs[-1] > WORTH * costs[-2]:
            problems.append("the cost of an identity grows")
        problems += resume(folder, count, -(-count // rows), found)
    if problems:
        sys.exit("; ".join(problems))


def resume(folder: Path, count: int, files: int, whole: dict[str, Any]) -> list[str]:
    """Kills the stage half-way, starts it again, and tells what was not as it must be."""
    os.rename(folder / "stage", folder / "whole-stage")
    written = folder / "stage" / "rows"
    killed = run(
        folder,
        "killed",
        lambda: written.exists() and 2 * sum(1 for _ in written.iterdir()) >= files,
    )
    assert not killed, "it ended before it could be killed"
    kept = sum(1 for _ in written.iterdir())
    again = run(folder, "again")
    print(
        f"\nKilled at {kept:,} of {files:,} files of {count:,} identities and started again: Ray "
        f"was there after {again['connect']:.0f} s, the first new row passed "
        f"{again['first'] - again['connect']:.0f} s later, the rest took {again['stream']:.0f} s "
        f"and the end {again['finish']:.0f} s; {again['driver']:,.0f} MiB on the driver, "
        f"{again['ray']:,.0f} MiB in Ray's processes, {again['store']:,.0f} MiB in the object store"
    )
    problems = []
    if again["first"] > RESUME_SECONDS:
        problems.append(f"the resumed run found its place after {again['first']:.0f} s")
    if again["digest"] != whole["digest"]:
        problems.append("the resumed run made something else")
    return problems


if __name__ == "__main__":
    if sys.argv[1:2] == ["stage"]:
        stage(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
