"""Where to cut: similarities of one person and of two people, and the fewest errors.

Own similarities (an image and the centre of the other images of its folder) are a mixture: a share
p of strangers, which score as impostors do (an image and the centre of another identity), and
genuine images. p is Storey's estimate ("A direct approach to false discovery rates", 2002): the
share of own similarities below a level, over the share of impostors below it. What is left after
taking p impostors away is genuine. Both are close to normal after Fisher's z-transform (measured
with dlib's network on generated faces: the lowest of 1,080 genuine z lies 2.5 to 4.4 standard
deviations under the middle, where a normal law puts it at 3.2), so each is described by its median
and by the 5 % quantile on the side of the other, and the threshold is where removing makes the
fewest errors for that p. With p near 0 it moves far out: a clean folder loses nothing.
"""

from statistics import NormalDist

import numpy as np

BINS = 2000
EDGES = np.linspace(-1.0, 1.0, BINS + 1)


def histogram(similarities: np.ndarray) -> np.ndarray:
    """int64 (BINS,) counts over [-1, 1]; what lies outside goes to the last bins."""
    places = np.floor((similarities.ravel() + 1) * (BINS / 2)).astype(np.int64)
    return np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)


def _quantile(cumulative: np.ndarray, level: float) -> float:
    """Fisher's z of the similarity below which a share of a (rising) distribution function lies."""
    return float(np.arctanh(np.clip(EDGES[np.searchsorted(cumulative, level)], -0.9995, 0.9995)))


def _law(cumulative: np.ndarray, towards: float) -> NormalDist:
    """Normal law of Fisher's z, from the median and the quantile on the side that is decided on.

    Args:
        cumulative: float (BINS + 1,), distribution function at EDGES.
        towards: the quantile, 0.05 for genuine and 0.95 for impostor similarities.
    """
    middle = _quantile(cumulative, 0.5)
    spread = (_quantile(cumulative, towards) - middle) / NormalDist().inv_cdf(towards)
    return NormalDist(middle, max(spread, 0.02))


def decision(genuine: NormalDist, impostor: NormalDist, prior: float) -> float:
    """The similarity with the fewest errors, between the two middles.

    Args:
        genuine, impostor: laws of Fisher's z of the similarity.
        prior: share of genuine comparisons, in (0, 1).
    """
    z = np.linspace(impostor.mean, max(genuine.mean, impostor.mean + 1e-6), 2001)
    errors = [prior * genuine.cdf(v) + (1 - prior) * impostor.cdf(2 * impostor.mean - v) for v in z]
    return float(np.tanh(z[int(np.argmin(errors))]))


def mixture(own: np.ndarray, impostor: np.ndarray) -> tuple[float, float]:
    """Splits own similarities into genuine ones and strangers.

    Args:
        own: int (BINS,) histogram of every image's similarity to its own identity's centre.
        impostor: int (BINS,) histogram of similarities to other identities' centres.

    Returns:
        The threshold with the fewest expected errors, and the estimated share of strangers.
    """
    count = own.sum()
    mixed = np.concatenate([[0], own.cumsum()]) / count
    null = np.concatenate([[0], impostor.cumsum()]) / impostor.sum()
    levels = np.searchsorted(null, [0.5, 0.7, 0.9])
    share = float(min(*(mixed[levels] / null[levels]), 0.9))
    genuine = np.maximum.accumulate((mixed - share * null) / (1 - share))
    prior = max(share, 0.5 / count)  # with exactly 0 any threshold below all images would do
    return decision(_law(genuine, 0.05), _law(null, 0.95), 1 - prior), share


def duplicate_limit(genuine: np.ndarray, impostor: np.ndarray, population: int) -> float:
    """Cosine of two centres from which two identities are one person.

    The decision with the fewest errors when one identity in a hundred has a double somewhere in the
    population: the more identities are compared, the more similar two of them have to be.

    Args:
        genuine: int (BINS,) histogram of cosines of the centres of two halves of one identity.
        impostor: int (BINS,) histogram of cosines of the centres of two identities.
        population: identities that are compared with each other.
    """
    return decision(*laws(genuine, impostor), 0.01 / population)


def laws(
    genuine: np.ndarray, impostor: np.ndarray, tail: float = 0.05
) -> tuple[NormalDist, NormalDist]:
    """Laws of Fisher's z of genuine and of impostor similarities, from their histograms.

    Args:
        tail: share of each that lies beyond the quantile which, with the median, makes its law.
    """
    one, two = (
        _law(np.concatenate([[0], counts.cumsum()]) / max(counts.sum(), 1), level)
        for counts, level in ((genuine, tail), (impostor, 1 - tail))
    )
    return one, two
