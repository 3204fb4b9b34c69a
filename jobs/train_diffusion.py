"""Trains a small Stable Diffusion from scratch on a face set, with Ray Train and Accelerate.

`{workspace}/diffusion` then holds `model` (a pipeline that diffusers loads), `card.json`,
`history.json` and `grids`, a picture for every period. Captions say what is measured in the
pictures, in the words of a grammar.
"""

import hashlib
import os
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray import train
from ray.train.torch import get_device

from jobs.cluster import connect, preflight
from jobs.stage import explain, finished
from jobs.trainer import (
    CHECKPOINTS,
    SPEED_ONLY,
    fit,
    in_order,
    load_state,
    pool_of,
    read_rows,
    save_state,
)
from jobs.work import Work, begin
from raypipe import diffusion_training as training
from raypipe import storage
from raypipe.captions import captions, cuts
from raypipe.config import Build
from raypipe.config.diffusion_training import DiffusionTrainingConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.manifest import Manifest
from raypipe.models import small_diffusion
from raypipe.models.loading import shipped
from raypipe.models.small_diffusion import Parts
from raypipe.prompts import PORTRAITS, Grammar, load_grammar, say
from raypipe.scratch import scratch
from raypipe.seeding import torch_seed

MODEL, CARD, HISTORY, GRIDS = "model", "card.json", "history.json", "grids"


def run(config: Build) -> Manifest:
    """Trains, or goes on from the last checkpoint; writes model, card, history and grids.

    Raises:
        UserError: where the set is unfinished or too small, an image of it cannot be decoded, or an
            attribute or value is not the grammar's.
    """
    options = config.diffusion
    source = options.faces.replace("{workspace}", config.workspace.rstrip("/"))
    faces = finished("train_diffusion", source)
    grammar = load_grammar(options.grammar or PORTRAITS)
    for name, attribute in options.attributes.items():
        for value in attribute.values:
            say(grammar, {name: value})
    work = begin(
        config,
        job="diffusion",
        settings={
            **options.model_dump(exclude={*SPEED_ONLY, "faces", "grammar"}),
            "embedder": config.embedder.model_dump(exclude={"weights"}),
            "seed": config.seed,
        },
        inputs={"faces": faces.content_digest, "grammar": grammar.digest},
        models=[config.embedder.weights or shipped("dlib_resnet_v1.safetensors")],
    )
    if work.manifest:
        return work.manifest
    connect(config)
    preflight("train_diffusion", [pool_of(options)])
    files = FaceSet(source).files()
    sizes = {entry.path: entry.size for entry in storage.listdir(source, recursive=True)}
    pictures = in_order(
        read_rows(files).map_batches(
            training.Prepare,
            fn_constructor_args=(options,),
            batch_format="pyarrow",
            batch_size=16,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
            num_cpus=1,
        ),
        sum(sizes[file] for file in files),
    )
    try:
        measured = _measured(pictures, list(options.attributes))
    except Exception as error:
        if mistake := explain("train_diffusion", error):
            raise mistake from None
        raise
    borders = {
        name: cuts(measured[name], len(attribute.values))
        for name, attribute in options.attributes.items()
    }
    begun = time.perf_counter()
    updates = options.vae_steps + options.steps
    state = fit(
        work,
        _worker,
        {
            "config": options.model_dump(),
            "embedder": config.embedder.model_dump(),
            "grammar": grammar.path,
            "seed": config.seed,
            "grids": work.path(GRIDS),
        },
        pictures,
        config=options,
        images=updates,
    )
    work.timing("train", time.perf_counter() - begun)
    return _finish(config, work, state, grammar, len(measured[next(iter(measured))]), borders)


def _measured(pictures: ray.data.Dataset, names: list[str]) -> dict[str, np.ndarray]:
    """The measures of all pictures."""
    tables = ray.get(pictures.select_columns(names).to_arrow_refs())
    kept = [table for table in tables if len(table)]
    if not kept:
        raise UserError("train_diffusion: no picture is left; lower diffusion.min_quality")
    joined = pa.concat_tables(kept)
    return {name: joined[name].to_numpy() for name in names}


def _parts(config: DiffusionTrainingConfig, grammar: Grammar, seed: int) -> Parts:
    """New networks, the same on every worker; the tokenizer learns every word of the grammar."""
    torch.manual_seed(torch_seed(seed, "train_diffusion", stream="weights"))
    sentences = {
        say(grammar, {name: value})
        for name, attribute in grammar.attributes.items()
        for value in attribute.values
    }
    return small_diffusion.build(config, sentences)


def _worker(arguments: dict[str, Any]) -> str | None:
    """Runs on every worker; returns the user's mistake where there is one."""
    config = DiffusionTrainingConfig(**arguments["config"])
    seed, grammar = arguments["seed"], load_grammar(arguments["grammar"])
    rank = train.get_context().get_world_rank()
    device = get_device()
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    pixels, measured = _held(config)
    state = load_state()
    parts = _parts(config, grammar, seed)
    try:
        run = training.Training(
            config,
            parts,
            open_embedder(EmbedderConfig(**arguments["embedder"]), str(device)),
            pixels,
            captions(grammar, config.attributes, measured, config.gap),
            seed=seed,
            cpu=device.type == "cpu",
            rank=rank,
        )
        history = run.unpack(state) if state else []
        shown = [
            say(grammar, {name: value})
            for name, attribute in config.attributes.items()
            for value in attribute.values
        ]
        total = config.vae_steps + config.steps
        told = time.monotonic()

        def on_step(done: int, remark: str) -> None:
            nonlocal told
            if rank == 0 and time.monotonic() - told > 0.5:
                told = time.monotonic()
                arguments["progress"].report.remote(done, remark)

        done = history[-1]["step"] if history else 0
        while done < total:
            # A period ends with the autoencoder's training, whatever its length.
            end = min(done + config.period, total)
            if done < config.vae_steps:
                end = min(end, config.vae_steps)
            history.append(run.train_period(done, end, on_step))
            done = end
            if rank == 0:
                picture = storage.join(arguments["grids"], f"{done:07d}.png")
                storage.write_bytes(picture, run.grid(shown, seed))
            save_state({"step": done}, None if rank else run.pack(history))
    except UserError as error:
        return str(error)  # not raised: Ray Train would try again, with the same end
    return None


def _held(config: DiffusionTrainingConfig) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """This worker's pictures, uint8 (N, side, side, 3), and their measures."""
    pixels: list[np.ndarray] = []
    measured: dict[str, list[np.ndarray]] = {name: [] for name in config.attributes}
    shape = (-1, config.side, config.side, 3)
    shard = train.get_dataset_shard("train")
    for table in shard.iter_batches(batch_format="pyarrow", batch_size=1024):
        data = b"".join(table["pixels"].to_pylist())
        pixels.append(np.frombuffer(data, np.uint8).reshape(shape))
        for name, values in measured.items():
            values.append(table[name].to_numpy())
    if not pixels:
        return np.zeros((0, *shape[1:]), np.uint8), {name: np.zeros(0) for name in measured}
    return np.concatenate(pixels), {name: np.concatenate(parts) for name, parts in measured.items()}


def _finish(
    config: Build,
    work: Work,
    state: bytes,
    grammar: Grammar,
    pictures: int,
    borders: dict[str, list[float]],
) -> Manifest:
    options = config.diffusion
    parts = _parts(options, grammar, config.seed)
    history = training.read_state(state, parts)
    digest = hashlib.sha256()
    with scratch() as folder:
        small_diffusion.save(parts, folder, torch.float16)
        for name in small_diffusion.files(folder):
            with open(os.path.join(folder, name), "rb") as file:
                data = file.read()
            storage.write_bytes(work.path(MODEL, *name.split("/")), data)
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
    storage.write_json(work.path(HISTORY), {"workers": options.num_workers, "periods": history})
    card = {
        "pictures": pictures,
        "parameters": {
            name: sum(p.numel() for p in getattr(parts, name).parameters())
            for name in ("vae", "unet", "text")
        },
        "attributes": {
            name: {**attribute.model_dump(), "cuts": borders[name]}
            for name, attribute in options.attributes.items()
        },
        "seed": config.seed,
        "config": options.model_dump(),
        "inputs": work.origin.inputs,
        "losses": history[-1],
    }
    storage.write_json(work.path(CARD), card)
    manifest = work.finish({"images": pictures}, digest.hexdigest())
    storage.delete(work.path(CHECKPOINTS))
    return manifest


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("train_diffusion")
