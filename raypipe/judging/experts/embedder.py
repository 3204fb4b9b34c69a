"""A second embedder: the cleaning job's rule on the features of another network."""

from collections.abc import Sequence

import numpy as np

from raypipe.cleaning.cluster import calibrated_cluster
from raypipe.embedders import open_embedder
from raypipe.judging.doubt import doubts
from raypipe.judging.experts import Case, Expert, Tools, View

LAWS = "second"


def expert(tools: Tools) -> Expert:
    """See `raypipe.judging.experts`."""
    assert tools.config.second is not None and tools.second is not None
    embedder, known = open_embedder(tools.config.second), tools.second

    def opinion(case: Case) -> View:
        vectors = known.transform(embedder.embed(np.stack(case.pixels())))
        cluster = calibrated_cluster(vectors, known.threshold, known.coherence)
        if not cluster.kept.any():
            return View(outlier=np.full(len(case.images), np.nan))
        return View(outlier=doubts(cluster.similarity, vectors, cluster.kept, known))

    def opinions(cases: Sequence[Case]) -> list[View]:
        return [opinion(case) for case in cases]

    return opinions
