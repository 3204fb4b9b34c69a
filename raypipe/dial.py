"""The similarity that a generator's images have, set by its dial.

Every generator has one number that moves its images away from the person: the noise on the vector
(Vec2Face) or the wanted similarity that the network is told (CemiFace). What similarity comes out
depends on weights, embedder and set, so it is measured: a grid of values of the dial, painted of a
sample of the identities. The curve through the means, made monotone, is read backwards.
"""

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.isotonic import IsotonicRegression

from raypipe.errors import UserError
from raypipe.faceset import Embedded
from raypipe.seeding import torch_seed

POINTS = 11  # of the grid
_PEOPLE = 24  # that it is painted of


def sample(identities: Iterable[Embedded], sources: Collection[str], seed: int) -> list[str]:
    """Names of at most 24 identities to measure a curve on, the same ones in whatever order.

    Args:
        identities: of the whole set.
        sources: those that are expanded.
    """
    names = (
        item.identity_id for item in identities if item.rejected is None and item.source in sources
    )
    return heapq.nsmallest(
        _PEOPLE, names, key=lambda name: (torch_seed(seed, name, stream="dial"), name)
    )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What similarity a value of the dial gives, as JSON holds it.

    Attributes:
        dials: the grid, ascending.
        means: mean cosine to the identity's vector at each value.
        spreads: standard deviation of that cosine, over images of different identities.
        fitted: the means, made monotone.
    """

    dials: Sequence[float]
    means: Sequence[float]
    spreads: Sequence[float]
    fitted: Sequence[float]

    @property
    def reach(self) -> tuple[float, float]:
        """The lowest and the highest similarity that the dial sets."""
        return min(self.fitted), max(self.fitted)

    def dial(self, similarity: np.ndarray) -> np.ndarray:
        """The values that give some similarities (n,), float64 (n,); linear between those of the
        grid, and the end of the dial for what is out of reach."""
        step = 1 if self.fitted[0] <= self.fitted[-1] else -1
        return np.interp(similarity, self.fitted[::step], self.dials[::step])


def fit(dials: np.ndarray, measured: np.ndarray, *, rising: bool) -> Curve:
    """The curve through what was measured, by isotonic regression: the monotone curve with the
    least squared distance from the means.

    Args:
        dials: (G,), ascending.
        measured: (P, G), similarities of the images of P identities.
        rising: whether more of the dial gives more similarity.
    """
    means = measured.mean(axis=0)
    fitted = IsotonicRegression(increasing=rising).fit_transform(dials, means)
    return Curve(
        dials=dials.tolist(),
        means=means.tolist(),
        spreads=measured.std(axis=0).tolist(),
        fitted=fitted.tolist(),
    )


def check_band(band: tuple[float, float], curve: Curve, own: float, generator: str) -> None:
    """Refuses a band that no image would be in.

    Args:
        own: similarity that an image needs to pass for its identity.
        generator: what to call it.

    Raises:
        UserError: where the generator reaches none of the band, or no image in it would pass.
    """
    low, high = band
    if high <= own:
        raise UserError(
            f"expand.band: all of [{low:g}, {high:g}] is below {own:.3f}, the similarity that an "
            "image needs to pass; raise the band, or expand.false_match_rate"
        )
    lowest, highest = curve.reach
    if highest < max(low, own) or lowest > high:
        raise UserError(
            f"expand.band: the images of {generator} have a similarity of {lowest:.3f} to "
            f"{highest:.3f} on average, and those from {max(low, own):.3f} to {high:.3f} are "
            "wanted; move the band there"
        )


class Aim:
    """Sets the dial of one generator for the images of one identity.

    Some people come out more similar than others at the same value. The mean distance of what was
    measured on this identity from what the curve promised is taken off what is asked for next.

    Args:
        targets: (count,), the similarity wanted of each of the identity's images.
    """

    def __init__(self, curve: Curve, targets: np.ndarray) -> None:
        self._curve = curve
        self._targets = targets
        self._asked = targets[:0]
        self._missed: list[float] = []

    def dials(self, numbers: Sequence[int]) -> np.ndarray:
        """The values to paint n images with, float64 (n,)."""
        shift = float(np.mean(self._missed)) if self._missed else 0.0
        self._asked = np.clip(self._targets[list(numbers)] - shift, *self._curve.reach)
        return self._curve.dial(self._asked)

    def learn(self, measured: np.ndarray) -> None:
        """Notes the similarities (n,) of the images that the last values were for."""
        self._missed += (measured - self._asked).tolist()
