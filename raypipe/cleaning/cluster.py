"""The images of one identity that belong together, by either rule."""

from dataclasses import dataclass

import numpy as np

from raypipe.config.clean import ShareConfig

_REFINEMENTS = 10


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a rule found in the images of an identity.

    Attributes:
        kept: bool (n,), the largest consistent cluster; all False where there is none.
        labels: int (n,), 0 for the kept images, 1, 2, ... for other clusters by falling size, -1
            for noise and where nothing is consistent.
        similarity: float64 (n,), cosine to the centre of the kept images (of the other kept ones,
            for a kept image); 0 where none is kept.
        threshold: cosine that was asked for.
    """

    kept: np.ndarray
    labels: np.ndarray
    similarity: np.ndarray
    threshold: float

    @property
    def sizes(self) -> list[int]:
        """Images of every cluster, in the order of the labels; noise is not counted."""
        return np.bincount(self.labels[self.labels >= 0]).tolist()


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors along the last axis scaled to length 1; a zero vector stays zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def reach(coherence: float, images: int) -> float:
    """How near an image comes to the centre of `images` others, against infinitely many.

    With mean cosine c between two images of one person its expected cosine with the centre of n
    others is c / sqrt(c + (1 - c) / n), and sqrt(c) in the limit (attenuation by noise, Spearman
    1904). In (0, 1]: a centre of few images is itself uncertain, so less similarity can be asked
    for.
    """
    return float(np.sqrt(images * coherence / (1 + (images - 1) * coherence)))


def scores(vectors: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Cosines float64 (n,) of unit vectors (n, D) with the centre of the kept ones but itself."""
    wide = vectors.astype(np.float64)
    centres = wide[kept].sum(axis=0) - wide * kept[:, None]
    return (wide * unit(centres)).sum(axis=1)


def _nothing(n: int, threshold: float) -> Cluster:
    return Cluster(
        kept=np.zeros(n, bool),
        labels=np.full(n, -1),
        similarity=np.zeros(n),
        threshold=threshold,
    )


def _ordered(labels: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Labels with the kept images as 0, and the others by falling size, then by first image."""
    rest = [np.flatnonzero(~kept & (labels == label)) for label in np.unique(labels[labels >= 0])]
    result = np.where(kept, 0, -1)
    ordered = sorted((r for r in rest if len(r)), key=lambda r: (-len(r), r[0]))
    for number, members in enumerate(ordered, start=1):
        result[members] = number
    return result


def calibrated_cluster(vectors: np.ndarray, threshold: float, coherence: float) -> Cluster:
    """The largest consistent cluster, refined by similarity to its centre.

    Average linkage, cut where two images stop being one person, gives the start, so that a folder
    shared by two people keeps the one with more images; then images come and go by their similarity
    to the centre until nothing changes.

    Args:
        vectors: unit vectors (n, D) in the calibrated space.
        threshold: cosine to the centre of many images from which an image is that person.
        coherence: mean cosine of two images of one person.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    if len(vectors) < 2:
        return _nothing(len(vectors), threshold)
    wide = vectors.astype(np.float64)
    similarity = wide @ wide.T
    distance = squareform(np.maximum(1 - similarity, 0), checks=False)
    labels = fcluster(linkage(distance, "average"), 1 - threshold * reach(coherence, 1), "distance")
    clusters = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    start = max(clusters, key=lambda m: (len(m), similarity[np.ix_(m, m)].mean(), -m[0]))
    kept = np.isin(np.arange(len(vectors)), start)
    step = 0
    while (count := int(kept.sum())) >= 2:
        found = scores(vectors, kept)
        limit = threshold * reach(coherence, count - 1)
        again = found >= limit
        if step >= _REFINEMENTS:  # it goes round in circles: from here on images only leave
            again &= kept
        if np.array_equal(again, kept):
            return Cluster(
                kept=kept, labels=_ordered(labels, kept), similarity=found, threshold=limit
            )
        kept, step = again, step + 1
    return _nothing(len(vectors), threshold)


def share_cluster(embeddings: np.ndarray, config: ShareConfig) -> Cluster:
    """The largest DBSCAN cluster under the automatic threshold of HGF, as published.

    Two images are neighbours when their cosine is at least t. t starts at 0.60 and moves by 0.02
    until the largest cluster holds 50 to 80 % of the images: down where it holds less, up where it
    holds more; after 10 tries the largest cluster seen is taken. (Ferry-Li/datacv_fr,
    reduce_hsface.py; arXiv 2508.10672.)

    Kept as published: where all images are noise t moves up, which makes it stricter (a comment
    there says looser), so such an identity ends with no cluster. And a mildly clean identity loses
    images only because its share is over 80 %.

    Args:
        embeddings: raw (n, D).
        config: the constants.
    """
    from sklearn.cluster import DBSCAN

    if len(embeddings) < 2:
        return _nothing(len(embeddings), config.start)
    vectors = unit(embeddings.astype(np.float64))
    distance = np.maximum(1 - vectors @ vectors.T, 0)
    best, best_labels, best_share, best_t = -1, np.full(len(vectors), -1), 0.0, config.start
    t = config.start
    for _ in range(config.tries):
        fitted = DBSCAN(eps=1 - t, min_samples=config.min_samples, metric="precomputed")
        labels = fitted.fit_predict(distance)
        share = 0.0
        if (labels >= 0).any():
            sizes = np.bincount(labels[labels >= 0])
            share = float(sizes.max() / len(labels))
            inside = config.share_min <= share <= config.share_max
            if inside or share > best_share:
                best, best_labels, best_share, best_t = int(sizes.argmax()), labels, share, t
            if inside:
                break
        down = 0 < share < config.share_min
        t = min(max(t + (-config.step if down else config.step), config.lowest), config.highest)
    if best < 0:
        return _nothing(len(vectors), best_t)
    kept = best_labels == best
    return Cluster(
        kept=kept,
        labels=_ordered(best_labels, kept),
        similarity=scores(vectors, kept),
        threshold=best_t,
    )
