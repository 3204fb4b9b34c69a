"""Scores the trained recognizer on verification sets."""

import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.verify import FlipEmbed
from jobs.cluster import connect, preflight
from jobs.progress import console
from jobs.stage import explain
from jobs.train import CARD, WEIGHTS
from jobs.work import Work, begin
from raypipe import storage
from raypipe.config import Build
from raypipe.errors import UserError
from raypipe.formats.verification import digest
from raypipe.manifest import Manifest, digest_of, read_manifest
from raypipe.recognizer import SIDE
from raypipe.verification import (
    Pairs,
    histogram,
    read_pairs,
    squared_distances,
    unit,
    verify,
)

RESULTS = "results.json"


def run(config: Build) -> Manifest:
    """Embeds every photograph once, runs the protocol on each set, writes `results.json`."""
    trained = storage.join(config.workspace, "train")
    recognizer = read_manifest(trained)
    if recognizer is None:
        raise UserError(f"evaluate: {trained} holds no trained recognizer; run `raypipe train`")
    sets = config.evaluate.sets
    for item in sets:
        if not storage.exists(item.path):
            raise UserError(f"verification set {item.name!r}: {item.path}: no such file")
    work = begin(
        config,
        job="evaluate",
        settings={
            "sets": [item.name for item in sets],
            "fars": config.evaluate.fars,
            "images_per_batch": config.evaluate.images_per_batch,
        },
        inputs={
            "train": recognizer.content_digest,
            **{item.name: digest(item.path) for item in sets},
        },
    )
    if work.manifest:
        return work.manifest
    all_pairs = [read_pairs(item.path, item.name) for item in sets]
    connect(config)
    preflight("evaluate", [config.evaluate.pool])
    results = {pairs.name: _score(config, work, pairs) for pairs in all_pairs}
    storage.write_json(work.path(RESULTS), {"sets": results})
    return work.finish({"pairs": {p.name: len(p.same) for p in all_pairs}}, digest_of(results))


def _score(config: Build, work: Work, pairs: Pairs) -> dict[str, Any]:
    """The protocol's numbers for one set."""
    # A photograph stands in many pairs and is embedded once. In the order of first appearance.
    places: dict[bytes, str] = {}
    for row, (first, second) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        places.setdefault(first, f"verification set {pairs.name!r}, row {row}, first")
        places.setdefault(second, f"verification set {pairs.name!r}, row {row}, second")
    index = {data: number for number, data in enumerate(places)}
    start = time.perf_counter()
    sums, resized = _embed(config, list(places), list(places.values()))
    embeddings = unit(sums)
    if resized:
        console.print(
            f"evaluate: {pairs.name}: {resized:,} of {len(places):,} images are not {SIDE}×{SIDE} "
            "and were scaled and cut; the numbers hold only if their faces are aligned",
            style="yellow",
        )
    work.timing(f"embed {pairs.name}", time.perf_counter() - start, len(pairs.same), len(places))
    distances = squared_distances(
        embeddings[[index[data] for data in pairs.first]],
        embeddings[[index[data] for data in pairs.second]],
    )
    result = verify(distances, pairs.same, pairs.folds, config.evaluate.fars)
    return {
        "accuracy": float(np.mean(result.accuracies)),
        "std": float(np.std(result.accuracies)),
        "accuracies": result.accuracies,
        "threshold": float(np.mean(result.thresholds)),
        "thresholds": result.thresholds,
        "tar_at_far": {
            f"{far:g}": {"mean": mean, "std": std, "far": reached}
            for far, (mean, std, reached) in result.tars.items()
        },
        "auc": result.auc,
        "roc": result.roc,
        "histogram": histogram(distances, pairs.same),
        "pairs": len(pairs.same),
        "genuine": int(pairs.same.sum()),
        "impostor": int((~pairs.same).sum()),
        "images": len(places),
        "resized": resized,
    }


def _embed(config: Build, images: list[bytes], sources: list[str]) -> tuple[np.ndarray, int]:
    """Embeds images, float32 (N, 512), in model batches that are fixed by the images' order.

    Returns:
        The embeddings, and how many images had to be resized.
    """
    card = storage.read_json(storage.join(config.workspace, "train", CARD))
    pool, size = config.evaluate.pool, config.evaluate.images_per_batch
    starts = range(0, len(images), size)
    groups = pa.table(
        {
            "group": pa.array(range(len(starts)), pa.int64()),
            "images": pa.array([images[i : i + size] for i in starts], pa.list_(pa.binary())),
            "sources": [sources[i : i + size] for i in starts],
        }
    )
    dataset = ray.data.from_arrow(
        [groups.slice(i, pool.batch_size) for i in range(0, len(starts), pool.batch_size)]
    )
    embedded = dataset.map_batches(
        FlipEmbed,
        fn_constructor_kwargs={
            "weights": storage.join(config.workspace, "train", WEIGHTS),
            "depth": card["depth"],
            "width": card["width"],
            "gpu": pool.num_gpus > 0,
            "threads": max(1, int(pool.num_cpus)),
        },
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=pool.min, max_size=max(pool.min, pool.max)),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
        memory=pool.memory,
        accelerator_type=pool.accelerator_type,
    )
    try:
        rows = embedded.take_all()
    except Exception as error:
        if mistake := explain("evaluate", error):
            raise mistake from None
        raise
    rows.sort(key=lambda row: row["group"])
    embeddings = np.concatenate([np.stack(row["embeddings"]) for row in rows])
    return embeddings, sum(row["resized"] for row in rows)


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("evaluate")
