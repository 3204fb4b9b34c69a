"""What identity vectors are drawn from.

As published (the author's answers in github.com/HaiyuWu/Vec2Face, issues 10 and 11): a principal
component analysis of the class means of raw features and a multivariate normal law in its space, or
one normal law for all components.

Fitting and drawing give the same bytes whatever the order of the identities, the number of threads
or the BLAS: numbers are rounded to a binary grid, so coarse that every product and every sum of a
matrix product is exact in float64, and so fine that float32 vectors hardly show it.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from raypipe import seeding, storage
from raypipe.errors import UserError
from raypipe.faceset import FaceSet

DRAWN = 4096  # candidates of a draw: part of what a seed means
_FEATURE_GRID = 2.0**14  # exact while N·x² stays below 2²⁵: 10⁶ class means with |x| under 5.8
_NORMAL_GRID = 2.0**18  # normal numbers lie within ±8: 21 bits
_FACTOR_BITS = 22  # 21 + 22 bits a product, 10 for 1024 terms of a sum: 53 bits
_BUFFER = 1024
_NEGLIGIBLE = 1e-6  # of the largest variance: such a component carries rounding, not identity


def class_means(face_set: FaceSet) -> Iterator[np.ndarray]:
    """The mean raw feature, float64 (D,), of the kept images of every kept identity."""
    for item in face_set.iter_embeddings():
        kept = [i for i, reason in enumerate(item.image_rejected) if reason is None]
        if item.rejected is None and kept:
            yield item.embeddings[kept].mean(axis=0, dtype=np.float64)


def _normal(seed: int, block: int, columns: int) -> np.ndarray:
    """Normal numbers on a grid, float64 (DRAWN, columns)."""
    numbers = seeding.generator(seed, "", block, "vectors").standard_normal((DRAWN, columns))
    return np.rint(numbers * _NORMAL_GRID) / _NORMAL_GRID


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """One normal law for every component; as published N(0, 1), which is close to the features of
    ArcFace networks (WebFace4M: mean 0.0046, standard deviation 0.967).

    Attributes:
        dimension: D.
        location: mean of a component.
        scale: standard deviation of a component.
    """

    dimension: int
    location: float = 0.0
    scale: float = 1.0

    def draw(self, seed: int, block: int) -> np.ndarray:
        """Candidates `block × DRAWN` and following, float32 (DRAWN, D)."""
        numbers = _normal(seed, block, self.dimension)
        return (self.location + self.scale * numbers).astype(np.float32)

    @property
    def cosine(self) -> float:
        """About the mean cosine of two vectors."""
        return self.location**2 / (self.location**2 + self.scale**2)


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """A multivariate normal law in the space of principal components.

    Attributes:
        mean: float64 (D,), mean of the class means.
        components: float64 (K, D), orthonormal rows, by falling variance.
        variances: float64 (K,), of the class means along them.
        identities: int64 (), class means that it was fitted on.
    """

    mean: np.ndarray
    components: np.ndarray
    variances: np.ndarray
    identities: np.ndarray

    @property
    def dimension(self) -> int:
        """D."""
        return len(self.mean)

    @property
    def spread(self) -> float:
        """Root mean square distance of a component from its mean: the unit that the published
        perturbations are measured in, about 1 for features of ArcFace networks."""
        return float(np.sqrt(self.variances.sum() / self.dimension))

    @property
    def cosine(self) -> float:
        """About the mean cosine of two vectors: 0 for features around the origin, near 1 where all
        people share a large mean."""
        shared = float((self.mean**2).sum())
        return shared / (shared + float(self.variances.sum()))

    @property
    def note(self) -> str | None:
        """What a person should know about the fit."""
        if int(self.identities) > self.dimension:
            return None
        return (
            f"fitted on {int(self.identities):,} identities with {self.dimension} dimensions: the "
            f"vectors vary along {len(self.variances)} components only; more than "
            f"{self.dimension} identities make them vary along all"
        )

    def draw(self, seed: int, block: int) -> np.ndarray:
        """Candidates `block × DRAWN` and following, float32 (DRAWN, D)."""
        factor = np.sqrt(self.variances)[:, None] * self.components
        grid = 2.0 ** (_FACTOR_BITS - np.ceil(np.log2(np.abs(factor).max())))
        factor = np.rint(factor * grid) / grid
        return (_normal(seed, block, len(factor)) @ factor + self.mean).astype(np.float32)

    def gaussian(self) -> Gaussian:
        """One normal law for all components with the same overall mean and variance."""
        location = float(self.mean.mean())
        square = (float((self.mean**2).sum()) + float(self.variances.sum())) / self.dimension
        return Gaussian(
            dimension=self.dimension,
            location=location,
            scale=float(np.sqrt(square - location**2)),
        )

    def to_bytes(self) -> bytes:
        """As a safetensors file, the same bytes for the same numbers."""
        return save_tensors({part.name: getattr(self, part.name) for part in fields(self)})

    @property
    def digest(self) -> str:
        """Hex SHA-256 of `to_bytes`, and of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def save(self, path: str) -> None:
        """Writes a safetensors file."""
        storage.write_bytes(path, self.to_bytes())

    @classmethod
    def load(cls, path: str) -> "Distribution":
        """Reads what `save` wrote.

        Raises:
            UserError: where the file is missing or something else.
        """
        try:
            return cls(**load_tensors(storage.read_bytes(path)))
        except (SafetensorError, TypeError) as error:
            raise UserError(
                f"{path}: not a distribution of identity vectors ({error}); delete it, and it is "
                "fitted anew"
            ) from error


def fit(means: Iterable[np.ndarray], name: str) -> Distribution:
    """Fits the law, one class mean in memory at a time.

    Where there are no more identities than dimensions, only the components that carry variance are
    kept, one fewer than identities at most.

    Args:
        means: class means, float (D,) each; D at most 1024.
        name: what to call their source in an error.

    Raises:
        UserError: with fewer than two identities, or where all class means are equal.
    """
    buffer: list[np.ndarray] = []
    count, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for mean in means:
        if not count:
            total, products = np.zeros(len(mean)), np.zeros((len(mean), len(mean)))
        buffer.append(np.rint(mean * _FEATURE_GRID))
        count += 1
        if len(buffer) == _BUFFER:
            _add(buffer, total, products)
    if count < 2:
        raise UserError(
            f"vectors: {name} has {count} kept identities with an embedded image; a distribution "
            "needs two at least, and more than the embedding has dimensions to be a good one"
        )
    if buffer:
        _add(buffer, total, products)
    covariance = (products - np.outer(total, total) / count) / (count - 1) / _FEATURE_GRID**2
    variances, vectors = _eigen(covariance)
    kept = variances > _NEGLIGIBLE * max(variances[0], 0.0)
    kept[count - 1 :] = False
    if not kept.any():
        raise UserError(f"vectors: all {count:,} identities of {name} have the same embedding")
    components = vectors[:, kept].T
    peaks = np.take_along_axis(components, np.abs(components).argmax(axis=1)[:, None], axis=1)
    return Distribution(
        mean=total / count / _FEATURE_GRID,
        components=np.ascontiguousarray(components * np.sign(peaks)),
        variances=variances[kept],
        identities=np.array(count),
    )


def _add(buffer: list[np.ndarray], total: np.ndarray, products: np.ndarray) -> None:
    """Adds rows to the sums and empties the buffer."""
    rows = np.stack(buffer)
    total += rows.sum(axis=0)
    products += rows.T @ rows
    buffer.clear()


def _eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, largest first, and eigenvectors as columns; with one thread, as LAPACK rounds
    differently with several."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(1, user_api="blas"):
        values, vectors = np.linalg.eigh(matrix)
    return values[::-1], vectors[:, ::-1]
