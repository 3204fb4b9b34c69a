"""Whose pictures are drawn, what came of them, and who is not needed."""

import pytest

from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image, SeedEvidence, Try
from raypipe.prompts import draw, load_grammar
from raypipe.references import new_identity, newest, outcome, settle


def person(position: int, *tries: str | None) -> Identity:
    return Identity(
        identity_id=f"seed/{position:07d}",
        index=100 + position,
        source="seed",
        images=[
            Image(image_id=f"seed-{n:02d}", data=b"x", source="diffusion", rejected=reason)
            for n, reason in enumerate(tries)
        ],
        seed=SeedEvidence(
            prompt="p",
            negative="",
            attributes={},
            tries=[Try(faces=1, rejected=reason) for reason in tries],
        ),
    )


FIRST = [person(0, None), person(1, "seed:small"), person(2, "seed:no_face"), person(3, None)]
SECOND = [person(2, "seed:no_face", None), person(4, "seed:blurred"), person(5, None)]


@pytest.fixture
def waves(tmp_path) -> list[FaceSet]:
    for name, rows in (("0", FIRST), ("1", SECOND)):
        write_rows(str(tmp_path / name), "a.parquet", rows)
    return [FaceSet(str(tmp_path / name)) for name in ("0", "1")]


def test_a_later_wave_takes_the_place_of_an_earlier_one(waves: list[FaceSet]) -> None:
    rows = {row.identity_id: row for row in newest(waves)}
    assert len(rows) == 6
    assert len(rows["seed/0000002"].images) == 2
    refused = {"screen:not_unique": 1}
    drawn = outcome(waves, {"admitted": 3, "refused": refused, "last": None})
    assert drawn.tries.tolist() == [1, 1, 2, 1, 1, 1]
    assert drawn.passed.tolist() == [True, False, True, True, False, True]
    assert drawn.admitted == 3
    assert drawn.reasons == {"seed:small": 1, "seed:no_face": 1, "seed:blurred": 1, **refused}


def test_a_row_that_the_program_failed_on_stays_so(tmp_path) -> None:
    broken, other = person(0), person(1, None)
    broken.rejected = "seed:failed"
    write_rows(str(tmp_path), "a.parquet", [broken, other])
    sets = [FaceSet(str(tmp_path))]
    drawn = outcome(sets, {"admitted": 1, "refused": {}, "last": None})
    assert drawn.passed.tolist() == [False, True] and drawn.failed.tolist() == [True, False]
    assert drawn.reasons == {"seed:failed": 1}
    settled = [row.rejected for row in settle(newest(sets), last=101, tries=1)]
    assert settled == ["seed:failed", None]


def test_who_is_not_needed_and_who_failed_is_said(waves: list[FaceSet]) -> None:
    rows = {row.index - 100: row.rejected for row in settle(newest(waves), last=102, tries=1)}
    used_up, surplus = "seed:tries_used_up", "seed:surplus"
    assert rows == {0: None, 1: used_up, 2: None, 3: surplus, 4: used_up, 5: surplus}
    rows = {row.index - 100: row.rejected for row in settle(newest(waves), last=105, tries=2)}
    assert rows == {0: None, 1: surplus, 2: None, 3: None, 4: surplus, 5: None}


def test_a_person_is_its_position_and_follows_the_others() -> None:
    grammar = load_grammar("portraits")
    made = new_identity(grammar, 7, 12, before=300)
    assert (made.identity_id, made.index, made.source) == ("seed/0000012", 312, "seed")
    assert made.images == []
    assert made.seed.attributes == draw(grammar, 7, 12).attributes
