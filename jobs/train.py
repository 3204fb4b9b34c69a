"""Trains a recognizer on the assembled set, in its order, with Ray Train."""

import hashlib
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray import train
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.train.torch import get_device, prepare_model
from safetensors.torch import save

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
from raypipe import storage, training
from raypipe.config import Build
from raypipe.config.train import TrainConfig
from raypipe.errors import UserError
from raypipe.manifest import Manifest, read_manifest
from raypipe.seeding import torch_seed
from raypipe.training_set import PARQUET

WEIGHTS, CARD, HISTORY = "recognizer.safetensors", "recognizer.json", "history.json"
_COLUMNS = ["image", "label", "position"]


def run(config: Build) -> Manifest:
    """Trains, or goes on from the last checkpoint; writes weights, card and history."""
    source = storage.join(config.workspace, "assemble")
    assembled = read_manifest(source)
    if assembled is None:
        raise UserError(f"train: {source} holds no finished training set; run `raypipe assemble`")
    settings = config.train.model_dump(mode="json", exclude=SPEED_ONLY)
    work = begin(
        config,
        job="train",
        settings={**settings, "seed": config.seed},
        inputs={"assemble": assembled.content_digest},
    )
    if work.manifest:
        return work.manifest
    found = _examine(source)
    if found.images < 2 * config.train.num_workers or found.classes < 2:
        raise UserError(
            f"train: {source} has {found.images} images of {found.classes} identities; training "
            "needs two identities, and two images for each worker"
        )
    connect(config)
    preflight("train", [pool_of(config.train)])
    start = time.perf_counter()
    state = _fit(config, work, found)
    work.timing("train", time.perf_counter() - start, images=found.images * config.train.epochs)
    return _finish(config, work, state, found)


@dataclass(kw_only=True)
class _Set:
    """The Parquet files of a training set in its order, their bytes, and what they hold."""

    files: list[str]
    size: int
    images: int
    classes: int


def _examine(source: str) -> _Set:
    """Looks at the files of a training set and reads their footers, not their rows."""
    images, classes = 0, 0
    entries = storage.listdir(storage.join(source, PARQUET))
    for entry in entries:
        where, inner = storage.filesystem(entry.path)
        with where.open_input_file(inner) as stream:
            footer = pq.read_metadata(stream)
        leaves = [footer.schema.column(i).path for i in range(footer.num_columns)]
        label = leaves.index("label")
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            images += group.num_rows
            classes = max(classes, group.column(label).statistics.max + 1)
    return _Set(
        files=[entry.path for entry in entries],
        size=sum(entry.size for entry in entries),
        images=images,
        classes=classes,
    )


def _fit(config: Build, work: Work, found: _Set) -> dict[str, Any]:
    """Runs Ray Train to the last epoch; the state after it."""
    options = config.train
    state = fit(
        work,
        _worker,
        {
            "config": options.model_dump(),
            "seed": config.seed,
            "images": found.images,
            "classes": found.classes,
        },
        in_order(ray.data.read_parquet(found.files, columns=_COLUMNS), found.size),
        config=options,
        images=found.images * options.epochs,
    )
    return training.read_state(state)


class _Decode(ArrowBatchCollateFn):
    """Decodes in a thread beside the training step."""

    def __init__(self, seed: int, epoch: int, flip: bool) -> None:
        self._seed = seed
        self._epoch = epoch
        self._flip = flip

    def __call__(self, batch: pa.Table) -> training.Batch:
        return training.decode_batch(batch, seed=self._seed, epoch=self._epoch, flip=self._flip)


def _worker(arguments: dict[str, Any]) -> str | None:
    """Runs on every worker; returns the user's mistake where there is one, the same on all."""
    config = TrainConfig(**arguments["config"])
    seed = arguments["seed"]
    context = train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = get_device()
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    recognition = training.Recognition(config, arguments["classes"], seed)
    # As in arcface_torch: every worker keeps its own batch-norm statistics, the first one's count.
    module = prepare_model(recognition, parallel_strategy_kwargs={"broadcast_buffers": False})
    optimizer = training.make_optimizer(recognition, config)
    history: list[dict[str, Any]] = []
    if state := load_state():
        history = training.unpack_state(state, recognition, optimizer)
    shard = train.get_dataset_shard("train")
    steps = -(-(arguments["images"] // workers) // config.batch_size)
    told = time.monotonic()

    for epoch in range(len(history), config.epochs):

        def on_step(step: int, images: int, epoch: int = epoch) -> None:
            nonlocal told
            if rank == 0 and time.monotonic() - told > 0.5:
                told = time.monotonic()
                done = epoch * arguments["images"] + min(images * workers, arguments["images"])
                remark = f"epoch {epoch + 1} of {config.epochs}"
                if history:
                    remark += f", loss {history[-1]['loss']:.2f}"
                arguments["progress"].report.remote(done, remark)

        torch.manual_seed(torch_seed(seed, "train", epoch, f"dropout {rank}"))
        try:
            result = training.train_epoch(
                module,
                optimizer,
                shard.iter_torch_batches(
                    batch_size=config.batch_size,
                    prefetch_batches=config.prefetch_batches,
                    collate_fn=_Decode(seed, epoch, config.flip),
                    device="cpu",  # the epoch looks at the positions here, and moves the rest
                    pin_memory=device.type == "cuda",
                ),
                config=config,
                epoch=epoch,
                steps=steps,
                on_step=on_step,
            )
        except training.DivergedError as error:
            return str(error)  # not raised: Ray Train would try again, with the same end
        history.append({"epoch": epoch + 1, **result})
        metrics = {name: result[name] for name in ("loss", "accuracy")}
        packed = None if rank else training.pack_state(recognition, optimizer, history)
        save_state(metrics, packed)
    return None


def _finish(config: Build, work: Work, state: dict[str, Any], found: _Set) -> Manifest:
    weights = save({name: value.contiguous() for name, value in state["network"].items()})
    history = state["history"]
    storage.write_bytes(work.path(WEIGHTS), weights)
    storage.write_json(work.path(HISTORY), {"workers": config.train.num_workers, "epochs": history})
    card = {
        "depth": config.train.depth,
        "width": config.train.width,
        "classes": found.classes,
        "images": found.images,
        "seed": config.seed,
        "config": config.train.model_dump(),
        "loss": history[-1]["loss"],
        "accuracy": history[-1]["accuracy"],
    }
    storage.write_json(work.path(CARD), card)
    counts = {"classes": found.classes, "images": found.images, "epochs": len(history)}
    manifest = work.finish(counts, hashlib.sha256(weights).hexdigest())
    storage.delete(work.path(CHECKPOINTS))
    return manifest


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("train")
