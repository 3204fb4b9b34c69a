"""Actors of the judging job."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.cleaning.calibration import Calibration
from raypipe.config.embed import EmbedderConfig
from raypipe.config.judge import JudgeConfig
from raypipe.embedders import open_embedder
from raypipe.faceset import FaceSet
from raypipe.identities import SCHEMA, Identity, from_table, to_table
from raypipe.images import decode
from raypipe.judging.doubt import judged
from raypipe.judging.experts import Tools, open_experts
from raypipe.judging.fusion import Rates
from raypipe.judging.panel import Panel


class PickActor:
    """Maps a file of a face set to the rows of some identities.

    Args:
        source: root of the set.
        names: identities to pick.
    """

    def __init__(self, source: str, names: Sequence[str]) -> None:
        self._source = FaceSet(source)
        self._names = pa.array(names, pa.string())

    def __call__(self, path: str) -> pa.Table:
        (present,) = self._source.tables(["identity_id"], [path], rows=1 << 30)
        if not pa.compute.is_in(present["identity_id"], value_set=self._names).to_pylist().count(1):
            return SCHEMA.empty_table()
        chosen = set(self._names.to_pylist())
        rows = self._source.iter_identities([path])
        return to_table([identity for identity in rows if identity.identity_id in chosen])


class SecondActor:
    """Maps rows to the features that a second embedder gives their images.

    Args:
        embedder: fields of an `EmbedderConfig`.

    The table has the columns identity_id and vectors (a list of float32 lists).
    """

    def __init__(self, embedder: dict[str, Any]) -> None:
        self._embedder = open_embedder(EmbedderConfig(**embedder))

    def __call__(self, table: pa.Table) -> pa.Table:
        names, vectors = [], []
        for identity in from_table(table):
            pixels = [decode(image.data, source=image.source) for image in judged(identity)]
            names.append(identity.identity_id)
            vectors.append(list(self._embedder.embed(np.stack(pixels))))
        kind = pa.list_(pa.list_(pa.float32()))
        return pa.table({"identity_id": pa.array(names), "vectors": pa.array(vectors, kind)})


class _Judge:
    """A panel of experts, opened in this process.

    Args:
        config: fields of a `JudgeConfig`.
        near_duplicate, seed: as for `raypipe.judging.panel.Panel`.
        calibration: path of the set's calibration; None under the rule `share`.
        second: path of that of the second embedder; None without one.
        purse: a Ray actor around a `raypipe.judging.purse.Purse`; None: no budget.
    """

    def __init__(
        self,
        config: dict[str, Any],
        near_duplicate: float,
        seed: int,
        calibration: str | None,
        second: str | None,
        purse: Any,
    ) -> None:
        settings = JudgeConfig(**config)

        async def reserve(most: float) -> bool:
            return purse is None or await purse.reserve.remote(most)

        async def settle(most: float, paid: float) -> None:
            if purse is not None:
                await purse.settle.remote(most, paid)

        tools = Tools(
            config=settings,
            calibration=Calibration.load(calibration) if calibration else None,
            second=Calibration.load(second) if second else None,
            share=1 / max(settings.pool.min, settings.pool.max),
            reserve=reserve,
            settle=settle,
        )
        self.panel = Panel(
            settings,
            open_experts(tools),
            tools.calibration,
            near_duplicate=near_duplicate,
            seed=seed,
        )


class OpinionActor(_Judge):
    """Maps rows to what the experts say: identity_id, and a column for each with a float64 for
    each image, NaN where it says nothing."""

    def __call__(self, table: pa.Table) -> pa.Table:
        heard = self.panel.hear(from_table(table))
        names = [case.identity.identity_id for case, _ in heard for _ in case.images]
        columns = {
            name: pa.array([v for _, views in heard for v in views[k].outlier], pa.float64())
            for k, name in enumerate(self.panel.config.panel)
        }
        return pa.table({"identity_id": pa.array(names, pa.string()), **columns})


class JudgeActor(_Judge):
    """Judges identities.

    Args:
        rates: fields of `raypipe.judging.fusion.Rates` as lists; None but for fusion by weights.
    """

    def __init__(self, rates: dict[str, Any] | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._rates = Rates.parse(rates) if rates else None

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        self.panel.judge(identities, self._rates)
        return identities
