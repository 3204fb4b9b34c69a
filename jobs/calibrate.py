"""Measures how fast the steps of a configuration are here: a miniature of the build is run.

The jobs and actors are the real ones, with the weights, pools and batches of the configuration; the
people are generated, few, and of nobody's set. What a job could not do with so few people is left
to the assumptions, and said. Of a vision model nothing is measured: it is not asked.
"""

import os
import platform
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.markup import escape

from jobs.cli import run_job
from jobs.progress import console
from raypipe import orl, storage
from raypipe.aligners import open_aligner
from raypipe.config import Build
from raypipe.config.align import AlignerConfig
from raypipe.config.evaluate import VerificationSetConfig
from raypipe.config.gates import GatesConfig
from raypipe.config.ingest import SourceConfig
from raypipe.config.plan import PlanConfig
from raypipe.config.sample import FAULTLESS, SampleConfig
from raypipe.config.screen import GalleryConfig
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.images import decode
from raypipe.manifest import read_manifest
from raypipe.planning.actual import GALLERIES, RUN, job_seconds
from raypipe.planning.facts import Facts, factors
from raypipe.planning.rates import RATES, shipped
from raypipe.planning.recipes import recipes
from raypipe.planning.timing import Cluster, build_times, place, primitives, this_machine
from raypipe.planning.walk import walk
from raypipe.report.workspace import OPTIONAL
from raypipe.scratch import scratch
from raypipe.world import make_base

_FOLDER = "calibration"  # in the workspace
_PEOPLE, _IMAGES = 60, 12  # of the base set
_GALLERY = 20  # people, and of the pairs
_VECTORS, _SEEDS = 4, 8
_PHOTOGRAPHS = 24
_JOBS = (
    *("ingest", "embed", "clean", "judge", "vectors", "seed", "screen", "expand", "assemble"),
    *("train", "evaluate", "report"),
)
_MEASURED_APART = {"photographs", "generate", "align", "train", "evaluate", "search"}


def run(config: Build) -> None:
    """Writes `{workspace}/rates.json`, which `raypipe plan` takes from then on."""
    start = time.monotonic()
    root = storage.join(config.workspace, _FOLDER)
    storage.delete(root)
    small = _miniature(config, root)
    measured = _world(root, config.seed, small)
    failed: list[str] = []
    for job in _JOBS:
        if job in OPTIONAL and not small.has(job):
            continue
        console.rule(f"[bold]calibrate: {job}", align="left", style="dim")
        try:
            run_job(job, small)
        except UserError as error:
            failed.append(f"{job}: {error}")
            console.print(f"[yellow]not measured[/] {escape(str(error))}", soft_wrap=True)
            break  # those that follow read what it makes
    found = _found(config, small, root, measured)
    path = storage.join(config.workspace, RATES)
    storage.write_json(path, {**found, "failed": failed})
    storage.delete(root)
    console.print(f"measured in {time.monotonic() - start:.0f} s: [bold]{path}[/]", soft_wrap=True)


def _miniature(config: Build, root: str) -> Build:
    """The build with few people, made ones in the place of its sets."""
    world = storage.join(root, "world")
    name = config.ingest.sources[0].name if config.ingest.sources else "base"
    changes: dict[str, Any] = {
        "workspace": root,
        "sample": None,
        "plan": PlanConfig(),
        "ingest": config.ingest.model_copy(
            update={
                "sources": [SourceConfig(name=name, path=storage.join(world, "people", "base"))],
                "aligner": None,
            }
        ),
        "clean": config.clean.model_copy(update={"min_images": 1}),
        "screen": config.screen.model_copy(
            update={
                "galleries": [
                    GalleryConfig(name="people", path=storage.join(world, "gallery", "base"))
                ],
            }
        ),
        "assemble": config.assemble.model_copy(update={"min_images": 1, "similarity": None}),
        "train": config.train.model_copy(
            update={"set": None, "epochs": 1, "warmup_epochs": 0.0, "keep_every": 0, "log": []}
        ),
        "evaluate": config.evaluate.model_copy(
            update={
                "sets": [VerificationSetConfig(name="p", path=storage.join(world, "pairs.parquet"))]
            }
        ),
    }
    if config.judge is not None:
        experts = [expert for expert in config.judge.experts if expert != "vision"]
        changes["judge"] = config.judge.model_copy(
            update={"kind": "none", "experts": experts or ["clustering"]}
        )
    if config.vectors is not None:
        changes["vectors"] = config.vectors.model_copy(
            update={"count": _VECTORS, "ceiling": 1.0, "source": None}
        )
    if config.seeds is not None:
        gates = GatesConfig(**dict.fromkeys(GatesConfig.model_fields))
        changes["seeds"] = config.seeds.model_copy(update={"number": _SEEDS, "gates": gates})
    if config.expand is not None:
        changes["expand"] = config.expand.model_copy(update={"band": None})
    return config.model_copy(update=changes)


def _world(root: str, seed: int, config: Build) -> dict[str, float]:
    """Makes people, a gallery and pairs; seconds a photograph and an image took."""
    measured = {}
    faults = {**FAULTLESS, "strangers": 0.05}
    with scratch() as made:
        people = SampleConfig(identities=_PEOPLE, images=_IMAGES, **faults)
        start = time.perf_counter()
        make_base(people, seed, os.path.join(made, "people"))
        measured["cpu generate"] = (time.perf_counter() - start) / (_PEOPLE * _IMAGES)
        make_base(
            SampleConfig(identities=_GALLERY, images=5, **FAULTLESS),
            seed + 1,
            os.path.join(made, "gallery"),
        )
        faces: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
        for folder, _, names in os.walk(os.path.join(made, "gallery", "base")):
            for number, name in enumerate(sorted(names)):
                path = os.path.join(folder, name)
                faces[os.path.basename(folder)][number] = decode(
                    storage.read_bytes(path), source=path
                )
        pairs = os.path.join(made, "pairs.parquet")
        pq.write_table(orl.make_pairs(dict(faces), [], seed), pairs)
        for folder, _, names in os.walk(made):
            for name in names:
                path = os.path.join(folder, name)
                inner = os.path.relpath(path, made)
                storage.write_bytes(storage.join(root, "world", inner), storage.read_bytes(path))
    measured["cpu photographs"] = _seconds_of_aligner(AlignerConfig())
    if config.ingest.aligner is not None:
        kind = "gpu" if config.ingest.pool.num_gpus else "cpu"
        measured[f"{kind} align"] = _seconds_of_aligner(config.ingest.aligner)
    return measured


def _seconds_of_aligner(config: AlignerConfig) -> float:
    """Seconds for a photograph, of those that ship."""
    aligner = open_aligner(config)
    photographs = [
        decode(storage.read_bytes(photo.path), source=photo.path)
        for photo in orl.photographs()[:_PHOTOGRAPHS]
    ]
    start = time.perf_counter()
    for photograph in photographs:
        aligner.align(photograph)
    return (time.perf_counter() - start) / len(photographs)


def _found(config: Build, small: Build, root: str, measured: dict[str, float]) -> dict[str, Any]:
    """The content of rates.json."""
    counts = {
        job: manifest.counts
        for job in _JOBS
        if (manifest := read_manifest(storage.join(root, job))) is not None
    }
    plain = shipped()
    facts = Facts(small, replace(plain, factors=factors(counts)))
    jobs = [job for job in walk(facts) if job.name in counts]
    cluster = _cluster(small)
    images: dict[str, float] = defaultdict(float)
    gpu: dict[str, bool] = {}
    # Of the other parts nobody notes how long their actors were at work.
    stages = [part for job in jobs for part in job.parts if part.kind == "stage"]
    for step in (step for stage in stages for step in stage.steps):
        images[step.name] += step.images
        gpu[step.name] = place(step.pool, cluster, step.field).accelerator is not None
    for name, seconds in _busy(root).items():
        if images.get(name) and name not in _MEASURED_APART:
            measured[f"{'gpu' if gpu[name] else 'cpu'} {name}"] = seconds / images[name]
    measured |= _trained(small, root, cluster)
    rates = replace(plain, measured=measured)
    overheads = {}
    for timed in build_times(jobs, cluster, rates):
        took, _ = job_seconds(root, timed.job.name)
        if took is not None:
            overheads[timed.job.name] = {
                "seconds": max(took - timed.work, 0.0),
                "primitives": primitives(timed.job, plain),
            }
    counted = {
        name: value for name, value in factors(counts).items() if name.startswith("expand drawn")
    }
    return {
        "where": f"{_machine()}, {time.strftime('%Y-%m-%d')}",
        "measured": measured,
        "overheads": overheads,
        "factors": {**counted, **_sizes(counts, root)},
        "settings": recipes(config),
    }


def _cluster(config: Build) -> Cluster:
    """What the miniature ran on, as nodes that a plan knows."""
    import ray

    from raypipe.cluster_files import NodeType

    if config.ray.address is None and not os.environ.get("RAY_ADDRESS"):
        here = this_machine(config)
        if not torch.cuda.is_available():
            return here
    nodes = [
        NodeType(str(number), dict(node["Resources"]))
        for number, node in enumerate(ray.nodes())
        if node["Alive"] and node["Resources"].get("CPU")
    ]
    return Cluster(nodes=nodes)


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {os.cpu_count()} cores"
    return f"{os.cpu_count()} cores ({platform.machine()})"


def _busy(root: str) -> dict[str, float]:
    """Step → seconds that its actors were at work, in all jobs."""
    galleries = storage.listdir(storage.join(root, GALLERIES))
    folders = [*_JOBS, "assemble/identities"]
    folders += [f"{GALLERIES}/{g.name}/{part}" for g in galleries for part in ("ingest", "embed")]
    found: dict[str, float] = defaultdict(float)
    for folder in folders:
        path = storage.join(root, folder, RUN)
        if not storage.exists(path):
            continue
        for stage in storage.read_json(path)["stages"]:
            name = stage["name"].partition(" ")[0].replace("_again", "")
            found[name] += stage.get("compute_seconds", 0.0) + stage.get("convert_seconds", 0.0)
    return dict(found)


def _trained(config: Build, root: str, cluster: Cluster) -> dict[str, float]:
    """Seconds for an image of a worker of `train`, and of an actor of `evaluate`: of three parts
    that a training step computes, two are the forward passes of an image and its mirror image."""
    path = storage.join(root, "train", "history.json")
    if not storage.exists(path):
        return {}
    history = storage.read_json(path)
    epoch = history["epochs"][-1]
    each = epoch["step_seconds"] * history["workers"] / epoch["images"]
    gpu = "gpu" if config.train.use_gpu else "cpu"
    found = {f"{gpu} train": each}
    pool = config.evaluate.pool
    if bool(pool.num_gpus) == config.train.use_gpu:
        most = cluster.cores or float("inf")
        threads = min(config.train.cpus_per_worker, most) / min(max(pool.num_cpus, 1), most)
        found[f"{gpu} evaluate"] = each * 2 / 3 * (1 if gpu == "gpu" else threads)
    return found


def _sizes(counts: dict[str, dict[str, Any]], root: str) -> dict[str, float]:
    """Mean bytes of the images that were made, named as assumptions are."""
    job = next((job for job in ("expand", "screen") if job in counts), None)
    if job is None:
        return {}
    sizes: dict[str, list[int]] = defaultdict(list)
    for identity in FaceSet(storage.join(root, job)).iter_identities():
        for image in identity.images:
            if image.generator == "diffusion" and image.rejected is None:
                sizes["crop bytes"].append(len(image.data))
            elif image.generator in ("vec2face", "cemiface"):
                sizes["small image bytes"].append(len(image.data))
                sizes["image bytes"].append(len(image.data))
            elif image.generator is None and image.data:
                sizes["world image bytes"].append(len(image.data))
    return {name: sum(found) / len(found) for name, found in sizes.items()}
