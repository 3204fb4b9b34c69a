"""Gallery, leaks and pairs, of faces that are drawn here, and the photographs themselves."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from raypipe import orl
from raypipe.errors import UserError
from raypipe.formats.pair_rows import SCHEMA
from raypipe.images import decode


@pytest.fixture(scope="module")
def faces() -> dict[str, dict[int, np.ndarray]]:
    """24 people of 10 faces, two of which were not found."""
    rng = np.random.default_rng(0)

    def face() -> np.ndarray:
        return np.kron(rng.integers(0, 256, (7, 7, 3), np.uint8), np.ones((16, 16, 1), np.uint8))

    found = {f"s{p:02d}": {n: face() for n in range(1, 11)} for p in range(1, 25)}
    del found["s05"][2], found["s09"][7]
    return found


def test_the_photographs_are_all_there_in_order() -> None:
    photos = orl.photographs()
    assert [(p.person, p.number) for p in photos] == [
        (f"s{person:02d}", number) for person, number in product(range(1, 41), range(1, 11))
    ]
    image = decode(Path(photos[0].path).read_bytes(), source="")
    assert image.shape == (112, 92, 3)
    assert orl.digest(photos) == orl.digest(orl.photographs())
    assert orl.digest(photos) != orl.digest(photos[1:])


def test_a_folder_without_enough_people_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "1.pgm").write_bytes(b"P5 1 1 255 x")
    with pytest.raises(UserError, match="fewer than 20 people"):
        orl.photographs(str(tmp_path))


def test_leaked_people_share_no_photograph_with_the_gallery(faces, tmp_path: Path) -> None:
    leaked = orl.leaked_people(faces, 3, seed=1)
    assert len(set(leaked)) == 3
    assert leaked == orl.leaked_people(faces, 3, seed=1)
    leaks = orl.make_leaks(faces, leaked)
    written = orl.write_gallery(faces, leaked, str(tmp_path))
    files = sorted((tmp_path / "gallery" / "orl").rglob("*.png"))
    assert written == len(files)
    for person, leak in zip(leaked, leaks, strict=True):
        assert leak.gallery_identity == person
        shown = {path.name for path in files if path.parent.name == person}
        assert shown == {f"{n}.png" for n in faces[person] if n <= 3}
        others = [n for n in faces[person] if n > 3]
        assert len(leak.images) == 2 * len(others)
        first = decode(leak.images[0], source="").astype(float)
        mirror = decode(leak.images[len(others)], source="").astype(float)
        assert np.abs(first - faces[person][others[0]]).mean() < 12
        assert np.abs(mirror[:, ::-1] - faces[person][others[0]]).mean() < 12
    other = next(person for person in faces if person not in leaked)
    path = tmp_path / "gallery" / "orl" / other / "1.png"
    assert np.array_equal(decode(path.read_bytes(), source=""), faces[other][1])


def test_more_leaks_than_people_is_an_error(faces) -> None:
    with pytest.raises(UserError, match="25 leaks"):
        orl.leaked_people(faces, 25, seed=0)


def test_pairs_are_balanced_disjoint_and_true(faces) -> None:
    leaked = ["s03", "s11"]
    table = orl.make_pairs(faces, leaked, seed=5)
    rows = table.to_pylist()
    assert table.schema == SCHEMA
    folds = [row["fold"] for row in rows]
    assert folds == sorted(folds)
    people: dict[int, set[str]] = {}
    for row in rows:
        first, second = row["first_id"].split("/"), row["second_id"].split("/")
        assert (first[0] == second[0]) == row["same"]
        assert first != second
        assert np.array_equal(decode(row["first"], source=""), faces[first[0]][int(first[1])])
        people.setdefault(row["fold"], set()).update([first[0], second[0]])
    # The smallest fold has two people, one of whom lost a photograph, or both did.
    sizes = {
        sum(row["fold"] == fold and row["same"] is same for row in rows)
        for fold, same in product(range(10), (True, False))
    }
    assert len(sizes) == 1
    assert 72 <= sizes.pop() <= 90
    everybody = [person for group in people.values() for person in group]
    assert len(everybody) == len(set(everybody)) == 22
    assert not set(leaked) & set(everybody)
    keys = [frozenset([row["first_id"], row["second_id"]]) for row in rows]
    assert len(keys) == len(set(keys))
    assert table.equals(orl.make_pairs(faces, leaked, seed=5))
    assert not table.equals(orl.make_pairs(faces, leaked, seed=6))
