"""Trains Vec2Face on a face set with features, with Ray Train.

`{workspace}/generator` then holds the weights, `card.json`, `history.json`, and a grid of pictures
for every checkpoint: in each column an image of the set, and under it four made from its feature.
"""

import hashlib
import time
from functools import partial
from typing import Any

import torch
from ray import train
from ray.train.torch import get_device

from jobs.cluster import connect, preflight
from jobs.feature_training import FeatureSet, dataset, examine, people, train_epochs
from jobs.trainer import CHECKPOINTS, SPEED_ONLY, fit, load_state, pool_of
from jobs.work import Work, begin
from raypipe import generator_training as training
from raypipe import storage
from raypipe.config import Build
from raypipe.config.embed import EmbedderConfig
from raypipe.config.generator import GeneratorConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.generator_start import build, masking, start
from raypipe.manifest import Manifest, read_manifest
from raypipe.models.loading import shipped

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
    found = examine(source)
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
            "people": people(source, options.grid),
            "grids": work.path(GRIDS),
        },
        dataset(found),
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


def _worker(arguments: dict[str, Any]) -> str | None:
    """Runs on every worker; returns the user's mistake where there is one, the same on all."""
    config = GeneratorConfig(**arguments["config"])
    seed, vectors = arguments["seed"], arguments["vectors"]
    workers = train.get_context().get_world_size()
    device = get_device()
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    embedder = open_embedder(EmbedderConfig(**arguments["embedder"]), str(device))
    state = load_state()
    length = vectors.shape[1]
    network = build(config, length) if state else start(config, seed, vectors, embedder)
    run = training.Training(
        config,
        network,
        embedder,
        vectors,
        seed=seed,
        steps=-(-(arguments["images"] // workers) // config.batch_size),
        cpu=device.type == "cpu",
    )
    return train_epochs(
        "train_generator",
        run,
        config,
        lambda epoch: partial(
            training.decode_batch,
            seed=seed,
            epoch=epoch,
            masking=masking(config),
            tokens=network.sizes.side**2,
        ),
        arguments,
        history=run.unpack(state) if state else [],
    )


def _finish(config: Build, work: Work, state: bytes, found: FeatureSet) -> Manifest:
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
