"""The part of `evaluate` that scores IJB-B and IJB-C."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from actors.verify import FileEmbed
from jobs.flip_embed import embedded, warn_of_resized
from raypipe.config.evaluate import EvaluateConfig
from raypipe.errors import UserError
from raypipe.formats.ijb import TemplatePairs, image_files, is_loose, read_ijb
from raypipe.ijb import FARS, cosines, operating_point, roc_curve, template_features
from raypipe.verification import thinned


@dataclass(frozen=True, kw_only=True)
class TemplateSet:
    """A set of the configuration.

    Attributes:
        files: of its images, N.
        loose: whether they are still to be aligned.
    """

    name: str
    pairs: TemplatePairs
    files: list[str]
    loose: bool


def read_set(path: str, name: str) -> TemplateSet:
    """Reads the lists of a set, and looks whether its images are there.

    Raises:
        UserError: as `raypipe.formats.ijb.read_ijb` and `image_files`, with the set's name.
    """
    try:
        pairs = read_ijb(path)
        files = image_files(path, pairs.names)
    except UserError as error:
        raise UserError(f"verification set {name!r}: {error}") from error
    return TemplateSet(name=name, pairs=pairs, files=files, loose=is_loose(path))


def score(
    item: TemplateSet, weights: str, options: EvaluateConfig, note: Callable[..., None]
) -> dict[str, Any]:
    """The protocol's numbers for one set; as `jobs.scoring.score`."""
    pairs, resized = item.pairs, []

    def blocks() -> Iterator[np.ndarray]:
        groups = _groups(item, options.images_per_batch)
        for block, others in embedded(weights, options.pool, FileEmbed, groups):
            resized.append(others)
            yield block

    start = time.perf_counter()
    features = template_features(pairs, blocks())
    seconds = time.perf_counter() - start
    note(f"embed {item.name}", seconds, len(pairs.same), len(item.files))
    warn_of_resized(item.name, sum(resized), len(item.files))
    start = time.perf_counter()
    roc = roc_curve(cosines(features, pairs.first, pairs.second), pairs.same)
    note(f"score {item.name}", time.perf_counter() - start)
    found = {f"{far:g}": operating_point(roc, far) for far in FARS}
    return {
        "tar_at_far": {
            # JSON has no infinity, which is the threshold where nobody is accepted.
            far: {"tar": tar, "far": reached, "threshold": threshold if tar or reached else None}
            for far, (tar, reached, threshold) in found.items()
        },
        "auc": roc.auc,
        "roc": thinned(roc.fars, roc.tars),
        "pairs": len(pairs.same),
        "genuine": int(pairs.same.sum()),
        "impostor": int((~pairs.same).sum()),
        "templates": len(features),
        "images": len(item.files),
        "resized": sum(resized),
    }


def _groups(item: TemplateSet, size: int) -> pa.Table:
    """Model batches of a set, as `FileEmbed` takes them."""
    starts = range(0, len(item.files), size)
    points = item.pairs.points.reshape(-1, 10)
    of_groups = [[*points[i : i + size]] if item.loose else None for i in starts]
    return pa.table(
        {
            "files": [item.files[i : i + size] for i in starts],
            "points": pa.array(of_groups, pa.list_(pa.list_(pa.float32()))),
        }
    )
