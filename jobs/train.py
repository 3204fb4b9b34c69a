"""Trains a recognizer with Ray Train, in the order of its curriculum."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from ray import train
from ray.train.torch import get_device
from safetensors.torch import save

from jobs.cluster import connect, preflight
from jobs.feed import READER_CPUS, Feed
from jobs.trainer import CHECKPOINTS, SPEED_ONLY, fit, load_files, pool_of, save_files
from jobs.training_log import Log
from jobs.work import Work, begin
from raypipe import storage, training
from raypipe.config import Build
from raypipe.config.base import Pool
from raypipe.config.train import TrainConfig
from raypipe.errors import UserError
from raypipe.manifest import Manifest, read_manifest
from raypipe.schedule import Schedule, Steps
from raypipe.train_rows import RowGroups
from raypipe.training import Progress, Training
from raypipe.training_set import PARQUET, content_digest

WEIGHTS, CARD, HISTORY = "recognizer.safetensors", "recognizer.json", "history.json"
EPOCHS = "epochs"
DIVERGED = "diverged.json"
# What a step is made of does not depend on them.
_SPEED_ONLY = SPEED_ONLY | {
    *("num_workers", "min_workers", "use_gpu", "cpus_per_worker"),
    *("checkpoint_steps", "keep_every", "log"),
}


def epoch_file(epoch: int) -> str:
    """Where in the job's folder the weights of an epoch, counted from 1, are kept."""
    return f"{EPOCHS}/epoch-{epoch:03d}.safetensors"


def run(config: Build) -> Manifest:
    """Trains, or goes on from the last checkpoint; writes weights, card and history."""
    options = config.train
    found = find_set(config)
    settings = options.model_dump(mode="json", exclude={*_SPEED_ONLY, "set"})
    if options.decoder == "nvimgcodec":  # pixels differ between a GPU and a CPU then
        settings["use_gpu"] = options.use_gpu
    work = begin(
        config,
        job="train",
        settings={**settings, "seed": config.seed},
        inputs={found.name: found.digest},
    )
    if work.manifest:
        return work.manifest
    if found.rows.images < 2 * options.num_workers or found.classes < 2:
        raise UserError(
            f"train: {found.root} has {found.rows.images} images of {found.classes} identities; "
            "training needs two identities, and two images for each worker"
        )
    connect(config)
    preflight("train", *least(options))
    start = time.perf_counter()
    schedule = make_schedule(options, found.rows, config.seed)
    images = sum(schedule.length(epoch) for epoch in range(options.epochs))
    state = fit(
        work,
        _worker,
        {
            "config": options.model_dump(),
            "seed": config.seed,
            "rows": found.rows,
            "classes": found.classes,
            "root": storage.absolute(work.root),
        },
        None,
        config=options,
        images=images,
        min_workers=options.min_workers,
    )
    work.timing("train", time.perf_counter() - start, images=images)
    return _finish(config, work, training.read_state(state), found)


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """A set to train on.

    Attributes:
        name: what the manifest calls it.
        root: where it is.
        digest: of its content.
        rows: where its rows are.
        classes: how many identities there are.
    """

    name: str
    root: str
    digest: str
    rows: RowGroups
    classes: int


def find_set(config: Build) -> TrainingSet:
    """The set that a configuration trains on, its labels checked.

    Raises:
        UserError: where there is none, or labels are not 0 to the number of identities - 1.
    """
    if config.train.set is None:
        root = storage.join(config.workspace, "assemble")
        assembled = read_manifest(root)
        if assembled is None:
            raise UserError(f"train: {root} holds no finished training set; run `raypipe assemble`")
        files = [entry.path for entry in storage.listdir(storage.join(root, PARQUET))]
        name, digest = "assemble", assembled.content_digest
    else:
        root, name = config.train.set, "set"
        folders = (root, storage.join(root, "data"), storage.join(root, PARQUET))
        entries = [entry for folder in folders for entry in storage.listdir(folder)]
        files = [entry.path for entry in entries if entry.path.endswith(".parquet")]
        if not files:
            raise UserError(
                f"train.set: {root} holds no Parquet files; `raypipe convert --format parquet` "
                "makes them of a set of any format"
            )
        digest = content_digest(storage.sha256_file(path) for path in files)
    rows = RowGroups.of([storage.absolute(path) for path in files])
    classes = int(rows.labels.max()) + 1
    return TrainingSet(name=name, root=root, digest=digest, rows=rows, classes=classes)


def least(config: TrainConfig) -> tuple[list[Pool], dict[str, float]]:
    """The workers that training cannot go on without, and what reads for them beside them."""
    number = config.min_workers or config.num_workers
    return [pool_of(config).model_copy(update={"min": number})], {"CPU": number * READER_CPUS}


def make_schedule(config: TrainConfig, rows: RowGroups, seed: int) -> Schedule:
    """The order of all epochs of a training."""
    phases = rows.phases(config.curriculum)
    return Schedule(config.curriculum, phases, rows.first, epochs=config.epochs, seed=seed)


def _worker(arguments: dict[str, Any]) -> str | None:
    """Runs on every worker; returns the user's mistake where there is one, the same on all."""
    config = TrainConfig(**arguments["config"])
    seed, rows, root = arguments["seed"], arguments["rows"], arguments["root"]
    context = train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = get_device()
    torch.set_num_threads(max(1, int(config.cpus_per_worker)))
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    if device.type == "cuda":
        torch.cuda.set_device(device)
    training.check_colours(device)
    schedule = make_schedule(config, rows, seed)
    steps = Steps.of(config.batch_size, config.micro_batch, workers)
    state = Training(config, arguments["classes"], seed, steps, device)
    if saved := load_files():
        state.unpack(*saved)
    lengths = [schedule.length(epoch) for epoch in range(config.epochs)]
    watch = None if rank else _Watch(config, root, arguments["progress"], state, lengths)
    feed = Feed(rows, schedule, steps, config, rank=rank, seed=seed, device=device)
    batches = feed.batches(state.progress.epoch, state.progress.place)

    while state.progress.epoch < config.epochs:
        epoch = state.progress.epoch
        try:
            at_end = state.run_epoch(
                batches, lengths[epoch], stop_after=config.checkpoint_steps, on_step=watch
            )
        except training.DivergedError as error:
            # Not raised: Ray Train would try again, with the same end.
            return _diverged(error, rows, schedule, steps, root if rank == 0 else None)
        metrics = {"epoch": epoch + 1, "place": state.progress.place}
        if at_end:
            record = state.end_epoch(lengths[epoch])
            metrics |= {name: record[name] for name in ("loss", "accuracy")}
            if watch:
                watch.end_epoch(record)
            if watch and config.keep_every and (epoch + 1) % config.keep_every == 0:
                storage.write_bytes(
                    storage.join(root, epoch_file(epoch + 1)), save(state.weights())
                )
        save_files(metrics, state.pack())
    if watch:
        watch.log.close()
    return None


class _Watch:
    """Tells the bar and the logs how the training goes; on the first worker."""

    def __init__(
        self, config: TrainConfig, root: str, progress: Any, state: Training, lengths: list[int]
    ) -> None:
        self._config, self._progress, self._state = config, progress, state
        self._lengths = lengths
        # What may change where a training goes on is none of a run's parameters.
        self.log = Log(config.log, root, config.model_dump(mode="json", exclude=_SPEED_ONLY))
        self._told = 0.0
        self._since = (time.monotonic(), 0)

    def __call__(self, progress: Progress) -> None:
        done = sum(self._lengths[: progress.epoch])
        done += min(progress.place, self._lengths[progress.epoch])
        now = time.monotonic()
        if now - self._told > 0.5:
            self._told = now
            remark = f"epoch {progress.epoch + 1} of {self._config.epochs}"
            if history := self._state.history:
                remark += f", loss {history[-1]['loss']:.2f}"
            self._progress.report.remote(done, remark)
        if progress.steps % training.LOOK_EVERY == 0:
            before, images = self._since
            self.log.write(
                {
                    "loss": self._state.loss_so_far() / progress.steps,
                    "learning_rate": progress.rate,
                    "images_per_second": (done - images) / max(now - before, 1e-9),
                    "data_wait": progress.wait_seconds / max(progress.seconds, 1e-9),
                },
                done,
            )
            self._since = (now, done)

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Sends the line of an epoch to the logs."""
        names = ("loss", "accuracy", "learning_rate", "images_per_second")
        done = sum(self._lengths[: record["epoch"]])
        self.log.write({f"epoch/{name}": record[name] for name in names}, done)


def _diverged(
    error: training.DivergedError,
    rows: RowGroups,
    schedule: Schedule,
    steps: Steps,
    root: str | None,
) -> str:
    """The mistake in one line, and the images of the step in a file."""
    whole = schedule.epoch(error.epoch)
    positions = whole[error.place : error.place + steps.total]
    names = rows.names(positions)
    if root is not None:
        found = {"epoch": error.epoch + 1, "positions": positions.tolist(), "images": names}
        storage.write_json(storage.join(root, DIVERGED), found)
    few = ", ".join(names[:3])
    return f"{error}. The {len(names)} images of the step are in train/{DIVERGED}: {few}, ..."


def order(config: Build, epoch: int, rank: int, workers: int) -> Iterator[tuple[int, str]]:
    """What a worker takes in an epoch, in order, without training: position and name of an image.

    Args:
        epoch: from 1.
        rank: of the worker, from 0.

    Raises:
        UserError: where there is no such epoch or worker.
    """
    options = config.train
    if not 1 <= epoch <= options.epochs:
        raise UserError(f"order: epoch {epoch} is not in 1 to {options.epochs}")
    if not 0 <= rank < workers:
        raise UserError(f"order: rank {rank} is not in 0 to {workers - 1}")
    rows = find_set(config).rows
    schedule = make_schedule(options, rows, config.seed)
    steps = Steps.of(options.batch_size, options.micro_batch, workers)
    for positions in steps.of_worker(schedule.windows(epoch - 1), rank):
        yield from zip(positions.tolist(), rows.names(positions), strict=True)


def _finish(config: Build, work: Work, state: dict[str, Any], found: TrainingSet) -> Manifest:
    options = config.train
    kept = state["network"] if state["ema"] is None else _averaged(state["ema"])
    weights = save({name: value.contiguous() for name, value in kept.items()})
    history = state["history"]
    storage.write_bytes(work.path(WEIGHTS), weights)
    storage.write_json(work.path(HISTORY), {"workers": options.num_workers, "epochs": history})
    card = {
        "network": options.network,
        "depth": options.depth,
        "width": options.width,
        "classes": found.classes,
        "images": found.rows.images,
        "seed": config.seed,
        "config": options.model_dump(mode="json"),
        "loss": history[-1]["loss"],
        "accuracy": history[-1]["accuracy"],
    }
    storage.write_json(work.path(CARD), card)
    counts = {"classes": found.classes, "images": found.rows.images, "epochs": len(history)}
    manifest = work.finish(counts, hashlib.sha256(weights).hexdigest())
    storage.delete(work.path(CHECKPOINTS))
    return manifest


def _averaged(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The network of a moving average's state."""
    prefix = "module."
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("train")
