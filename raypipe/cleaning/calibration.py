"""Thresholds from the set itself: what one person looks like, and what two people look like.

The space. Embeddings are centred on the population's mean and whitened by the covariance within
identities, so that directions in which one person varies count less (within-class covariance
normalisation: Hatch, Kajarekar and Stolcke, "Within-class covariance normalization for SVM-based
speaker recognition", Interspeech 2006). The covariance is shrunk by Ledoit and Wolf ("A well-
conditioned estimator for large-dimensional covariance matrices", 2004), so few images or many
dimensions are fine. Similarity is the cosine there.

The thresholds follow from the similarities found there (`laws`).

People differ in how alike their images are; `intraclass` says by how much.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from raypipe import seeding, storage
from raypipe.cleaning.cluster import calibrated_cluster, reach, scores, unit
from raypipe.cleaning.laws import BINS, duplicate_limit, histogram, mixture
from raypipe.cleaning.laws import EDGES as EDGES
from raypipe.errors import UserError

_ROUNDS = 4
_CENTRES = 500  # other identities an image is compared with
_MOST_STRANGERS = 0.6


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the cleaning job knows about a set.

    Attributes:
        mean: float32 (D,), mean embedding of the population.
        projection: float32 (D, D); `(embedding - mean) @ projection` is whitened.
        coherence: mean cosine of two images of one person there, in (0, 1).
        threshold: cosine to the centre of many images from which an image is that person.
        duplicate_threshold: cosine of two centres from which two identities are one person.
        strangers: estimated share of images that are somebody else, in [0, 1].
        genuine, impostor: int64 (BINS,), histograms over [-1, 1] of own similarities of the kept
            images and of images with other identities' centres.
        duplicate_genuine, duplicate_impostor: the same for the centres of two halves of an
            identity, and for the centres of two identities.
        identities, images: how many it was measured on.
        intraclass: share of the variance of genuine similarities (Fisher's z) that lies between
            identities, in [0, 1); 0 in files that do not have it.
    """

    mean: np.ndarray
    projection: np.ndarray
    coherence: float
    threshold: float
    duplicate_threshold: float
    strangers: float
    genuine: np.ndarray
    impostor: np.ndarray
    duplicate_genuine: np.ndarray
    duplicate_impostor: np.ndarray
    identities: int
    images: int
    intraclass: float = 0.0

    def transform(self, embeddings: np.ndarray) -> np.ndarray:
        """Raw embeddings (n, D) as unit vectors, float32 (n, D), in the calibrated space."""
        return unit((embeddings - self.mean) @ self.projection)

    def save(self, path: str) -> None:
        """Writes an .npz file (no pickle inside)."""
        buffer = io.BytesIO()
        np.savez(buffer, **{part.name: getattr(self, part.name) for part in fields(self)})
        storage.write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str) -> "Calibration":
        """Reads what `save` wrote."""
        with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as found:
            return cls(**{name: v if v.ndim else v.item() for name, v in found.items()})


def fisher(cosine: np.ndarray) -> np.ndarray:
    """Fisher's z, float64; of at most 0.9995."""
    return np.arctanh(np.clip(cosine, -0.9995, 0.9995))


def levels(vectors: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Where an image of this identity is expected, by how alike the others are; float64 (n,).

    Fisher's z of sqrt(c), which a genuine image reaches (`reach`), with c the mean cosine of two
    of the kept images but the image itself. NaN with fewer than two of them.

    Args:
        vectors: unit vectors (n, D) in the calibrated space.
        kept: bool (n,).
    """
    wide = vectors.astype(np.float64)
    others = kept.sum() - kept.astype(np.int64)
    total = wide[kept].sum(axis=0) - wide * kept[:, None]
    coherence = ((total**2).sum(axis=1) - others) / np.maximum(others * (others - 1), 1)
    return np.where(others > 1, fisher(np.sqrt(np.clip(coherence, 0.01, 0.99))), np.nan)


def _intraclass(vectors: list[np.ndarray], coherence: float) -> float:
    """Intraclass correlation of genuine similarities, in [0, 0.99].

    What an image has in common with the others of its identity: the covariance of its z with their
    level, over the variance of z (Fisher, "Statistical methods for research workers", 1925). The
    level is found without the image, so what makes it an odd one does not count. Measured on
    identities that are equally alike: 0.10, 0.09, 0.03 and 0 with 3, 4, 6 and 12 images each.

    Args:
        vectors: of each identity the kept images, unit vectors (n, D), n at least 2.
        coherence: of the set.
    """
    everyone = [np.ones(len(own), bool) for own in vectors]
    z = np.concatenate(
        [
            fisher(scores(own, kept) / reach(coherence, len(own) - 1))
            for own, kept in zip(vectors, everyone, strict=True)
        ]
    )
    level = np.concatenate([levels(own, kept) for own, kept in zip(vectors, everyone, strict=True)])
    known = ~np.isnan(level)
    if known.sum() < 3:
        return 0.0
    covariance = np.cov(z[known], level[known])
    return float(np.clip(covariance[0, 1] / max(covariance[0, 0], 1e-12), 0.0, 0.99))


def _central_half(vectors: np.ndarray) -> np.ndarray:
    """Mask of the half around the image that is nearest to its own nearest half."""
    size = max(2, len(vectors) // 2)
    if len(vectors) <= size:
        return np.ones(len(vectors), bool)
    similarity = vectors @ vectors.T
    centre = np.sort(similarity, axis=1)[:, -size:].mean(axis=1).argmax()
    mask = np.zeros(len(vectors), bool)
    mask[np.argsort(-similarity[centre], kind="stable")[:size]] = True
    return mask


def _core(vectors: list[np.ndarray], kept: list[np.ndarray]) -> list[np.ndarray]:
    """Masks of the half of all kept images that is nearest to its identities' centres.

    As in the minimum covariance determinant (Rousseeuw and Van Driessen, 1999): a stranger that
    enters the covariance makes its direction count less and so hides itself.
    """
    own = [scores(v, k) for v, k in zip(vectors, kept, strict=True)]
    limit = np.median(np.concatenate([s[k] for s, k in zip(own, kept, strict=True)]))
    return [k & (s >= limit) for s, k in zip(own, kept, strict=True)]


def _whitening(groups: list[np.ndarray], kept: list[np.ndarray]) -> np.ndarray:
    """float32 (D, D) inverse square root of the covariance within identities."""
    from sklearn.covariance import ledoit_wolf

    residuals = []
    for group, mask in zip(groups, kept, strict=True):
        if (n := int(mask.sum())) > 1:
            centred = group[mask] - group[mask].mean(axis=0)
            residuals.append(centred * np.sqrt(n / (n - 1)))
    covariance, _ = ledoit_wolf(np.concatenate(residuals), assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    scale = values[-1] / np.maximum(values, values[-1] * 1e-9)
    return ((vectors * np.sqrt(scale)) @ vectors.T).astype(np.float32)


def _coherence(groups: list[np.ndarray], kept: list[np.ndarray]) -> float:
    """Mean cosine of two kept images of one identity, over all such pairs."""
    total = pairs = 0.0
    for group, mask in zip(groups, kept, strict=True):
        n = int(mask.sum())
        total += float((group[mask].sum(axis=0) ** 2).sum()) - n
        pairs += n * (n - 1)
    return min(max(total / max(pairs, 1), 0.01), 0.99)


def _impostors(groups: list[np.ndarray], kept: list[np.ndarray], centres: np.ndarray) -> np.ndarray:
    """Histogram of the cosines of kept images with centres of (at most 500) other identities."""
    total = np.zeros(BINS, np.int64)
    for own, (vectors, mask) in enumerate(zip(groups, kept, strict=True)):
        others = np.delete(centres[:_CENTRES], [own] if own < _CENTRES else [], axis=0)
        total += histogram(vectors[mask] @ others.T)
    return total


def _halves(vectors: np.ndarray, rng: np.random.Generator) -> float:
    """Cosine of the centres of two random halves of unit vectors (n, D), n at least 2."""
    order = rng.permutation(len(vectors))
    half = len(vectors) // 2
    one, two = vectors[order[:half]].sum(axis=0), vectors[order[half : 2 * half]].sum(axis=0)
    return float(unit(one) @ unit(two))


def calibrate(
    identities: Sequence[tuple[str, np.ndarray]], *, seed: int, population: int
) -> Calibration:
    """Measures a set.

    Args:
        identities: identity_id and raw embeddings float32 (n, D), n at least 2, of a sample.
        seed: seed of the run.
        population: identities of the whole set.

    Raises:
        UserError: with fewer than two identities, or where embeddings tell nobody apart.
    """
    if len(identities) < 2:
        raise UserError(
            "clean: the calibrated rule needs two identities with two usable images each; "
            f"there are {len(identities)}"
        )
    names = [name for name, _ in identities]
    everything = np.concatenate([embeddings for _, embeddings in identities])
    mean = everything.mean(axis=0, dtype=np.float64).astype(np.float32)
    groups = [(embeddings - mean).astype(np.float32) for _, embeddings in identities]
    vectors = [unit(group) for group in groups]
    kept = [_central_half(v) for v in vectors]
    for _ in range(_ROUNDS):
        projection = _whitening(groups, _core(vectors, kept))
        vectors = [unit(group @ projection) for group in groups]
        coherence = _coherence(vectors, kept)
        centres = unit(np.stack([v[k].sum(axis=0) for v, k in zip(vectors, kept, strict=True)]))
        similarity = [
            scores(v, k) / reach(coherence, int(k.sum()) - 1)
            for v, k in zip(vectors, kept, strict=True)
        ]
        impostor = _impostors(vectors, kept, centres)
        threshold, strangers = mixture(histogram(np.concatenate(similarity)), impostor)
        genuine = histogram(np.concatenate([s[k] for s, k in zip(similarity, kept, strict=True)]))
        found = [calibrated_cluster(v, threshold, coherence) for v in vectors]
        if strangers > _MOST_STRANGERS:
            raise UserError(
                f"clean: {strangers:.0%} of the images look like somebody else than their folder; "
                "no threshold can be calibrated: check embedder, weights and alignment"
            )
        consistent = [i for i, cluster in enumerate(found) if cluster.kept.any()]
        if len(consistent) < 2:
            raise UserError(
                "clean: no threshold can be calibrated, fewer than two identities have two images "
                "that agree; check embedder, weights and alignment"
            )
        groups = [groups[i] for i in consistent]
        vectors = [vectors[i] for i in consistent]
        kept = [found[i].kept for i in consistent]
        names = [names[i] for i in consistent]
    vectors = [unit(group[mask] @ projection) for group, mask in zip(groups, kept, strict=True)]
    centres = unit(np.stack([v.sum(axis=0) for v in vectors]))
    halves = histogram(
        np.array(
            [
                _halves(v, seeding.generator(seed, name, stream="clean"))
                for name, v in zip(names, vectors, strict=True)
            ]
        )
    )
    pairs = histogram((centres @ centres.T)[np.triu_indices(len(centres), 1)])
    return Calibration(
        mean=mean,
        projection=projection,
        coherence=coherence,
        threshold=threshold,
        duplicate_threshold=duplicate_limit(halves, pairs, population),
        strangers=strangers,
        genuine=genuine,
        impostor=impostor,
        duplicate_genuine=halves,
        duplicate_impostor=pairs,
        identities=len(identities),
        images=len(everything),
        intraclass=_intraclass(vectors, coherence),
    )
