"""Trains a recognizer on the assembled set, in its order, with Ray Train."""

import hashlib
import os
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray import train
from ray.data import ExecutionOptions
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.train.torch import TorchTrainer, get_device, prepare_model
from safetensors.torch import save

from jobs.cluster import connect, preflight
from jobs.progress import Bar
from jobs.stage import explain
from jobs.work import Work, begin
from raypipe import storage, training
from raypipe.config import Build
from raypipe.config.base import Pool
from raypipe.config.train import TrainConfig
from raypipe.errors import UserError
from raypipe.manifest import Manifest, read_manifest
from raypipe.seeding import torch_seed
from raypipe.training_set import PARQUET

WEIGHTS, CARD, HISTORY = "recognizer.safetensors", "recognizer.json", "history.json"
_CHECKPOINTS, _STATE = "checkpoints", "state.pt"
_COLUMNS = ["image", "label", "position"]
# They change how a run goes, not what comes out of it.
_SPEED_ONLY = {"prefetch_batches", "max_failures", "accelerator_type"}
# Without it blocks come in the order in which they happen to be read.
_IN_ORDER = ExecutionOptions(preserve_order=True)


def run(config: Build) -> Manifest:
    """Trains, or goes on from the last checkpoint; writes weights, card and history."""
    source = storage.join(config.workspace, "assemble")
    assembled = read_manifest(source)
    if assembled is None:
        raise UserError(f"train: {source} holds no finished training set; run `raypipe assemble`")
    settings = config.train.model_dump(exclude=_SPEED_ONLY)
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
    preflight("train", [_pool(config.train)])
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


def _pool(config: TrainConfig) -> Pool:
    """The workers, as a pool for the preflight."""
    return Pool(
        min=config.num_workers,
        max=config.num_workers,
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else 0,
        accelerator_type=config.accelerator_type,
    )


class _Progress:
    """What the first worker says of itself, for the bar."""

    def __init__(self) -> None:
        self._state = (0, "")

    def report(self, images: int, remark: str) -> None:
        self._state = (images, remark)

    def read(self) -> tuple[int, str]:
        return self._state


def _dataset(found: _Set) -> ray.data.Dataset:
    """The rows of the set in its order.

    Ray Data starts the read anew in every epoch. On two cores that were busy with other things a
    worker waited 20 s for an epoch of 60 images, and 2 s for one of 2,850 in the object store. So a
    set that leaves most of the object store free is read once.
    """
    dataset = ray.data.read_parquet(found.files, columns=_COLUMNS)
    dataset.context.execution_options = _IN_ORDER
    if found.size < ray.cluster_resources()["object_store_memory"] / 4:
        return dataset.materialize()
    return dataset


def _fit(config: Build, work: Work, found: _Set) -> dict[str, Any]:
    """Runs Ray Train to the last epoch; the state after it."""
    options = config.train
    progress = ray.remote(num_cpus=0, max_restarts=-1)(_Progress).remote()
    where, inner = storage.filesystem(work.path(_CHECKPOINTS))
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "config": options.model_dump(),
            "seed": config.seed,
            "images": found.images,
            "classes": found.classes,
            "progress": progress,
        },
        datasets={"train": _dataset(found)},
        dataset_config=train.DataConfig(execution_options=_IN_ORDER),
        scaling_config=train.ScalingConfig(
            num_workers=options.num_workers,
            use_gpu=options.use_gpu,
            resources_per_worker={"CPU": options.cpus_per_worker}
            | ({"GPU": 1} if options.use_gpu else {}),
            accelerator_type=options.accelerator_type,
        ),
        # A run of the same name in the same place goes on from its last checkpoint.
        run_config=train.RunConfig(
            name="run",
            storage_path=inner,
            storage_filesystem=where,
            failure_config=train.FailureConfig(max_failures=options.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
        ),
    )
    poll = progress.read.remote
    with Bar("train", found.images * options.epochs, lambda: ray.get(poll())):
        try:
            result = trainer.fit()
        except train.TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {})
            for failure in [*failures.values(), error]:
                if mistake := explain("train", failure):
                    raise mistake from None
            raise
    if result.return_value:
        raise UserError(result.return_value)
    assert result.checkpoint is not None, "training ended without a checkpoint"
    with result.checkpoint.as_directory() as folder:
        return training.read_state(storage.read_bytes(os.path.join(folder, _STATE)))


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
    checkpoint = train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = storage.read_bytes(os.path.join(folder, _STATE))
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
        if rank:
            train.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            state = training.pack_state(recognition, optimizer, history)
            storage.write_bytes(os.path.join(folder, _STATE), state)
            train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))
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
    storage.delete(work.path(_CHECKPOINTS))
    return manifest


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("train")
