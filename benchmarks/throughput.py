"""Embedding through the job beside the same network in a plain loop, and the driver's memory.

    python benchmarks/throughput.py

The plain loop decodes and embeds the same bytes, identity by identity, on all cores; it is run
before and after the job, since machines drift, and the mean counts. Start-up is left out of both.
The job reads Parquet, moves the bytes between processes and writes Parquet on the same cores.
"""

import gc
import os
import platform
import tempfile
import threading
import time

import numpy as np
import psutil
import ray
import torch

from actors.embed import EmbedActor
from jobs.stage import Step, run_stage, totals
from raypipe import storage
from raypipe.config import Build, parse
from raypipe.config.base import Pool
from raypipe.config.sample import FAULTLESS, SampleConfig
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg
from raypipe.manifest import Manifest, Origin, summarise, write_manifest
from raypipe.world import make_base

CORES = os.cpu_count() or 1
IDENTITIES = 300
IMAGES = 20


def face_set(root: str, identities: list[Identity]) -> str:
    """Writes a finished face set of the identities."""
    for start in range(0, len(identities), 64):
        write_rows(root, f"{start:06d}.parquet", identities[start : start + 64])
    counts, digest = summarise(root)
    origin = Origin(job="source", settings={}, inputs={}, models={})
    counted = totals(counts, images_made=0)
    write_manifest(root, Manifest(origin=origin, counts=counted, content_digest=digest))
    return root


def faces(folder: str) -> list[Identity]:
    """Generated people, IDENTITIES × IMAGES."""
    make_base(SampleConfig(identities=IDENTITIES, images=IMAGES, **FAULTLESS), 0, folder)
    people = []
    for index, entry in enumerate(storage.listdir(f"{folder}/base")):
        images = [
            Image(image_id=file.name, data=storage.read_bytes(file.path), source=file.path)
            for file in storage.listdir(entry.path)
        ]
        people.append(Identity(identity_id=entry.name, index=index, source="base", images=images))
    return people


def loop(people: list[Identity], threads: int) -> float:
    """Images/s of a plain loop."""
    actor = EmbedActor(embedder={"kind": "dlib"}, threads=threads)
    actor(people[:2])
    start = time.perf_counter()
    for person in people:
        actor([person])
    seconds = time.perf_counter() - start
    for person in people:
        for image in person.images:
            image.embedding = None
    return len(people) * len(people[0].images) / seconds


def job(config: Build, source: str, name: str) -> dict[str, float]:
    """The embed step's timing in `run.json`."""
    step = Step(
        name="embed",
        actor=EmbedActor,
        arguments={"embedder": {"kind": "dlib"}},
        pool=Pool(min=CORES, max=CORES, batch_size=8),
    )
    run_stage(config, job=name, source=source, steps=[step], settings={})
    return storage.read_json(f"{config.workspace}/{name}/run.json")["stages"][0]


class Peak:
    """Largest resident memory of this process while the context is open, in MiB."""

    def __enter__(self) -> "Peak":
        gc.collect()
        self._process = psutil.Process()
        self.start = self.peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _now(self) -> float:
        return self._process.memory_info().rss / 2**20

    def _watch(self) -> None:
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, self._now())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def main() -> None:
    """Prints both tables."""
    with tempfile.TemporaryDirectory() as folder:
        config = parse(
            {
                "workspace": f"{folder}/work",
                "ray": {
                    "num_cpus": CORES + 4,
                    "rows_per_block": 16,
                    "object_store_memory": 512 * 2**20,
                },
                "embedder": {"kind": "dlib"},
                "ingest": {"sources": [{"name": "base", "path": "unused"}]},
            },
            "benchmark",
        )
        people = faces(folder)
        source = face_set(f"{folder}/source", people)
        torch.set_num_threads(CORES)
        job(config, source, "warm-up")  # Ray's own start, and the pages of the files
        before = max(loop(people, 1), loop(people, CORES))
        timing = job(config, source, "embed")
        after = max(loop(people, 1), loop(people, CORES))
        plain = (before + after) / 2
        print(f"{platform.machine()}, {CORES} cores, torch {torch.__version__}\n")
        print(f"Embedding {IDENTITIES * IMAGES:,} images (dlib), images/s\n")
        print("| plain loop before | after | the job | job / loop |\n|---|---|---|---|")
        rate = timing["images_per_second"]
        print(f"| {before:.1f} | {after:.1f} | {rate:.1f} | {rate / plain:.2f} |\n")
        del people
        print("Driver memory while embedding one image an identity\n")
        print("| identities | before, MiB | peak, MiB | growth, MiB |\n|---|---|---|---|")
        rng = np.random.default_rng(0)
        data = encode_jpeg(rng.integers(0, 256, (112, 112, 3), np.uint8))
        for number in (500, 2000, 8000):
            image = Image(image_id="0", data=data, source="noise")
            rows = [
                Identity(identity_id=f"{i:06d}", index=i, source="base", images=[image])
                for i in range(number)
            ]
            root = face_set(f"{folder}/{number}", rows)
            assert len(FaceSet(root).files()) > 1
            del rows
            with Peak() as memory:
                job(config, root, f"embed-{number}")
            growth = memory.peak - memory.start
            print(f"| {number:,} | {memory.start:.0f} | {memory.peak:.0f} | {growth:.0f} |")
        ray.shutdown()


if __name__ == "__main__":
    main()
