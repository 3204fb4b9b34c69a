"""Expansion through the job beside the bare generator, and what the checks let through.

    python benchmarks/expand.py

1. Speed. The published base network (174 million parameters, random, for dlib's 128 numbers) on all
   cores: the job's images/s while it works, with JPEG, embedding, search and Parquet, against the
   forward pass alone on batches of the same images, which is timed before and after the job.
2. What passes. The small generator that ships, sampled vectors, every perturbation: the share of
   images that are accepted at the first draw, and the identities that get all their images.
"""

import os
import platform
import tempfile
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import ray
import torch

from actors.embed import EmbedActor
from jobs import expand, screen, vectors
from raypipe import storage
from raypipe.config import Build, parse
from raypipe.faceset import FaceSet
from raypipe.models.vec2face import Vec2Face
from raypipe.models.vec2face_sizes import INFERENCE, PUBLISHED
from raypipe.seeding import generator
from throughput import face_set, faces

CORES = os.cpu_count() or 1
PEOPLE, IMAGES = 96, 8  # of the speed test
ROUNDS = 24  # of the bare network
NEW, WANTED = 60, 14  # of the other


def build(workspace: str, count: int, changes: list[str]) -> Build:
    values = {
        "workspace": workspace,
        "ray": {"num_cpus": CORES + 2, "rows_per_block": 4, "object_store_memory": 512 * 2**20},
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": "unused"}]},
        "vectors": {"count": count, "ceiling": 0.97},
        "screen": {"false_match_rate": 1e-5},
        "expand": {
            "false_match_rate": 0.01,
            "pool": {"min": CORES, "max": CORES},  # threads of one actor wait for each other
        },
    }
    return parse(values, "benchmark", changes)


def bare(network: Vec2Face) -> float:
    """Images/s of the forward pass."""
    rng = np.random.default_rng(0)
    drawn = [INFERENCE.draw(generator(0, "person", k)) for k in range(IMAGES)]
    noise = torch.from_numpy(np.stack([noise for noise, _ in drawn]))
    rates = torch.tensor([rate for _, rate in drawn], dtype=torch.float64)
    vectors = torch.from_numpy(rng.standard_normal((IMAGES, 128)).astype(np.float32))
    with torch.inference_mode():
        network(vectors, noise, rates)
        start = time.perf_counter()
        for _ in range(ROUNDS):
            network(vectors, noise, rates)
    return ROUNDS * IMAGES / (time.perf_counter() - start)


def bare_in_actors(weights: str) -> float:
    """The same as the job computes it: in a process of Ray's with one thread on every core."""
    task = ray.remote(num_cpus=1)(bare_alone).options(scheduling_strategy="SPREAD")
    return sum(ray.get([task.remote(weights) for _ in range(CORES)]))


def bare_alone(weights: str) -> float:
    torch.set_num_threads(1)
    return bare(Vec2Face.from_checkpoint(weights).prepare(torch.device("cpu")))


def speed(folder: str, clean: str) -> None:
    torch.set_num_threads(CORES)
    torch.manual_seed(0)
    network = Vec2Face(replace(PUBLISHED["base"], vector=128))
    weights = f"{folder}/base.safetensors"
    storage.write_bytes(weights, network.to_safetensors())
    network.prepare("cpu")
    work = f"{folder}/speed"
    os.makedirs(work)
    os.symlink(clean, f"{work}/clean")
    # Nothing that random weights paint is anybody: one attempt, all images counted.
    config = build(
        work,
        PEOPLE,
        [f"expand.weights={weights}", f"expand.images={IMAGES}", "expand.attempts=1"],
    )
    vectors.run(config)
    screen.run(config)
    alone = [bare(network)]
    before = bare_in_actors(weights)
    expand.run(config)
    after = bare_in_actors(weights)
    alone.append(bare(network))
    stage = storage.read_json(f"{work}/expand/run.json")["stages"][1]
    made = sum(len(row.images) - 1 for row in new_people(work))
    seconds = stage["span"] if "span" in stage else stage["seconds"]
    rate = made / seconds
    print(f"{made} images of the full network through the job, {CORES} cores\n")
    print("| bare network in | before | after | the job | job / bare |\n|---|---|---|---|---|")
    for name, first, last in (
        (f"{CORES} processes with a thread each", before, after),
        (f"the driver with {CORES} threads", *alone),
    ):
        share = 2 * rate / (first + last)
        print(f"| {name} | {first:.2f} | {last:.2f} | {rate:.2f} | {share:.3f} |")


def new_people(work: str) -> list:
    rows = FaceSet(f"{work}/expand").iter_identities()
    return [row for row in rows if row.source == "vec"]


def passing(folder: str, clean: str) -> None:
    print(f"{NEW} vectors, {WANTED} images each, the small generator\n")
    print("| perturbation | accepted at once | of all draws | complete | refused |")
    print("|---|---|---|---|---|")
    for kind in ("mixture", "reference", "directed"):
        work = f"{folder}/{kind}"
        os.makedirs(work)
        os.symlink(clean, f"{work}/clean")
        config = build(work, NEW, [f"expand.images={WANTED}", f"expand.perturbation.kind={kind}"])
        vectors.run(config)
        screen.run(config)
        expand.run(config)
        people = new_people(work)
        made = [image for row in people for image in row.images[1:]]
        first = [image for image in made if "." not in image.image_id]
        reasons = Counter(image.rejected for image in made if image.rejected)
        complete = sum(len(row.kept) == WANTED for row in people)
        print(
            f"| {kind} | {np.mean([not image.rejected for image in first]):.1%} | "
            f"{np.mean([not image.rejected for image in made]):.1%} | {complete} of {len(people)} "
            f"| {', '.join(f'{reason} {number}' for reason, number in sorted(reasons.items()))} |",
            flush=True,
        )


def main() -> None:
    print(f"{platform.machine()}, {CORES} cores, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        people = faces(folder)
        EmbedActor(embedder={"kind": "dlib"})(people)
        clean = face_set(f"{folder}/clean", people)
        passing(folder, clean)
        print()
        speed(folder, clean)
        ray.shutdown()


if __name__ == "__main__":
    main()
