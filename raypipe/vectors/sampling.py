"""New identity vectors, every pair under a cosine.

Candidates stand in a fixed order and each is taken unless it is too similar to one taken before.
The search is exact (`raypipe.search`), so who is taken depends neither on the size of a block nor
on threads, and asking for fewer gives the first of those that asking for more gives.
"""

import math
from dataclasses import dataclass

import numpy as np

from raypipe.errors import UserError
from raypipe.screening import greedy
from raypipe.search import nearest, pairs_above
from raypipe.templates import unit
from raypipe.vectors.distribution import DRAWN, Distribution, Gaussian

DRAWS = 3  # candidates drawn for a vector at most, on average: as published (Vec2Face, issue 11)
_FIRST = 256  # a block is compared pair by pair, so the first, where nothing thins it out, is small
_WINDOW = 4 * DRAWN  # candidates that the acceptance rate is measured on


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Vectors that were drawn and taken.

    Attributes:
        vectors: float32 (N, D), raw.
        places: int64 (N,), which candidate each was; rising.
        drawn: candidates that were looked at; the last was taken.
    """

    vectors: np.ndarray
    places: np.ndarray
    drawn: int

    @property
    def refused(self) -> int:
        """Candidates that were too similar to one taken before."""
        return self.drawn - len(self.places)


def sample(
    law: Distribution | Gaussian,
    count: int,
    *,
    ceiling: float,
    seed: int,
    against: np.ndarray | None = None,
    block: int = DRAWN,
) -> Sampled:
    """Draws identity vectors.

    Args:
        law: what to draw from.
        count: vectors wanted, at least 1.
        ceiling: cosine, in (-1, 1], that every pair stays under, compared as float32.
        seed: seed of the run.
        against: float (M, D), vectors to whom the new ones stay under the ceiling as well.
        block: candidates compared at once; changes time and memory only.

    Raises:
        UserError: as soon as it is clear that so many do not fit, with `DRAWS` candidates for each;
            it says how many do.
    """
    others = None if against is None else unit(against).astype(np.float32)
    vectors = np.empty((count, law.dimension), np.float32)
    units = np.empty_like(vectors)
    places = np.empty(count, np.int64)
    taken = drawn = 0
    rows, size = np.empty((0, law.dimension), np.float32), min(_FIRST, block)
    while taken < count:
        while len(rows) < size:
            rows = np.concatenate([rows, law.draw(seed, (drawn + len(rows)) // DRAWN)])
        candidates, rows = rows[:size], rows[size:]
        directions = unit(candidates).astype(np.float32)
        free = np.arange(size)
        for known in (others, units[:taken]):
            if known is not None and len(known):
                similarity, _ = nearest(directions[free], known, 1)
                free = free[similarity[:, 0] < ceiling]
        gone = greedy(*pairs_above(directions[free], ceiling))
        free = np.delete(free, list(gone))[: count - taken]
        new = slice(taken, taken + len(free))
        vectors[new], units[new], places[new] = candidates[free], directions[free], drawn + free
        before, taken, drawn = drawn, taken + len(free), drawn + size
        end = drawn if taken < count else int(places[-1])
        for check in range(before // DRAWN + 1, end // DRAWN + 1):
            _stop_where_hopeless(law, count, ceiling, places[:taken], check * DRAWN)
        size = min(drawn, block)
    return Sampled(vectors=vectors, places=places, drawn=int(places[-1]) + 1)


def _allowed(count: int) -> int:
    """Candidates that may be drawn for so many vectors."""
    return math.ceil(DRAWS * count / DRAWN) * DRAWN


def _stop_where_hopeless(
    law: Distribution | Gaussian, count: int, ceiling: float, places: np.ndarray, drawn: int
) -> None:
    """Looks at the vectors taken among the first `drawn` candidates, a multiple of DRAWN.

    The share of candidates that is taken falls, as those taken before are in the way. So with the
    share of now (its upper bound at three standard deviations), and as many draws as `most` vectors
    are allowed, no more than `most` are reached.
    """
    taken = int(np.searchsorted(places, drawn))
    first = max(drawn - _WINDOW, 0)
    recent = taken - int(np.searchsorted(places, first))
    share = (recent + 3 * math.sqrt(recent) + 9) / (drawn - first)
    most = math.inf
    if DRAWS * share < 1:
        most = (taken + share * (DRAWN - drawn)) / (1 - DRAWS * share)
    if most >= count and drawn < _allowed(count):
        return
    earlier = np.searchsorted(places, np.arange(DRAWN, drawn + 1, DRAWN)).tolist()
    fits = max((n for i, n in enumerate(earlier, 1) if i * DRAWN <= _allowed(n)), default=0)
    rate = f"one in {(drawn - first) / recent:,.0f}" if recent else "none"
    advice = f"Ask for {fits:,} or fewer, raise" if fits else "Raise"
    raise UserError(
        f"vectors: {count:,} vectors with every pair under a cosine of {ceiling:g} do not fit: of "
        f"{drawn:,} drawn {taken:,} were taken, {rate} of the last {drawn - first:,}. At least "
        f"{fits:,} fit, with {DRAWS} draws for each; two vectors of this distribution have a "
        f"cosine of {law.cosine:.2f} on average. {advice} the ceiling, or fit on a larger or more "
        "varied set"
    )
