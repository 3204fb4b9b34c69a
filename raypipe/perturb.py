"""Variations of an identity vector, each for one image of the identity.

Everything is drawn from (seed, identity, image, attempt): a vector is the same whatever else is
asked for with it, and an image that was refused is drawn again with the next attempt.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from raypipe import seeding
from raypipe.shares import deal
from raypipe.templates import unit

# Published: image_generation.py of github.com/HaiyuWu/Vec2Face, for features with a standard
# deviation of about 1 in every component. There the shares hold for all identities together.
SIGMAS = (0.3, 0.5, 0.7)
SHARES = (Fraction(40, 100), Fraction(40, 100), Fraction(20, 100))
REFERENCE_SIGMA = 0.2  # published: noise around the vector of a reference image
_ROUNDING = 1e-6  # of a cosine, by float32 vectors


def sigmas(count: int, *, seed: int, identity_id: str) -> np.ndarray:
    """The sigma of every image of an identity with `count` images, float64 (count,)."""
    return deal(SIGMAS, SHARES, count, seed=seed, identity_id=identity_id, stream="perturb:sigmas")


def mixture(
    vector: np.ndarray,
    images: Sequence[int],
    *,
    count: int,
    seed: int,
    identity_id: str,
    scale: float = 1.0,
    attempt: int = 0,
) -> np.ndarray:
    """The published mixture: N(0, σ) is added, σ 0.3 for 40 % of the identity's images, 0.5 for
    40 % and 0.7 for 20 %, and the length restored.

    Args:
        vector: float32 (D,), raw.
        images: indexes of n images, in [0, count).
        count: images of the identity; the shares are exact for them.
        scale: what σ is measured in: 1 as published, `Distribution.spread` for other networks.
        attempt: how often the image was drawn before.

    Returns:
        float32 (n, D), in the order of `images`.
    """
    spreads = sigmas(count, seed=seed, identity_id=identity_id)[list(images)]
    return noisy(
        vector, images, spreads * scale, seed=seed, identity_id=identity_id, attempt=attempt
    )


def reference(
    vector: np.ndarray,
    images: Sequence[int],
    *,
    seed: int,
    identity_id: str,
    scale: float = 1.0,
    attempt: int = 0,
) -> np.ndarray:
    """The published mode for the vector of a reference image: N(0, 0.2) is added and the length
    restored. Arguments and result as for `mixture`."""
    spreads = np.full(len(images), REFERENCE_SIGMA * scale)
    return noisy(vector, images, spreads, seed=seed, identity_id=identity_id, attempt=attempt)


def directed(
    vector: np.ndarray,
    images: Sequence[int],
    *,
    lowest: float,
    nearest: float,
    seed: int,
    identity_id: str,
    attempt: int = 0,
) -> np.ndarray:
    """Turns the vector by an angle whose cosine is uniform in [bound, 1], in a random direction.

    The bound is `lowest`, or the cosine of half the angle to the nearest other identity where that
    is larger, so that no variation is nearer to anybody else (github.com/fdbtrs/IDperturb).

    Args:
        vector: float32 (D,), raw, D at least 2.
        images: indexes of n images.
        lowest: cosine in [0, 1]; published: 0.4 to 0.9, best 0.6.
        nearest: cosine of the vector and the nearest other identity's, or an upper bound of it.
        attempt: how often the image was drawn before.

    Returns:
        float32 (n, D), as long as the vector, in the order of `images`.
    """
    bisector = np.sqrt((1 + min(max(nearest, -1.0), 1.0)) / 2) + _ROUNDING
    bound = min(max(lowest, float(bisector)), 1.0)
    direction = unit(vector)
    result = np.empty((len(images), len(vector)), np.float32)
    for row, image in enumerate(images):
        rng = seeding.generator(seed, identity_id, image, f"perturb:{attempt}")
        cosine = bound + (1 - bound) * rng.random()
        noise = rng.standard_normal(len(vector))
        aside = unit(noise - (noise * direction).sum() * direction)
        turned = cosine * direction + np.sqrt(1 - cosine**2) * aside
        result[row] = turned * np.linalg.norm(vector.astype(np.float64))
    return result


def noisy(
    vector: np.ndarray,
    images: Sequence[int],
    spreads: np.ndarray,
    *,
    seed: int,
    identity_id: str,
    attempt: int = 0,
) -> np.ndarray:
    """N(0, σ) is added with a σ for each image, and the length restored.

    Args:
        vector: float32 (D,), raw.
        images: indexes of n images.
        spreads: (n,), their σ, in the unit of the vector's components, from 0.
        attempt: how often the image was drawn before.

    Returns:
        float32 (n, D), in the order of `images`.
    """
    length = np.linalg.norm(vector.astype(np.float64))
    noise = [
        seeding.generator(seed, identity_id, image, f"perturb:{attempt}").standard_normal(
            len(vector)
        )
        for image in images
    ]
    moved = vector + spreads[:, None] * np.reshape(noise, (len(images), len(vector)))
    return (unit(moved) * length).astype(np.float32)
