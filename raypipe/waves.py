"""How many pictures the seed job draws at once, and of whom.

Pictures are drawn in waves. What the earlier ones showed says how many pictures it takes until as
many identities as asked for are admitted, so nobody has to guess it, and little is drawn in vain.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raypipe.errors import UserError

_PROBE = 64  # pictures of a first wave at least; it shows the rate to a tenth
_SPARE = 2.0  # standard deviations: a wave is enough 98 times out of 100


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What all waves so far came to.

    Attributes:
        tries: int64 (N,), pictures of every identity, in the order of the identities.
        passed: bool (N,), whether the newest passed the gates.
        failed: bool (N,), whether the program failed on the row; no more is drawn of it.
        admitted: identities that screening lets in.
        reasons: why pictures and identities were refused, and how often.
    """

    tries: np.ndarray
    passed: np.ndarray
    failed: np.ndarray
    admitted: int
    reasons: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Wave:
    """Of whom pictures are drawn.

    Attributes:
        again: positions of identities whose pictures were refused.
        first: position of the first new identity.
        new: how many new identities there are.
    """

    again: list[int]
    first: int
    new: int


def pictures(missing: int, rate: float) -> int:
    """Pictures that bring in so many identities with a probability of 98 %.

    The number of draws until `missing` successes has the mean missing / rate and the deviation
    √(missing · (1 − rate)) / rate (negative binomial law).

    Args:
        missing: identities still to be admitted.
        rate: share of the pictures whose identity is admitted, in (0, 1].
    """
    return math.ceil((missing + _SPARE * math.sqrt(missing * (1 - rate))) / rate)


def plan(drawn: Drawn | None, *, number: int, tries: int, limit: int) -> Wave:
    """The next wave.

    Those who were refused come first, as long as they have tries left; new people after them.

    Args:
        drawn: what the earlier waves came to; none before the first.
        number: identities asked for.
        tries: pictures of an identity at most.
        limit: identities drawn for each one asked for at most.

    Raises:
        UserError: where nothing was admitted so far, or nobody may be drawn any more.
    """
    if drawn is None:
        return Wave(again=[], first=0, new=min(number, max(_PROBE, math.ceil(number / 10))))
    total = int(drawn.tries.sum())
    reasons = ", ".join(
        f"{name} {count:,}"
        for name, count in sorted(drawn.reasons.items(), key=lambda item: (-item[1], item[0]))
    )
    if drawn.admitted == 0:
        raise UserError(
            f"seeds: none of {total:,} pictures became a new person ({reasons}); look at some of "
            "them, and change the model, the prompts or seeds.gates"
        )
    wanted = pictures(number - drawn.admitted, min(1.0, drawn.admitted / total))
    open_ = np.flatnonzero(~(drawn.passed | drawn.failed) & (drawn.tries < tries))
    again = open_[:wanted].tolist()
    people = len(drawn.tries)
    new = min(wanted - len(again), limit * number - people)
    if not again and new <= 0:
        raise UserError(
            f"seeds: {people:,} people were drawn and {drawn.admitted:,} of them are admitted, not "
            f"{number:,} ({reasons}); ask for fewer (seeds.number), draw more (seeds.limit), or "
            "take a model that draws more different people"
        )
    return Wave(again=again, first=people, new=max(new, 0))
