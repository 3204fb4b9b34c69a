"""How images are shared out: exact counts, even targets, an order of each identity's own."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.shares import allot, deal, stratify


@given(st.integers(0, 500), st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_counts_are_the_nearest_whole_ones(count: int, parts: list[int]) -> None:
    shares = [Fraction(part, sum(parts)) for part in parts]
    given = allot(count, shares)
    assert sum(given) == count
    assert all(abs(number - count * share) < 1 for number, share in zip(given, shares, strict=True))
    dealt = deal(range(len(parts)), shares, count, seed=1, identity_id="a", stream="x")
    assert [Counter(dealt.tolist())[place] for place in range(len(parts))] == given


def test_the_earlier_of_equal_remainders_comes_first() -> None:
    third = [Fraction(1, 3)] * 3
    assert [allot(count, third) for count in (1, 2, 4)] == [[1, 0, 0], [1, 1, 0], [2, 1, 1]]


@given(st.integers(0, 200), st.floats(-1, 0.9), st.floats(0.01, 0.1))
def test_one_target_falls_into_every_slice(count: int, low: float, width: float) -> None:
    targets = stratify(low, low + width, count, seed=1, identity_id="a", stream="x")
    slices = np.sort((targets - low) / width * count)
    assert np.abs(slices - (np.arange(count) + 0.5)).max(initial=0) <= 0.5 + 1e-6


def test_each_identity_has_an_order_of_its_own() -> None:
    one, other = (
        stratify(0, 1, 50, seed=1, identity_id=name, stream="x").tolist() for name in "ab"
    )
    assert one != other and one != sorted(one)
    assert stratify(0, 1, 50, seed=1, identity_id="a", stream="x").tolist() == one
    assert np.corrcoef(one, other)[0, 1] == pytest.approx(0, abs=0.4)
