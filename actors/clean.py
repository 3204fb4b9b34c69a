"""Actors of the cleaning job."""

from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.cleaning.calibration import Calibration
from raypipe.cleaning.cluster import calibrated_cluster
from raypipe.cleaning.doubles import load_doubles
from raypipe.cleaning.marking import mark
from raypipe.config.clean import CleanConfig
from raypipe.faceset import FaceSet
from raypipe.identities import Identity


class CentreActor:
    """Maps a file of an embedded set to the centres of its identities.

    Args:
        source: root of the set.
        calibration: path of the set's calibration.

    The table has the columns identity_id, index, kept (images of the largest consistent cluster)
    and centre (float32, unit length, in the calibrated space). Identities without a consistent
    cluster, and those rejected before, are left out. No image is read.
    """

    def __init__(self, source: str, calibration: str) -> None:
        self._source = FaceSet(source)
        self._calibration = Calibration.load(calibration)

    def __call__(self, path: str) -> pa.Table:
        names, indices, kept, centres = [], [], [], []
        for found in self._source.iter_embeddings([path]):
            usable = [reason is None for reason in found.image_rejected]
            if found.rejected is not None or not any(usable):
                continue
            vectors = self._calibration.transform(found.embeddings[usable])
            cluster = calibrated_cluster(
                vectors, self._calibration.threshold, self._calibration.coherence
            )
            if cluster.kept.any():
                centre = vectors[cluster.kept].sum(axis=0, dtype=np.float64)
                names.append(found.identity_id)
                indices.append(found.index)
                kept.append(int(cluster.kept.sum()))
                centres.append((centre / np.linalg.norm(centre)).astype(np.float32))
        return pa.table(
            {
                "identity_id": pa.array(names, pa.string()),
                "index": pa.array(indices, pa.int64()),
                "kept": pa.array(kept, pa.int64()),
                "centre": pa.array(centres, pa.list_(pa.float32())),
            }
        )


class CleanActor:
    """Marks images and identities that do not belong.

    Args:
        config: fields of a `CleanConfig`.
        calibration: path of the set's calibration; none under the rule `share`.
        doubles: path of the identities that are one person; none under the rule `share`.
    """

    def __init__(
        self, config: dict[str, Any], calibration: str | None, doubles: str | None
    ) -> None:
        self._config = CleanConfig(**config)
        self._calibration = Calibration.load(calibration) if calibration else None
        self._doubles = load_doubles(doubles) if doubles else {}

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        for identity in identities:
            mark(identity, self._config, self._calibration, self._doubles)
        return identities
