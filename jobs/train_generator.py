"""Trains Vec2Face on a face set with features, with Ray Train.

`{workspace}/generator` then holds the weights, `card.json`, `history.json`, and a grid of pictures
for every checkpoint: in each column an image of the set, and under it four made from its feature.
"""

from functools import partial
from typing import Any

import torch
from ray import train
from ray.train.torch import get_device

from jobs.feature_training import begin_training, finish_training, fit_features, train_epochs
from jobs.trainer import load_state
from raypipe import generator_training as training
from raypipe.config import Build
from raypipe.config.embed import EmbedderConfig
from raypipe.config.generator import GeneratorConfig
from raypipe.embedders import open_embedder
from raypipe.feature_training import ImageDecoder
from raypipe.generator_start import build, masking, start
from raypipe.manifest import Manifest
from raypipe.models.loading import shipped

WEIGHTS = "generator.safetensors"


def run(config: Build) -> Manifest:
    """Trains, or goes on from the last checkpoint; writes weights, card, history and grids."""
    options = config.generator
    work, source = begin_training(
        config, options, job="train_generator", folder="generator", files=_files(options)
    )
    if work.manifest:
        return work.manifest
    state, found = fit_features(
        config, options, work, _worker, job="train_generator", source=source
    )
    network = build(options, found.vectors.shape[1])
    history = training.read_state(state, network)
    return finish_training(config, options, work, network, history, found, file=WEIGHTS)


def _files(options: GeneratorConfig) -> dict[str, str | None]:
    """Files of weights that the result depends on, by their settings."""
    dcgan = None
    if options.size == "small" and options.weights is None:
        dcgan = options.dcgan or shipped("dcgan_digiface.safetensors")
    return {"weights": options.weights, "dcgan": dcgan, "perceptual": options.perceptual}


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
    decoder = ImageDecoder(training.SIDE)
    return train_epochs(
        "train_generator",
        run,
        config,
        lambda epoch: partial(
            training.decode_batch,
            seed=seed,
            epoch=epoch,
            decoder=decoder,
            masking=masking(config),
            tokens=network.sizes.side**2,
        ),
        arguments,
        history=run.unpack(state) if state else [],
    )


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("train_generator")
