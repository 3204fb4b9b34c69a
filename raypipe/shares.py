"""How an identity's images are shared out: exactly by identity, and in an order drawn for it.

What is drawn depends on (seed, identity) alone, so it is the same at every attempt.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from raypipe import seeding


def allot(count: int, shares: Sequence[Fraction]) -> list[int]:
    """How many of `count` images fall to each share, by the largest remainders.

    They sum to count; among equal remainders the earlier share comes first.

    Args:
        shares: that sum to 1.
    """
    exact = [count * share for share in shares]
    whole = [int(part) for part in exact]
    order = sorted(range(len(shares)), key=lambda i: whole[i] - exact[i])
    for i in order[: count - sum(whole)]:
        whole[i] += 1
    return whole


def deal(
    values: Sequence[float],
    shares: Sequence[Fraction],
    count: int,
    *,
    seed: int,
    identity_id: str,
    stream: str,
) -> np.ndarray:
    """The value of every image of an identity with `count` images, (count,).

    Args:
        values: one for each share.
        stream: what the values are (`seeding.generator`).
    """
    dealt = np.repeat(values, allot(count, shares))
    return seeding.generator(seed, identity_id, stream=stream).permutation(dealt)


def stratify(
    lowest: float, highest: float, count: int, *, seed: int, identity_id: str, stream: str
) -> np.ndarray:
    """A number in [lowest, highest) for every image of an identity, float64 (count,): one uniform
    in each of `count` slices of equal width, in an order drawn for the identity."""
    rng = seeding.generator(seed, identity_id, stream=stream)
    places = (rng.permutation(count) + rng.random(count)) / max(count, 1)
    return lowest + (highest - lowest) * places
