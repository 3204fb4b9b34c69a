"""Ray Train under the two training jobs: workers, checkpoints, progress, and how runs go on."""

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import ray
from pyarrow.fs import FileSelector
from ray import train
from ray.data import ExecutionOptions
from ray.train.torch import TorchTrainer

from jobs.cluster import beside_driver
from jobs.ledger import TrainingProgress
from jobs.progress import Bar
from jobs.stage import explain
from jobs.work import Work
from raypipe import storage
from raypipe.config.base import Pool, Workers
from raypipe.errors import UserError
from raypipe.scratch import scratch

CHECKPOINTS, _STATE = "checkpoints", "state.pt"
# They change how a run goes, not what comes out of it.
SPEED_ONLY = {"prefetch_batches", "max_failures", "accelerator_type"}
# Without it blocks come in the order in which they happen to be read.
IN_ORDER = ExecutionOptions(preserve_order=True)
# glibc gives the memory of every large tensor back to the system, and the next one of its size
# costs a page fault for every 4 KiB. Kept, on one arena: 40 images/s became 85 on two cores.
_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_ARENA_MAX": "1",
}


def pool_of(config: Workers) -> Pool:
    """The workers, as a pool for the preflight."""
    return Pool(
        min=config.num_workers,
        max=config.num_workers,
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else 0,
        accelerator_type=config.accelerator_type,
    )


def read_rows(files: list[str]) -> ray.data.Dataset:
    """The rows of Parquet files of one face set."""
    places = [storage.filesystem(file) for file in files]
    return ray.data.read_parquet([inner for _, inner in places], filesystem=places[0][0])


def in_order(dataset: ray.data.Dataset, size: int) -> ray.data.Dataset:
    """A dataset whose blocks come in order, read once where it leaves the object store room.

    Ray Data starts the read anew in every epoch. On two cores that were busy with other things a
    worker waited 20 s for an epoch of 60 images, and 2 s for one of 2,850 in the object store.

    Args:
        size: bytes of the set.
    """
    dataset.context.execution_options = IN_ORDER
    if size < ray.cluster_resources()["object_store_memory"] / 4:
        return dataset.materialize()
    return dataset


def fit(
    work: Work,
    worker: Callable[[dict[str, Any]], str | None],
    arguments: dict[str, Any],
    dataset: ray.data.Dataset | None,
    *,
    config: Workers,
    images: int,
    min_workers: int | None = None,
) -> bytes:
    """Runs Ray Train to its end, or goes on from the last checkpoint; the state at the end.

    Args:
        work: its folder holds the checkpoints.
        worker: runs on every worker, with `arguments` and an actor `progress` beside them, the
            shard "train" and `load_state`; ends every epoch with `save_state`. Returns the user's
            mistake where there is one, the same on all workers.
        dataset: that the workers share; none where they read for themselves.
        images: of the whole training, for the bar.
        min_workers: with how many it goes on while others cannot be had; none: with all only.

    Raises:
        UserError: a mistake of the user's, on whatever worker it showed.
    """
    job = work.origin.job
    progress = beside_driver(TrainingProgress).remote()
    where, inner = storage.filesystem(work.path(CHECKPOINTS))
    trainer = TorchTrainer(
        worker,
        train_loop_config={**arguments, "progress": progress},
        datasets={} if dataset is None else {"train": dataset},
        dataset_config=train.DataConfig(execution_options=IN_ORDER),
        scaling_config=train.ScalingConfig(
            num_workers=(min_workers, config.num_workers) if min_workers else config.num_workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker}
            | ({"GPU": 1} if config.use_gpu else {}),
            accelerator_type=config.accelerator_type,
        ),
        # A run of the same name in the same place goes on from its last checkpoint.
        run_config=train.RunConfig(
            name="run",
            storage_path=inner,
            storage_filesystem=where,
            failure_config=train.FailureConfig(max_failures=config.max_failures),
            checkpoint_config=train.CheckpointConfig(num_to_keep=1),
            worker_runtime_env={} if config.use_gpu else {"env_vars": _KEEP_MEMORY},
        ),
    )
    said = (0, "")

    def poll() -> tuple[int, str]:
        nonlocal said
        with suppress(ray.exceptions.RayError):  # it is being restarted; the next poll will tell
            said = ray.get(progress.read.remote(), timeout=5)
        return said

    with Bar(job, images, poll):
        try:
            result = trainer.fit()
        except train.TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {})
            for failure in [*failures.values(), error]:
                if mistake := explain(job, failure):
                    raise mistake from None
            raise
    if result.return_value:
        raise UserError(result.return_value)
    assert result.checkpoint is not None, "training ended without a checkpoint"
    return _read(result.checkpoint, _STATE)


def load_state() -> bytes | None:
    """On a worker: what `save_state` saved last in this run, or in the one that it goes on from."""
    checkpoint = train.get_checkpoint()
    return _read(checkpoint, _STATE) if checkpoint else None


def save_state(metrics: dict[str, Any], state: bytes | None) -> None:
    """On a worker, at the end of an epoch: the first one brings the state, the others None."""
    save_files(metrics, {} if state is None else {_STATE: state})


def load_files() -> tuple[list[str], Callable[[str], bytes]] | None:
    """On a worker: names of the files that `save_files` saved last, and what reads one."""
    checkpoint = train.get_checkpoint()
    if checkpoint is None:
        return None
    entries = checkpoint.filesystem.get_file_info(FileSelector(checkpoint.path))
    return [entry.base_name for entry in entries], partial(_read, checkpoint)


def save_files(metrics: dict[str, Any], files: dict[str, bytes]) -> None:
    """On every worker at the same step: a checkpoint of the files of all of them."""
    if not files:
        train.report(metrics)
        return
    with scratch() as folder:
        for name, data in files.items():
            storage.write_bytes(os.path.join(folder, name), data)
        train.report(metrics, checkpoint=train.Checkpoint.from_directory(folder))


def _read(checkpoint: train.Checkpoint, name: str) -> bytes:
    # Not by `as_directory`, which copies a remote checkpoint to the local disk first.
    with checkpoint.filesystem.open_input_file(storage.join(checkpoint.path, name)) as stream:
        return stream.read()
