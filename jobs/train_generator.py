"""Trains Vec2Face on a face set with features, with Ray Train.

`{workspace}/generator` then holds the weights, `card.json`, `history.json`, and a grid of pictures
for every checkpoint: in each column an image of the set, and under it four made from its feature.
"""

import collections
import hashlib
import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray import train
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.train.torch import get_device

from jobs.cluster import connect, preflight
from jobs.trainer import (
    CHECKPOINTS,
    SPEED_ONLY,
    fit,
    in_order,
    load_state,
    pool_of,
    save_state,
)
from jobs.work import Work, begin
from raypipe import generator_training as training
from raypipe import storage
from raypipe.config import Build
from raypipe.config.embed import EmbedderConfig
from raypipe.config.generator import GeneratorConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.generator_start import build, masking, start
from raypipe.manifest import Manifest, read_manifest
from raypipe.models.loading import shipped
from raypipe.models.vec2face_sizes import Masking
from raypipe.seeding import torch_seed

WEIGHTS, CARD, HISTORY, GRIDS = "generator.safetensors", "card.json", "history.json", "grids"


def run(config: Build) -> Manifest:
    """Trains, or goes on from the last checkpoint; writes weights, card, history and grids."""
    options = config.generator
    source = options.faces.replace("{workspace}", config.workspace.rstrip("/"))
    faces = read_manifest(source)
    if faces is None:
        raise UserError(
            f"train_generator: {source} holds no finished face set; run `raypipe embed`"
        )
    embedder = config.embedder
    work = begin(
        config,
        job="generator",
        settings={
            **options.model_dump(exclude={*SPEED_ONLY, "faces", "weights", "dcgan", "perceptual"}),
            "embedder": embedder.model_dump(exclude={"weights"}),
            "seed": config.seed,
        },
        inputs={"faces": faces.content_digest},
        models=_models(config),
    )
    if work.manifest:
        return work.manifest
    found = _examine(source)
    if found.images < config.generator.num_workers:
        raise UserError(f"train_generator: {source} has {found.images} images to train on")
    connect(config)
    preflight("train_generator", [pool_of(options)])
    begun = time.perf_counter()
    state = fit(
        work,
        _worker,
        {
            "config": options.model_dump(),
            "embedder": embedder.model_dump(),
            "seed": config.seed,
            "images": found.images,
            "vectors": found.vectors,
            "people": _people(source, options.grid),
            "grids": work.path(GRIDS),
        },
        in_order(
            ray.data.read_parquet(found.files).map_batches(
                training.image_rows, batch_format="pyarrow", batch_size=None
            ),
            found.size,
        ),
        config=options,
        images=found.images * options.epochs,
    )
    seconds = time.perf_counter() - begun
    work.timing("train", seconds, images=found.images * options.epochs)
    return _finish(config, work, state, found)


def _models(config: Build) -> list[str]:
    """Files of weights that the result depends on."""
    options = config.generator
    embedder = config.embedder.weights or shipped("dlib_resnet_v1.safetensors")
    dcgan = None
    if options.size == "small" and options.weights is None:
        dcgan = options.dcgan or shipped("dcgan_digiface.safetensors")
    return [path for path in (embedder, options.weights, dcgan, options.perceptual) if path]


@dataclass(kw_only=True)
class _Set:
    """The Parquet files of a face set, their bytes, its images to train on, some features."""

    files: list[str]
    size: int
    images: int
    vectors: np.ndarray


def _examine(source: str) -> _Set:
    """Looks at a face set: no image is read."""
    face_set = FaceSet(source)
    files = face_set.files()
    vectors, images = training.features(face_set)
    sizes = {entry.path: entry.size for entry in storage.listdir(source, recursive=True)}
    return _Set(files=files, size=sum(sizes[f] for f in files), images=images, vectors=vectors)


def _people(source: str, count: int) -> pa.Table:
    """The first image of each of the first identities, for the grids."""
    taken: list[pa.Table] = []
    face_set = FaceSet(source)
    for table in itertools.chain.from_iterable(map(face_set.tables_of, face_set.files())):
        for row in range(len(table)):
            taken.append(training.image_rows(table.slice(row, 1)).slice(0, 1))
        if sum(map(len, taken)) >= count:
            break
    return pa.concat_tables(taken).slice(0, count)


class _Decode(ArrowBatchCollateFn):
    """Decodes in a thread beside the training step."""

    def __init__(self, seed: int, epoch: int, masking: Masking, tokens: int) -> None:
        self._seed = seed
        self._epoch = epoch
        self._masking = masking
        self._tokens = tokens

    def __call__(self, batch: pa.Table) -> training.Batch:
        return training.decode_batch(
            batch, seed=self._seed, epoch=self._epoch, masking=self._masking, tokens=self._tokens
        )


def _worker(arguments: dict[str, Any]) -> str | None:
    """Runs on every worker; returns the user's mistake where there is one, the same on all."""
    config = GeneratorConfig(**arguments["config"])
    seed, vectors = arguments["seed"], arguments["vectors"]
    context = train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = get_device()
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    embedder = open_embedder(EmbedderConfig(**arguments["embedder"]), str(device))
    state = load_state()
    length = vectors.shape[1]
    network = build(config, length) if state else start(config, seed, vectors, embedder)
    tokens = network.sizes.side**2
    run = training.Training(
        config,
        network,
        embedder,
        vectors,
        seed=seed,
        steps=-(-(arguments["images"] // workers) // config.batch_size),
        cpu=device.type == "cpu",
    )
    history = run.unpack(state) if state else []
    shard = train.get_dataset_shard("train")
    period = config.period or run.steps
    periods = -(-run.steps // period)
    told = time.monotonic()

    for epoch in range(len(history) // periods, config.epochs):
        shuffle = torch_seed(seed, "train_generator", epoch, "shuffle")
        collate = _Decode(seed, epoch, masking(config), tokens)
        batches = iter(
            shard.iter_torch_batches(
                batch_size=config.batch_size,
                prefetch_batches=config.prefetch_batches,
                collate_fn=collate,
                device="cpu",
                pin_memory=device.type == "cuda",
                local_shuffle_buffer_size=config.shuffle,
                local_shuffle_seed=shuffle % 2**31,
            )
        )
        for number in range(epoch * periods, (epoch + 1) * periods):
            first = number % periods * period
            part = itertools.islice(batches, period)
            if number < len(history):  # done before this run
                collections.deque(part, maxlen=0)
                continue

            def on_step(images: int, remark: str, epoch: int = epoch, first: int = first) -> None:
                nonlocal told
                if rank == 0 and time.monotonic() - told > 0.5:
                    told = time.monotonic()
                    here = (first * config.batch_size + images) * workers
                    done = epoch * arguments["images"] + min(here, arguments["images"])
                    words = f"epoch {epoch + 1} of {config.epochs}: {remark}"
                    arguments["progress"].report.remote(done, words)

            torch.manual_seed(torch_seed(seed, "train_generator", number, f"dropout {rank}"))
            try:
                result = run.train_period(part, epoch=epoch, first_step=first, on_step=on_step)
            except training.DivergedError as error:
                return str(error)  # not raised: Ray Train would try again, with the same end
            history.append({"epoch": epoch + 1, **result})
            if rank == 0:
                picture = storage.join(arguments["grids"], f"{number + 1:05d}.png")
                storage.write_bytes(picture, run.grid(collate(arguments["people"]), seed))
            save_state({"loss": result["pixels"]}, None if rank else run.pack(history))
    return None


def _finish(config: Build, work: Work, state: bytes, found: _Set) -> Manifest:
    options = config.generator
    network = build(options, found.vectors.shape[1])
    history = training.read_state(state, network)
    weights = network.to_safetensors(getattr(torch, options.store))
    storage.write_bytes(work.path(WEIGHTS), weights)
    storage.write_json(work.path(HISTORY), {"workers": options.num_workers, "periods": history})
    digest = hashlib.sha256(weights).hexdigest()
    card = {
        "sizes": vars(network.sizes),
        "images": found.images,
        "embedder": {"kind": config.embedder.kind, "dimension": network.sizes.vector},
        "seed": config.seed,
        "config": options.model_dump(),
        "models": work.origin.models,
        "faces": work.origin.inputs["faces"],
        "sha256": digest,
        "losses": history[-1],
    }
    storage.write_json(work.path(CARD), card)
    counts = {"images": found.images, "epochs": options.epochs}
    manifest = work.finish(counts, digest)
    storage.delete(work.path(CHECKPOINTS))
    return manifest


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("train_generator")
