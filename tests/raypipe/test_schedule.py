import numpy as np
import pytest
from pydantic import ValidationError

from raypipe.config.curriculum import CurriculumConfig
from raypipe.schedule import (
    Schedule,
    Steps,
    add_fingerprints,
    admitted,
    epoch_fingerprint,
    fingerprint,
)

IMAGES, GROUP = 1000, 50
PHASES = np.random.default_rng(0).integers(0, 3, IMAGES)
KINDS = ["sequential", "paced", "mixed"]


def schedule(epochs=4, seed=0, phases=PHASES, **settings):
    config = CurriculumConfig(**settings)
    groups = np.arange(0, len(phases), GROUP)
    return Schedule(config, phases, groups, epochs=epochs, seed=seed)


def test_sequential_goes_through_the_phases_and_shuffles_inside():
    order = schedule()
    first, second = order.epoch(0), order.epoch(1)
    for epoch in (first, second):
        assert np.array_equal(np.sort(epoch), np.arange(IMAGES))
        assert np.all(np.diff(PHASES[epoch]) >= 0)
    assert not np.array_equal(first, second)
    # A shuffle, not a shift: neighbours are others.
    pairs = {tuple(p) for p in zip(first[:-1].tolist(), first[1:].tolist(), strict=True)}
    again = [p in pairs for p in zip(second[:-1].tolist(), second[1:].tolist(), strict=True)]
    assert np.mean(again) < 0.02


def test_mixed_takes_every_phase_from_the_first_batch_on():
    epoch = schedule(schedule="mixed").epoch(0)
    assert np.array_equal(np.sort(epoch), np.arange(IMAGES))
    counts = np.bincount(PHASES[epoch[:300]], minlength=3)
    assert counts.min() > 60


def test_paced_admits_harder_phases_and_keeps_what_came_in():
    order = schedule(epochs=8, schedule="paced", start=0.3, full_at=0.5)
    lengths = [order.length(epoch) for epoch in range(8)]
    assert lengths[:5] == pytest.approx([300, 475, 650, 825, 1000], abs=1)
    assert lengths[5:] == [IMAGES] * 3
    before: set[int] = set()
    for epoch in range(5):
        now = set(order.epoch(epoch).tolist())
        assert len(now) == order.length(epoch)
        assert before <= now
        before = now
    first = order.epoch(0)
    assert set(PHASES[first].tolist()) == {0}


def test_pacing_follows_the_published_polynomial():
    config = CurriculumConfig(schedule="paced", start=0.2, full_at=0.5, power=2.0)
    shares = admitted(config, [100, 100], 10)
    # 200 · (0.2 + 0.8 (3 / 5)²) = 97.6 in epoch 3, all from epoch 5 on.
    assert shares[3] == pytest.approx([0.976, 0])
    assert shares[5].tolist() == [1, 1]


def test_an_earlier_phase_fades_when_the_next_is_in():
    config = CurriculumConfig(schedule="paced", start=0.5, full_at=0.5, fade=0.4)
    shares = admitted(config, [100, 100], 6)
    assert shares[:4, 1].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert shares[:, 0].tolist() == pytest.approx([1, 1, 1, 1, 0.6, 0.36])
    order = schedule(
        epochs=6, phases=np.arange(200) // 100, schedule="paced", start=0.5, full_at=0.5, fade=0.4
    )
    five, six = (order.epoch(epoch) for epoch in (4, 5))
    assert [np.count_nonzero(epoch < 100) for epoch in (five, six)] == [60, 36]
    # What faded may come again.
    assert not set(six[six < 100].tolist()) <= set(five[five < 100].tolist())


def test_a_large_phase_is_shuffled_by_row_groups_and_in_windows():
    order = schedule(window=130, phases=np.zeros(IMAGES, int))
    windows = order.windows(0)
    assert [len(window) for window in windows] == [130] * 7 + [90]
    assert np.array_equal(np.sort(np.concatenate(windows)), np.arange(IMAGES))
    for window in windows:
        assert len(set((window // GROUP).tolist())) <= 4  # so many row groups are read for it
        assert not np.all(np.diff(window) > 0)
    assert not np.array_equal(np.sort(windows[0]), np.sort(order.windows(1)[0]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_depends_on_the_seed_and_on_nothing_else(kind):
    one, again = schedule(schedule=kind), schedule(schedule=kind)
    assert np.array_equal(one.epoch(2), again.epoch(2))
    assert not np.array_equal(one.epoch(2), schedule(schedule=kind, seed=1).epoch(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_workers_share_an_epoch_and_the_last_step_is_filled_up(kind, workers):
    order = schedule(schedule=kind, window=130)
    steps = Steps.of(48, 4, workers)
    assert steps.total == 48
    windows = order.windows(1)
    whole = np.concatenate(windows)
    shares = [np.concatenate(steps.of_worker(windows, rank)) for rank in range(workers)]
    dealt = np.stack([share.reshape(-1, 4) for share in shares], axis=1).reshape(-1)
    assert np.array_equal(dealt[: len(whole)], whole)
    assert np.array_equal(dealt[len(whole) :], whole[: len(dealt) - len(whole)])
    assert len(dealt) == steps.count(len(whole)) * 48


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 3), (3, 1)])
def test_another_number_of_workers_goes_on_where_the_first_stopped(before, after):
    windows = schedule(window=130).windows(0)
    done = 5 * Steps.of(48, 4, before).total
    steps = Steps.of(48, 4, after)
    shares = [np.concatenate(steps.of_worker(windows, rank, done)) for rank in range(after)]
    dealt = np.stack([share.reshape(-1, 4) for share in shares], axis=1).reshape(-1)
    whole = np.concatenate(windows)
    assert np.array_equal(dealt[: len(whole) - done], whole[done:])


def test_a_step_is_as_near_to_the_batch_as_workers_can_share_it():
    assert Steps.of(512, 128, 1) == Steps(micro=128, workers=1, accumulate=4)
    assert Steps.of(512, 128, 4) == Steps(micro=128, workers=4, accumulate=1)
    assert Steps.of(512, 128, 3).total == 384
    assert Steps.of(512, 128, 8) == Steps(micro=64, workers=8, accumulate=1)
    assert Steps.of(4, 128, 8) == Steps(micro=2, workers=8, accumulate=1)
    assert Steps.of(16, 128, 1) == Steps(micro=16, workers=1, accumulate=1)


def test_a_set_smaller_than_a_step_is_repeated_to_fill_it():
    order = schedule(phases=np.zeros(3, int))
    steps = Steps.of(8, 8, 1)
    (mine,) = [np.concatenate(steps.of_worker(order.windows(0), 0))]
    assert np.array_equal(mine, np.resize(order.epoch(0), 8))


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprints_add_up_whoever_took_what(kind):
    order = schedule(schedule=kind)
    of_one = epoch_fingerprint(order, Steps.of(48, 4, 1), 1)
    assert epoch_fingerprint(order, Steps.of(48, 4, 3), 1) == of_one
    assert epoch_fingerprint(order, Steps.of(48, 4, 1), 2) != of_one
    swapped = np.array([2, 1])
    assert fingerprint(0, swapped) != fingerprint(0, swapped[::-1])
    assert fingerprint(0, swapped) != fingerprint(4, swapped)
    assert 0 <= add_fingerprints(2**62 - 1, 2**62 - 1) < 2**62


def test_settings_of_another_schedule_are_refused():
    with pytest.raises(ValidationError, match="fade: means nothing to schedule 'mixed'"):
        CurriculumConfig(schedule="mixed", fade=0.5)
    with pytest.raises(ValidationError, match="levels: phases by source are those of the set"):
        CurriculumConfig(levels=5)
