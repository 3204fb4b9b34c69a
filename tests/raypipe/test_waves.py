from collections.abc import Sequence

import numpy as np
import pytest

from raypipe.errors import UserError
from raypipe.waves import Drawn, pictures, plan

LIMITS = {"tries": 2, "limit": 3}


def drawn(tries: list[int], passed: list[int], admitted: int, failed: Sequence[int] = ()) -> Drawn:
    return Drawn(
        tries=np.array(tries),
        passed=np.array(passed, bool),
        failed=np.isin(np.arange(len(tries)), failed),
        admitted=admitted,
        reasons={"seed:no_face": 5, "screen:not_unique": 7},
    )


def test_first_wave_is_all_of_a_few_and_a_tenth_of_many() -> None:
    assert [plan(None, number=n, **LIMITS).new for n in (3, 64, 100, 640, 5000)] == [
        *(3, 64, 64, 64, 500),
    ]


@pytest.mark.parametrize(("missing", "rate"), [(10, 0.5), (300, 0.2), (40, 0.9), (7, 1.0)])
def test_a_wave_is_enough_almost_always_and_not_far_too_large(missing: int, rate: float) -> None:
    rng = np.random.default_rng(0)
    asked = pictures(missing, rate)
    enough = np.mean(rng.binomial(asked, rate, 20_000) >= missing)
    assert enough >= 0.96
    assert asked <= missing / rate + 3 * np.sqrt(missing * (1 - rate)) / rate + 1


def test_the_refused_come_first_then_new_people() -> None:
    # 4 of 8 pictures are admitted: 2 more people take 4 pictures and twice a deviation of 2.
    wave = plan(drawn([1, 2, 1, 1, 1, 2], [1, 0, 0, 1, 1, 1], 4), number=6, **LIMITS)
    assert (wave.again, wave.first, wave.new) == ([2], 6, 7)


def test_nobody_the_program_failed_on_is_drawn_again() -> None:
    found = drawn([1, 2, 0, 1, 1, 2], [1, 0, 0, 1, 1, 1], 4, failed=[2])
    assert plan(found, number=6, **LIMITS).again == []


def test_of_many_refused_only_as_many_as_needed_are_drawn_again() -> None:
    wave = plan(drawn([1] * 8, [1, 1, 1, 1, 0, 0, 0, 0], 4), number=5, tries=2, limit=100)
    assert (wave.again, wave.new) == ([4, 5, 6, 7], pictures(1, 0.5) - 4)
    wave = plan(drawn([1] * 40, [1] * 20 + [0] * 20, 20), number=21, tries=2, limit=100)
    assert (wave.again, wave.new) == (list(range(20, 20 + pictures(1, 0.5))), 0)


def test_nobody_beyond_the_limit() -> None:
    wave = plan(drawn([1] * 17, [1] * 17, 2), number=6, **LIMITS)
    assert (wave.again, wave.first, wave.new) == ([], 17, 1)


def test_says_why_nobody_became_a_new_person() -> None:
    with pytest.raises(UserError) as error:
        plan(drawn([1, 1], [0, 0], 0), number=6, **LIMITS)
    assert str(error.value) == (
        "seeds: none of 2 pictures became a new person (screen:not_unique 7, seed:no_face 5); look "
        "at some of them, and change the model, the prompts or seeds.gates"
    )


def test_says_that_there_are_not_so_many_different_people() -> None:
    with pytest.raises(UserError) as error:
        plan(drawn([1] * 18, [1] * 18, 2), number=6, **LIMITS)
    assert str(error.value) == (
        "seeds: 18 people were drawn and 2 of them are admitted, not 6 (screen:not_unique 7, "
        "seed:no_face 5); ask for fewer (seeds.number), draw more (seeds.limit), or take a model "
        "that draws more different people"
    )
