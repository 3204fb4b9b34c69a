"""Records dealt to files and brought back in the order of labels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raypipe.formats import Damage, DamagedError, Record, Survey
from raypipe.formats.by_label import by_label


def made(images: int) -> tuple[list[Record], Survey]:
    labels = np.random.default_rng(0).integers(0, 90, images)
    feature = np.arange(4, dtype=np.float32)
    records = [
        Record(b"%d" % i, int(label), f"person {label}", str(i), feature + i)
        for i, label in enumerate(labels)
    ]
    return records, Survey(images, *np.unique(labels, return_counts=True), False)


def same(found: list[Record], wanted: list[Record]) -> bool:
    return all(
        a[:4] == b[:4] and np.array_equal(a.feature, b.feature)
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize("images", [1, 500, 60_000])  # the last goes to three files
def test_labels_rise_and_the_order_within_one_stays(tmp_path: Path, images: int) -> None:
    records, survey = made(images)
    found = list(by_label(records, survey, str(tmp_path)))
    assert same(found, sorted(records, key=lambda record: record.label))
    assert list(tmp_path.iterdir()) == []


def test_damage_is_told_after_all_that_is_intact(tmp_path: Path) -> None:
    records, survey = made(300)

    def damaged() -> Iterator[Record]:
        yield from records
        raise DamagedError([Damage("a.rec", 8, "cut off")], 1)

    found: list[Record] = []
    with pytest.raises(DamagedError, match="byte 8: cut off"):
        found.extend(by_label(damaged(), survey, str(tmp_path)))
    assert same(found, sorted(records, key=lambda record: record.label))
