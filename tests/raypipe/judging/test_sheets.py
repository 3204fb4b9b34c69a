"""Sheets: who stands where, the same bytes, numbers that can be read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raypipe.config.judge import SheetConfig
from raypipe.images import decode
from raypipe.judging import sheets


def faces(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.full((112, 112, 3), rng.integers(40, 220, 3), np.uint8) for _ in range(count)]


@given(st.integers(0, 500), st.integers(2, 8), st.integers(1, 8), st.data())
def test_everyone_stands_on_a_sheet_and_anchors_on_all(
    count: int, columns: int, rows: int, data: st.DataObject
) -> None:
    anchors = data.draw(st.integers(1, columns * rows - 1))
    config = SheetConfig(columns=columns, rows=rows, anchors=anchors)
    central = data.draw(st.permutations(range(count)))
    found = sheets.layout(count, config, central)
    assert all(len(shown) <= config.capacity for shown, _ in found)
    assert sorted({k for shown, _ in found for k in shown}) == list(range(count))
    if count <= config.capacity:
        assert found == [(list(range(count)), set())]
        return
    for shown, known in found:
        assert shown[:anchors] == central[:anchors]
        assert known == set(central[:anchors])
    others = [k for shown, known in found for k in shown if k not in known]
    assert sorted(others) == sorted(central[anchors:])
    lengths = [len(shown) for shown, _ in found]
    assert max(lengths) - min(lengths) <= 1


def test_a_sheet_shows_each_face_above_its_number() -> None:
    config = SheetConfig()
    people = faces(8)
    (sheet,) = sheets.draw(people, config, range(8))
    assert sheet.labels == tuple(range(1, 9))
    assert sheet.anchors == frozenset()
    picture = decode(sheet.data, source="sheet")
    assert picture.shape == (2 * (85 + 18), 6 * 85, 3)
    assert sheets.size(8, config) == (6 * 85, 2 * (85 + 18))
    for place, face in enumerate(people):
        row, column = divmod(place, 6)
        y, x = row * 103, column * 85
        shown = picture[y : y + 85, x : x + 85]
        assert np.abs(shown[20:60, 20:60].mean(axis=(0, 1)) - face[0, 0]).max() < 3
        strip = picture[y + 86 : y + 102, x : x + 85].mean(axis=2)
        dark = strip < 100
        assert 20 < dark.sum() < 400  # three digits, black on white
        assert np.flatnonzero(dark.any(axis=1)).size >= 10  # pixels high
        assert strip[:, :10].min() > 200


def test_every_number_looks_different() -> None:
    (sheet,) = sheets.draw(faces(54), SheetConfig(), range(54))
    picture = decode(sheet.data, source="sheet")
    strips = []
    for place in range(54):
        row, column = divmod(place, 6)
        y, x = row * 103 + 87, column * 85
        strips.append(picture[y : y + 14, x + 20 : x + 65].astype(float).ravel())
    strips_ = np.array(strips)
    apart = np.abs(strips_[:, None] - strips_[None]).mean(axis=2)
    assert apart[~np.eye(54, dtype=bool)].min() > 4


def test_a_large_identity_has_several_sheets_and_the_same_bytes_every_time() -> None:
    config = SheetConfig(columns=4, rows=3, anchors=2)
    central = [7, 3, *(k for k in range(30) if k not in (3, 7))]
    found = sheets.draw(faces(30), config, central)
    assert len(found) == 3
    assert all(sheet.anchors == {4, 8} for sheet in found)
    assert all(sheet.labels[:2] == (8, 4) for sheet in found)
    assert [s.data for s in sheets.draw(faces(30), config, central)] == [s.data for s in found]


def test_anchors_leave_room() -> None:
    with pytest.raises(ValueError, match="6 of the 6 places of a sheet; choose fewer"):
        SheetConfig(columns=3, rows=2, anchors=6)
