"""Several experts, one verdict: whether an image shows somebody else than its identity.

Each expert gives an image the probability that it is an outlier, or nothing where it was not asked.
Calibrated weights follow Dawid and Skene ("Maximum likelihood estimation of observer error-rates
using the EM algorithm", 1979) for two classes: how often each expert misses an outlier and how
often it accuses the right person are estimated from the verdicts alone, under the assumption that
experts err independently of each other.
"""

from dataclasses import dataclass

import numpy as np

_ROUNDS = 200
_SETTLED = 1e-9  # change of the rates below which no further round is made
# What is believed of an expert before its votes are seen, as images (named, not named): that it
# names nine outliers in ten, and one of twenty others. It decides where the votes cannot, with one
# or two experts, and it keeps every rate from 0 and 1.
_OUTLIERS, _OTHERS = (90.0, 10.0), (10.0, 190.0)


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How the experts err; arrays have one place for each.

    Attributes:
        outliers: share of the images that are outliers.
        found: float64 (E,), share of the outliers that the expert names.
        accused: float64 (E,), share of the other images that it names.
    """

    outliers: float
    found: np.ndarray
    accused: np.ndarray


def votes(opinions: np.ndarray) -> np.ndarray:
    """1.0 where an expert calls an image an outlier, 0.0 where not, NaN where it says nothing.

    Args:
        opinions: float (N, E) probabilities in [0, 1], NaN where an expert says nothing.
    """
    return np.where(np.isnan(opinions), np.nan, opinions >= 0.5)


def by_rule(opinions: np.ndarray, rule: str) -> np.ndarray:
    """Outliers by a rule, over the experts that say something of an image.

    Args:
        opinions: float (N, E), as for `votes`.
        rule: "any", "all" or "majority"; half of the experts is no majority.

    Returns:
        bool (N,); False where no expert says anything.
    """
    cast = votes(opinions)
    said = (~np.isnan(cast)).sum(axis=1)
    named = np.nansum(cast, axis=1)
    if rule == "any":
        return named > 0
    if rule == "all":
        return (said > 0) & (named == said)
    return 2 * named > said


def estimate(cast: np.ndarray) -> Rates:
    """The rates under which the votes are most likely, by expectation and maximisation.

    Args:
        cast: (N, E), as `votes` returns them.
    """
    known = ~np.isnan(cast)
    named = np.nan_to_num(cast)
    belief = named.sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    rates: Rates | None = None
    for _ in range(_ROUNDS):
        found = _share(named, belief, known, _OUTLIERS)
        accused = _share(named, 1 - belief, known, _OTHERS)
        heard = known.any(axis=1)
        outliers = float((belief[heard].sum() + 1) / (heard.sum() + 2))
        new = Rates(outliers=outliers, found=found, accused=accused)
        if rates is not None and _apart(new, rates) < _SETTLED:
            return new
        rates, belief = new, weigh(cast, new)
    assert rates is not None
    return rates


def weigh(opinions: np.ndarray, rates: Rates) -> np.ndarray:
    """Probability that an image is an outlier, float64 (N,), by Bayes' rule from the votes.

    Args:
        opinions: float (N, E), as for `votes`.
    """
    cast = votes(opinions)
    for_it = np.log(rates.found / rates.accused)
    against = np.log((1 - rates.found) / (1 - rates.accused))
    evidence = np.where(np.isnan(cast), 0.0, np.where(cast == 1, for_it, against)).sum(axis=1)
    odds = np.log(rates.outliers / (1 - rates.outliers)) + evidence
    return 1 / (1 + np.exp(-np.clip(odds, -500, 500)))


def kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa of two experts' votes, over the images of which both say something.

    NaN where there are none; 1 where both say the same of every image.
    """
    both = ~np.isnan(first) & ~np.isnan(second)
    if not both.any():
        return float("nan")
    a, b = first[both], second[both]
    agree = float((a == b).mean())
    chance = float(a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean()))
    return 1.0 if chance == 1.0 else (agree - chance) / (1 - chance)


def _share(
    named: np.ndarray, weight: np.ndarray, known: np.ndarray, prior: tuple[float, float]
) -> np.ndarray:
    weights = weight[:, None] * known
    return ((weights * named).sum(axis=0) + prior[0]) / (weights.sum(axis=0) + sum(prior))


def _apart(one: Rates, other: Rates) -> float:
    return max(
        abs(one.outliers - other.outliers),
        float(np.abs(one.found - other.found).max()),
        float(np.abs(one.accused - other.accused).max()),
    )
