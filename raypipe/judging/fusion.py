"""Several experts, one verdict: whether an image shows somebody else than its identity.

Each expert gives an image the probability that it is an outlier, or nothing where it was not asked.
Experts are taken to err independently of each other. The probability of a calibrated one, which
knows the laws of the set, is evidence as it is. What another one says is evidence by how often it
says so of outliers and of other images, which is estimated from all that the experts say (Dawid
and Skene, "Maximum likelihood estimation of observer error-rates using the EM algorithm", 1979), at
four levels: surely not, rather not, rather, surely.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

_ROUNDS = 200
_SETTLED = 1e-9  # change of the rates below which no further round is made
_EDGES = (0.02, 0.5, 0.98)  # probabilities between the levels
# What is believed of an expert before it is heard, as images at each level: of 100 outliers and of
# 200 others. It decides where the verdicts cannot, and it keeps every rate from 0.
_OUTLIERS = np.array([5.0, 5.0, 30.0, 60.0])
_OTHERS = np.array([170.0, 20.0, 9.0, 1.0])
# No law holds in its far tails: a calibrated expert is wrong once in a thousand images.
_SUREST = 1e-3


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the experts say of outliers and of others.

    Attributes:
        outliers: share of the images that are outliers.
        calibrated: for each expert, whether its probabilities are taken as they are.
        of_outliers, of_others: float64 (E, 4), for each expert how often it says each level of
            them; rows sum to 1.
    """

    outliers: float
    calibrated: list[bool]
    of_outliers: np.ndarray
    of_others: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """float64 (E,), share of the outliers that each expert names."""
        return self.of_outliers[:, 2:].sum(axis=1)

    @property
    def accused(self) -> np.ndarray:
        """float64 (E,), share of the other images that each expert names."""
        return self.of_others[:, 2:].sum(axis=1)

    def dump(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "outliers": self.outliers,
            "calibrated": self.calibrated,
            "of_outliers": self.of_outliers.tolist(),
            "of_others": self.of_others.tolist(),
            "found": self.found.tolist(),
            "accused": self.accused.tolist(),
        }

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "Rates":
        """Reads what `dump` wrote."""
        return cls(
            outliers=values["outliers"],
            calibrated=values["calibrated"],
            of_outliers=np.array(values["of_outliers"]),
            of_others=np.array(values["of_others"]),
        )


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


def _levels(opinions: np.ndarray) -> np.ndarray:
    """float64 (N, E, 4), 1 at the level of each opinion; all 0 where an expert says nothing."""
    level = np.digitize(np.nan_to_num(opinions), _EDGES)
    return np.eye(4)[level] * ~np.isnan(opinions)[:, :, None]


def estimate(opinions: np.ndarray, calibrated: list[bool]) -> Rates:
    """The rates under which what the experts say is most likely, by expectation and maximisation.

    Args:
        opinions: float (N, E), as for `votes`.
        calibrated: for each expert, whether its probabilities are taken as they are.
    """
    said = _levels(opinions)
    heard = ~np.isnan(opinions).all(axis=1)
    belief = np.nanmean(np.where(heard[:, None], votes(opinions), 0.0), axis=1)
    rates: Rates | None = None
    for _ in range(_ROUNDS):
        new = Rates(
            outliers=float((belief[heard].sum() + 1) / (heard.sum() + 2)),
            calibrated=calibrated,
            of_outliers=_shares(said, belief, _OUTLIERS),
            of_others=_shares(said, 1 - belief, _OTHERS),
        )
        if rates is not None and _apart(new, rates) < _SETTLED:
            return new
        rates, belief = new, weigh(opinions, new)
    assert rates is not None
    return rates


def weigh(opinions: np.ndarray, rates: Rates) -> np.ndarray:
    """Probability that an image is an outlier, float64 (N,), by Bayes' rule from what is said.

    Args:
        opinions: float (N, E), as for `votes`.
    """
    prior = np.log(rates.outliers / (1 - rates.outliers))
    estimated = (_levels(opinions) * np.log(rates.of_outliers / rates.of_others)).sum(axis=2)
    sure = np.clip(opinions, _SUREST, 1 - _SUREST)
    measured = np.nan_to_num(np.log(sure / (1 - sure)) - prior)
    odds = prior + np.where(rates.calibrated, measured, estimated).sum(axis=1)
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


def _shares(said: np.ndarray, weight: np.ndarray, prior: np.ndarray) -> np.ndarray:
    counts = np.einsum("nel,n->el", said, weight) + prior
    return counts / counts.sum(axis=1, keepdims=True)


def _apart(one: Rates, other: Rates) -> float:
    return max(
        abs(one.outliers - other.outliers),
        float(np.abs(one.of_outliers - other.of_outliers).max()),
        float(np.abs(one.of_others - other.of_others).max()),
    )
