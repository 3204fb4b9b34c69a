"""Trains CemiFace on a face set with features, with Ray Train.

`{workspace}/cemiface` then holds the weights, `card.json`, `history.json`, and a grid of pictures
for every checkpoint: in each column an image of the set, and under it five made from its feature,
less and less similar.
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
from raypipe import cemiface_training as training
from raypipe import storage
from raypipe.config import Build
from raypipe.config.cemiface_training import CemiFaceTrainingConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.manifest import Manifest, read_manifest
from raypipe.models.cemiface import CemiFace
from raypipe.models.loading import shipped
from raypipe.seeding import torch_seed

WEIGHTS, CARD, HISTORY, GRIDS = "cemiface.safetensors", "card.json", "history.json", "grids"


def run(config: Build) -> Manifest:
    """Trains, or goes on from the last checkpoint; writes weights, card, history and grids.

    Raises:
        UserError: where the set is unfinished or too small, an image of it cannot be decoded, the
            embedder passes no gradients, or the loss is no number any more.
    """
    options = config.cemiface
    source = options.faces.replace("{workspace}", config.workspace.rstrip("/"))
    faces = read_manifest(source)
    if faces is None:
        raise UserError(f"train_cemiface: {source} holds no finished face set; run `raypipe embed`")
    embedder = config.embedder
    weights = [embedder.weights or shipped("dlib_resnet_v1.safetensors"), options.weights]
    work = begin(
        config,
        job="cemiface",
        settings={
            **options.model_dump(exclude={*SPEED_ONLY, "faces", "weights"}),
            "embedder": embedder.model_dump(exclude={"weights"}),
            "seed": config.seed,
        },
        inputs={"faces": faces.content_digest},
        models=[path for path in weights if path],
    )
    if work.manifest:
        return work.manifest
    found = examine(source)
    if found.images < options.num_workers:
        raise UserError(f"train_cemiface: {source} has {found.images} images to train on")
    connect(config)
    preflight("train_cemiface", [pool_of(options)])
    begun = time.perf_counter()
    state = fit(
        work,
        _worker,
        {
            "config": options.model_dump(),
            "embedder": embedder.model_dump(),
            "seed": config.seed,
            "images": found.images,
            "centre": found.vectors.mean(axis=0),
            "people": people(source, options.grid),
            "grids": work.path(GRIDS),
        },
        dataset(found),
        config=options,
        images=found.images * options.epochs,
    )
    work.timing("train", time.perf_counter() - begun, images=found.images * options.epochs)
    return _finish(config, work, state, found)


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
    seed, centre = arguments["seed"], torch.from_numpy(arguments["centre"])
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
    return train_epochs(
        "train_cemiface",
        run,
        config,
        lambda epoch: partial(
            training.decode_batch,
            seed=seed,
            epoch=epoch,
            side=network.sizes.side,
            grid=training.similarities(config),
        ),
        arguments,
        history=run.unpack(state) if state else [],
    )


def _finish(config: Build, work: Work, state: bytes, found: FeatureSet) -> Manifest:
    options = config.cemiface
    network = _new(options, found.vectors.shape[1])
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
    manifest = work.finish({"images": found.images, "epochs": options.epochs}, digest)
    storage.delete(work.path(CHECKPOINTS))
    return manifest


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("train_cemiface")
