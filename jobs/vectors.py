"""Vectors of people who do not exist, every two of them far enough apart.

1. One task fits the law on a face set, reading its embeddings once (`distribution.safetensors`).
2. One task draws the vectors, finds everybody's nearest, and writes the rows.

The result is a face set. Every identity has one image without a picture, `vector`, whose embedding
is the vector; it is rejected as an image, and stays in the row as what all others are made from.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import ray

from jobs.cluster import connect
from jobs.progress import console
from jobs.stage import explain, finished, totals
from jobs.work import begin
from raypipe import storage
from raypipe.config import Build
from raypipe.config.base import Pool
from raypipe.config.vectors import VectorsConfig
from raypipe.errors import UserError
from raypipe.faceset import ROWS, FaceSet, write_rows
from raypipe.manifest import STARTED, Manifest, summarise
from raypipe.vectors import Distribution, class_means, fit, sample
from raypipe.vectors.rows import identities

LAW = "distribution.safetensors"
_FILE = 1024  # identities of a file


def run(config: Build) -> Manifest:
    """Draws identity vectors into `{workspace}/vectors`.

    Raises:
        UserError: where the configuration has no part `vectors`, the source is unfinished or holds
            too few identities, or so many vectors do not fit under the ceiling.
    """
    vectors = config.vectors
    if vectors is None:
        raise UserError("vectors: the configuration has no part 'vectors'")
    job = vectors.source or config.cleaned
    source = storage.join(config.workspace, job)
    origin = finished("vectors", source)
    work = begin(
        config,
        job="vectors",
        settings={"seed": config.seed, **vectors.model_dump(exclude={"pool"}), "source": job},
        inputs={job: origin.content_digest},
    )
    if work.manifest:
        return work.manifest
    connect(config)
    law = work.path(LAW)
    try:
        if not storage.exists(law):
            with console.status(f"vectors: fitting on {job}"), work.timed("fit"):
                _task(vectors.pool, _fit, source, law)
        with console.status(f"vectors: drawing {vectors.count:,}"), work.timed("draw"):
            drawn, facts = _task(
                vectors.pool,
                _draw,
                vectors,
                source,
                config.seed,
                work.root,
                origin.counts["identities"]["total"],
            )
    except UserError:  # nothing was drawn: the settings may change
        storage.delete(law)
        storage.delete(work.path(STARTED))
        raise
    if note := facts["note"]:
        console.print(f"vectors: {note}", style="yellow")
    counts, digest = summarise(work.root)
    accepted = counts.identities
    console.print(f"vectors: {drawn:,} drawn, {drawn - accepted:,} refused as too similar")
    return work.finish(
        {
            **totals(counts, images_made=counts.images),
            "drawn": {"total": drawn, "accepted": accepted, "refused": drawn - accepted},
        },
        digest,
        extra={"law": facts},
    )


def _task(pool: Pool, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function with the pool's resources, so that the driver needs neither."""
    task = ray.remote(
        num_cpus=max(pool.num_cpus, 1), num_gpus=pool.num_gpus or None, memory=pool.memory
    )(function)
    try:
        return ray.get(task.remote(*arguments))
    except ray.exceptions.RayError as error:
        if mistake := explain("vectors", error):
            raise mistake from None
        raise


def _fit(source: str, path: str) -> None:
    fit(class_means(FaceSet(source)), source).save(path)


def _draw(
    config: VectorsConfig, source: str, seed: int, root: str, before: int
) -> tuple[int, dict[str, Any]]:
    """Writes the rows, whose indexes follow those of the `before` identities of the source; how
    many candidates were drawn, and what the manifest says of the law."""
    fitted = Distribution.load(storage.join(root, LAW))
    known = None
    if config.away_from_source:
        known = np.stack([mean.astype(np.float32) for mean in class_means(FaceSet(source))])
    found = sample(
        fitted if config.law == "components" else fitted.gaussian(),
        config.count,
        ceiling=config.ceiling,
        seed=seed,
        against=known,
    )
    storage.delete(storage.join(root, ROWS))
    for start, rows in identities(
        found, ceiling=config.ceiling, seed=seed, before=before, size=_FILE
    ):
        write_rows(root, f"{start:09d}.parquet", rows)
    return found.drawn, {
        "digest": fitted.digest,
        "identities": int(fitted.identities),
        "components": len(fitted.variances),
        "spread": fitted.spread,
        "note": fitted.note,
    }


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("vectors")
