"""Under the jobs that train on the images of a face set and their features: the set, the epochs."""

import collections
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
import torch
from ray import train
from ray.data.collate_fn import ArrowBatchCollateFn
from ray.train.torch import get_device

from jobs.cluster import connect, preflight
from jobs.trainer import CHECKPOINTS, SPEED_ONLY, fit, in_order, pool_of, read_rows, save_state
from jobs.work import Work, begin
from raypipe import feature_training as training
from raypipe import storage
from raypipe.config import Build
from raypipe.config.base import FeatureTraining
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.manifest import Manifest, read_manifest
from raypipe.models.cemiface import CemiFace
from raypipe.models.loading import shipped
from raypipe.models.vec2face import Vec2Face
from raypipe.seeding import torch_seed

CARD, HISTORY, GRIDS = "card.json", "history.json", "grids"
Decode = Callable[[pa.Table], training.Batch]


@dataclass(kw_only=True)
class FeatureSet:
    """The Parquet files of a face set, their bytes, its images to train on, some features."""

    files: list[str]
    size: int
    images: int
    vectors: np.ndarray


def examine(source: str) -> FeatureSet:
    """Looks at a face set: no image is read."""
    face_set = FaceSet(source)
    files = face_set.files()
    vectors, images = training.features(face_set)
    sizes = {entry.path: entry.size for entry in storage.listdir(source, recursive=True)}
    return FeatureSet(
        files=files, size=sum(sizes[f] for f in files), images=images, vectors=vectors
    )


def dataset(found: FeatureSet) -> ray.data.Dataset:
    """A row for each image to train on (`feature_training.COLUMNS`), in order."""
    rows = read_rows(found.files).map_batches(
        training.image_rows, batch_format="pyarrow", batch_size=None
    )
    return in_order(rows, found.size)


def people(source: str, count: int) -> pa.Table:
    """The first image of each of the first identities, for the grids."""
    taken: list[pa.Table] = []
    face_set = FaceSet(source)
    for table in itertools.chain.from_iterable(map(face_set.tables_of, face_set.files())):
        for row in range(len(table)):
            taken.append(training.image_rows(table.slice(row, 1)).slice(0, 1))
        if sum(map(len, taken)) >= count:
            break
    return pa.concat_tables(taken).slice(0, count)


def begin_training(
    config: Build, options: FeatureTraining, *, job: str, folder: str, files: dict[str, str | None]
) -> tuple[Work, str]:
    """Begins the work of a training job in a folder of the workspace; returns the face set too.

    Args:
        files: setting → weight file that the result depends on; None where there is none.

    Raises:
        UserError: where the set is unfinished, or the folder was made with something else.
    """
    source = options.faces.replace("{workspace}", config.workspace.rstrip("/"))
    faces = read_manifest(source)
    if faces is None:
        raise UserError(f"{job}: {source} holds no finished face set; run `raypipe embed`")
    embedder = config.embedder
    weights = [embedder.weights or shipped("dlib_resnet_v1.safetensors"), *files.values()]
    work = begin(
        config,
        job=folder,
        settings={
            **options.model_dump(exclude={*SPEED_ONLY, "faces", *files}),
            "embedder": embedder.model_dump(exclude={"weights"}),
            "seed": config.seed,
        },
        inputs={"faces": faces.content_digest},
        models=[path for path in weights if path],
    )
    return work, source


def fit_features(
    config: Build,
    options: FeatureTraining,
    work: Work,
    worker: Callable[[dict[str, Any]], str | None],
    *,
    job: str,
    source: str,
) -> tuple[bytes, FeatureSet]:
    """Trains to the last epoch, or goes on from the last checkpoint; the state at the end.

    Args:
        worker: runs on every worker, with config, embedder, seed, images (of the set), vectors
            (some of its features), people (rows for the grids) and grids (where these go).

    Raises:
        UserError: where the set is too small, or a worker says so.
    """
    found = examine(source)
    if found.images < options.num_workers:
        raise UserError(f"{job}: {source} has {found.images} images to train on")
    connect(config)
    preflight(job, [pool_of(options)])
    begun = time.perf_counter()
    images = found.images * options.epochs
    state = fit(
        work,
        worker,
        {
            "config": options.model_dump(),
            "embedder": config.embedder.model_dump(),
            "seed": config.seed,
            "images": found.images,
            "vectors": found.vectors,
            "people": people(source, options.grid),
            "grids": work.path(GRIDS),
        },
        dataset(found),
        config=options,
        images=images,
    )
    work.timing("train", time.perf_counter() - begun, images=images)
    return state, found


def finish_training(
    config: Build,
    options: FeatureTraining,
    work: Work,
    network: CemiFace | Vec2Face,
    history: list[dict[str, Any]],
    found: FeatureSet,
    *,
    file: str,
) -> Manifest:
    """Writes the weights into a file of the folder, the card and the history."""
    weights = network.to_safetensors(getattr(torch, options.store))
    storage.write_bytes(work.path(file), weights)
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


class _Collate(ArrowBatchCollateFn):
    """Decodes in a thread beside the training step."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def __call__(self, batch: pa.Table) -> training.Batch:
        return self._decode(batch)


class Trained(Protocol):
    """What is trained, on one worker."""

    steps: int

    def train_period(
        self,
        batches: Iterable[training.Batch],
        *,
        epoch: int,
        first_step: int,
        on_step: Callable[[int, str], None],
    ) -> dict[str, Any]:
        """Trains an epoch or a part of it; its losses, the main one first, and figures."""

    def grid(self, people: training.Batch, seed: int) -> bytes:
        """A PNG that shows how far it has come."""

    def pack(self, history: list[dict[str, Any]]) -> bytes:
        """What training goes on from."""


def train_epochs(
    job: str,
    run: Trained,
    config: FeatureTraining,
    decoder: Callable[[int], Decode],
    arguments: dict[str, Any],
    history: list[dict[str, Any]],
) -> str | None:
    """On a worker: trains from where the history ends, period by period, to the last epoch.

    Args:
        decoder: epoch → what decodes its batches.
        arguments: of the worker: seed, images (of the set), people and grids (where pictures of
            them go), progress.
        history: of the periods so far; goes on.

    Returns:
        The user's mistake where there is one, the same on all workers.
    """
    seed, images = arguments["seed"], arguments["images"]
    context = train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    shard = train.get_dataset_shard("train")
    period = config.period or run.steps
    periods = -(-run.steps // period)
    told = time.monotonic()

    for epoch in range(len(history) // periods, config.epochs):
        decode = decoder(epoch)
        batches = iter(
            shard.iter_torch_batches(
                batch_size=config.batch_size,
                prefetch_batches=config.prefetch_batches,
                collate_fn=_Collate(decode),
                device="cpu",
                pin_memory=get_device().type == "cuda",
                local_shuffle_buffer_size=config.shuffle,
                local_shuffle_seed=torch_seed(seed, job, epoch, "shuffle") % 2**31,
            )
        )
        for number in range(epoch * periods, (epoch + 1) * periods):
            first = number % periods * period
            part = itertools.islice(batches, period)
            if number < len(history):  # done before this run
                collections.deque(part, maxlen=0)
                continue

            def on_step(done: int, remark: str, epoch: int = epoch, first: int = first) -> None:
                nonlocal told
                if rank == 0 and time.monotonic() - told > 0.5:
                    told = time.monotonic()
                    here = (first * config.batch_size + done) * workers
                    words = f"epoch {epoch + 1} of {config.epochs}: {remark}"
                    arguments["progress"].report.remote(epoch * images + min(here, images), words)

            torch.manual_seed(torch_seed(seed, job, number, f"dropout {rank}"))
            try:
                result = run.train_period(part, epoch=epoch, first_step=first, on_step=on_step)
            except training.DivergedError as error:
                return str(error)  # not raised: Ray Train would try again, with the same end
            history.append({"epoch": epoch + 1, **result})
            if rank == 0:
                picture = storage.join(arguments["grids"], f"{number + 1:05d}.png")
                storage.write_bytes(picture, run.grid(decode(arguments["people"]), seed))
            save_state({"loss": next(iter(result.values()))}, None if rank else run.pack(history))
    return None
