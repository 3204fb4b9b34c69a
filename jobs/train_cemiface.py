"""Trains CemiFace on a face set with features, with Ray Train.

`{workspace}/cemiface` then holds the weights, `card.json`, `history.json`, and a grid of pictures
for every checkpoint: in each column an image of the set, and under it five made from its feature,
less and less similar.
"""

from functools import partial
from typing import Any

import torch
from ray import train
from ray.train.torch import get_device

from jobs.feature_training import begin_training, finish_training, fit_features, train_epochs
from jobs.trainer import load_state
from raypipe import cemiface_training as training
from raypipe.config import Build
from raypipe.config.cemiface_training import CemiFaceTrainingConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.feature_training import ImageDecoder
from raypipe.manifest import Manifest
from raypipe.models.cemiface import CemiFace
from raypipe.seeding import torch_seed

WEIGHTS = "cemiface.safetensors"


def run(config: Build) -> Manifest:
    """Trains, or goes on from the last checkpoint; writes weights, card, history and grids.

    Raises:
        UserError: where the set is unfinished or too small, an image of it cannot be decoded, the
            embedder passes no gradients, or the loss is no number any more.
    """
    options = config.cemiface
    work, source = begin_training(
        config, options, job="train_cemiface", folder="cemiface", files={"weights": options.weights}
    )
    if work.manifest:
        return work.manifest
    state, found = fit_features(config, options, work, _worker, job="train_cemiface", source=source)
    network = _new(options, found.vectors.shape[1])
    history = training.read_state(state, network)
    if options.stretch:
        network.stretch(*options.stretch)
    return finish_training(config, options, work, network, history, found, file=WEIGHTS)


def _new(config: CemiFaceTrainingConfig, length: int) -> CemiFace:
    """A network of any weights, for features of a length."""
    return CemiFace(training.sizes(config, length))


def _start(config: CemiFaceTrainingConfig, seed: int, centre: torch.Tensor) -> CemiFace:
    """The network that training begins with, the same on every worker."""
    if config.weights is None:
        torch.manual_seed(torch_seed(seed, "train_cemiface", stream="weights"))
        network = _new(config, len(centre))
    else:
        network = CemiFace.from_checkpoint(config.weights)
        wanted = training.sizes(config, len(centre))
        if network.sizes != wanted:
            raise UserError(
                f"cemiface.weights: {config.weights} has the sizes {network.sizes}, and the "
                f"configuration and the set's features make {wanted}"
            )
    network.centre.copy_(centre)
    return network


def _worker(arguments: dict[str, Any]) -> str | None:
    """Runs on every worker; returns the user's mistake where there is one, the same on all."""
    config = CemiFaceTrainingConfig(**arguments["config"])
    seed, centre = arguments["seed"], torch.from_numpy(arguments["vectors"].mean(axis=0))
    context = train.get_context()
    device = get_device()
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    state = load_state()
    try:
        network = _new(config, len(centre)) if state else _start(config, seed, centre)
        run = training.Training(
            config,
            network,
            open_embedder(EmbedderConfig(**arguments["embedder"]), str(device)),
            seed=seed,
            steps=-(-(arguments["images"] // context.get_world_size()) // config.batch_size),
            cpu=device.type == "cpu",
            rank=context.get_world_rank(),
        )
    except UserError as error:
        return str(error)  # not raised: Ray Train would try again, with the same end
    decoder = ImageDecoder(network.sizes.side)
    return train_epochs(
        "train_cemiface",
        run,
        config,
        lambda epoch: partial(
            training.decode_batch,
            seed=seed,
            epoch=epoch,
            decoder=decoder,
            grid=training.similarities(config),
        ),
        arguments,
        history=run.unpack(state) if state else [],
    )


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("train_cemiface")
