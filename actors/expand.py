"""The actor that makes images of identities."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from raypipe import storage
from raypipe.config.embed import EmbedderConfig
from raypipe.config.expand import ExpandConfig
from raypipe.dial import Curve
from raypipe.embedders import open_embedder
from raypipe.expansion import Expander
from raypipe.faceset import FaceSet
from raypipe.identities import Identity
from raypipe.painters import open_painter
from raypipe.recheck import Others, Thresholds
from raypipe.templates import load_gallery


class ExpandActor:
    """Expands the identities of some sources, and hands on the others as they are.

    Args:
        config: fields of an `ExpandConfig`.
        embedder: fields of an `EmbedderConfig`.
        weights: path of each generator, the first one first, and its hex SHA-256.
        others: path of the table of all identities: identity_id and template.
        galleries: name and root of the embedded face set of each.
        thresholds: fields of a `Thresholds`.
        scale: spread of the set's class means, a unit for noise on vectors.
        centre: mean of the set's class means, D numbers: what features of all people share.
        seed: of the run.
        curves: fields of the `Curve` of each generator, where the configuration has a band.
        threads: CPU threads of the process.
        device: where the networks run; none: a GPU where this process sees one.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any],
        embedder: dict[str, Any],
        weights: list[tuple[str, str]],
        others: str,
        galleries: list[tuple[str, str]],
        thresholds: dict[str, Any],
        scale: float,
        centre: list[float],
        seed: int,
        curves: Sequence[dict[str, Any]] = (),
        threads: int = 1,
        device: str | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        settings = ExpandConfig(**config)
        opened = open_embedder(EmbedderConfig(**embedder), str(place))
        painters = [
            open_painter(
                painter,
                path,
                weights=digest,
                device=place,
                embedder=opened,
                scale=scale,
                centre=centre,
                seed=seed,
            )
            for painter, (path, digest) in zip(settings.painters, weights, strict=True)
        ]
        self._sources = set(settings.sources)
        self._expander = Expander(
            settings,
            painters,
            embedder=opened,
            others=_others(others, galleries, Thresholds(**thresholds)),
            seed=seed,
            curves=[Curve(**curve) for curve in curves],
        )

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        for identity in identities:
            if identity.rejected is None and identity.source in self._sources:
                self._expander.expand(identity)
        return identities

    def measure(self, root: str, names: list[str]) -> list[Curve]:
        """The curves of the generators, painted of some identities of a face set."""
        return self._expander.measure(FaceSet(root).read(names))


def _others(path: str, galleries: list[tuple[str, str]], thresholds: Thresholds) -> Others:
    table = pq.read_table(io.BytesIO(storage.read_bytes(path))).combine_chunks()
    flat = table["template"].combine_chunks().flatten().to_numpy()
    return Others(
        table["identity_id"].to_pylist(),
        np.reshape(flat, (len(table), -1)),
        [load_gallery(name, root) for name, root in galleries],
        thresholds,
    )
