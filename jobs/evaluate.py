"""Scores the trained recognizer on verification sets."""

import time
from typing import Any

import numpy as np
import pyarrow as pa

from actors.verify import FlipEmbed
from jobs import ijb
from jobs.cluster import connect, preflight
from jobs.flip_embed import embedded, warn_of_resized
from jobs.progress import console
from jobs.work import Work, begin
from raypipe import storage
from raypipe.config import Build
from raypipe.errors import UserError
from raypipe.formats.ijb import digest_ijb, is_ijb
from raypipe.formats.verification import digest
from raypipe.manifest import Manifest, digest_of, read_manifest
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
    of_templates = {item.name: item.path for item in sets if is_ijb(item.path)}
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
            **{
                item.name: (digest_ijb if item.name in of_templates else digest)(item.path)
                for item in sets
            },
        },
    )
    if work.manifest:
        return work.manifest
    all_pairs = [read_pairs(i.path, i.name) for i in sets if i.name not in of_templates]
    all_templates = [ijb.read_set(path, name) for name, path in of_templates.items()]
    connect(config)
    preflight("evaluate", [config.evaluate.pool])
    results = {pairs.name: _score(config, work, pairs) for pairs in all_pairs}
    templates = {item.name: ijb.score(config, work, item) for item in all_templates}
    if templates:
        console.print(ijb.table_of(templates))
    storage.write_json(work.path(RESULTS), {"sets": results, "ijb": templates})
    counts = {name: result["pairs"] for name, result in {**results, **templates}.items()}
    return work.finish({"pairs": counts}, digest_of([results, templates]))


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
    warn_of_resized(pairs.name, resized, len(places))
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
    size = config.evaluate.images_per_batch
    starts = range(0, len(images), size)
    groups = pa.table(
        {
            "images": pa.array([images[i : i + size] for i in starts], pa.list_(pa.binary())),
            "sources": [sources[i : i + size] for i in starts],
        }
    )
    blocks, resized = zip(*embedded(config, FlipEmbed, groups), strict=True)
    return np.concatenate(blocks), sum(resized)


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("evaluate")
