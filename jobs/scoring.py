"""Scores a recognizer on verification sets: what `raypipe evaluate` does in all of its forms."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from actors.verify import FlipEmbed
from jobs import ijb
from jobs.flip_embed import embedded, warn_of_resized
from raypipe import storage
from raypipe.config.evaluate import EvaluateConfig, VerificationSetConfig
from raypipe.errors import UserError
from raypipe.formats.ijb import digest_ijb, is_ijb
from raypipe.formats.verification import digest
from raypipe.verification import (
    GroupResult,
    Pairs,
    by_group,
    histogram,
    read_pairs,
    squared_distances,
    unit,
    verify,
)


def digests(sets: Sequence[VerificationSetConfig]) -> dict[str, str]:
    """Name → hex SHA-256 of the content of verification sets.

    Raises:
        UserError: where a set is not there, or is none.
    """
    found = {}
    for item in sets:
        if not storage.exists(item.path):
            raise UserError(f"verification set {item.name!r}: {item.path}: no such file")
        found[item.name] = (digest_ijb if is_ijb(item.path) else digest)(item.path)
    return found


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Verification sets in memory: pairs of photographs, and IJB's pairs of templates."""

    pairs: list[Pairs]
    templates: list[ijb.TemplateSet]


def read_sets(sets: Sequence[VerificationSetConfig]) -> Sets:
    """Reads verification sets.

    Raises:
        UserError: where one is damaged, with its name.
    """
    of_templates = {item.name: item.path for item in sets if is_ijb(item.path)}
    return Sets(
        pairs=[read_pairs(i.path, i.name) for i in sets if i.name not in of_templates],
        templates=[ijb.read_set(path, name) for name, path in of_templates.items()],
    )


def score(
    pairs: Pairs, weights: str, options: EvaluateConfig, note: Callable[..., None]
) -> dict[str, Any]:
    """The protocol's numbers for one set of pairs.

    Args:
        weights: file of the recognizer.
        options: rates, size of a model batch, pool.
        note: told how long parts take, as `jobs.work.Work.timing`.

    Raises:
        UserError: where the recognizer cannot be opened, or an image not be decoded.
    """
    # A photograph stands in many pairs and is embedded once. In the order of first appearance.
    places: dict[bytes, str] = {}
    for row, (first, second) in enumerate(zip(pairs.first, pairs.second, strict=True)):
        places.setdefault(first, f"verification set {pairs.name!r}, row {row}, first")
        places.setdefault(second, f"verification set {pairs.name!r}, row {row}, second")
    index = {data: number for number, data in enumerate(places)}
    start = time.perf_counter()
    sums, resized = _embed(weights, options, list(places), list(places.values()))
    embeddings = unit(sums)
    warn_of_resized(pairs.name, resized, len(places))
    note(f"embed {pairs.name}", time.perf_counter() - start, len(pairs.same), len(places))
    distances = squared_distances(
        embeddings[[index[data] for data in pairs.first]],
        embeddings[[index[data] for data in pairs.second]],
    )
    result = verify(distances, pairs.same, pairs.folds, options.fars)
    found = {
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
    if pairs.groups is not None:
        groups = by_group(
            distances, pairs.same, pairs.folds, pairs.groups, result.thresholds, options.fars
        )
        found["groups"] = {name: _of_group(group) for name, group in groups.items()}
    return found


def _of_group(group: GroupResult) -> dict[str, Any]:
    tars = {f"{far:g}": {"tar": tar, "far": reached} for far, (tar, reached) in group.tars.items()}
    return {name: value for name, value in asdict(group).items() if name != "tars"} | {
        "tar_at_far": tars
    }


def _embed(
    weights: str, options: EvaluateConfig, images: list[bytes], sources: list[str]
) -> tuple[np.ndarray, int]:
    """Embeds images, float32 (N, D), in model batches that are fixed by the images' order.

    Returns:
        The embeddings, and how many images had to be resized.
    """
    size = options.images_per_batch
    starts = range(0, len(images), size)
    groups = pa.table(
        {
            "images": pa.array([images[i : i + size] for i in starts], pa.list_(pa.binary())),
            "sources": [sources[i : i + size] for i in starts],
        }
    )
    blocks, resized = zip(*embedded(weights, options.pool, FlipEmbed, groups), strict=True)
    return np.concatenate(blocks), sum(resized)
