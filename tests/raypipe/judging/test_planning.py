"""What is planned, against what the drawn questions come to."""

from pathlib import Path

import numpy as np
import pytest

from face_sets import finish_set
from raypipe.config import Build, parse
from raypipe.errors import UserError
from raypipe.faceset import write_rows
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg
from raypipe.judging import planning
from raypipe.judging.client import expected_tokens
from raypipe.judging.question import Question
from raypipe.judging.sheets import draw
from raypipe.judging.tokens import price

SIZES = (3, 12, 54, 55, 120, 1)


def configured(root: Path, **judge: object) -> Build:
    local = {"kind": "openai", "base_url": "http://127.0.0.1/v1", "endpoints": ["127.0.0.1"]}
    values = {
        "workspace": str(root / "w"),
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": str(root / "base")}]},
        "clean": {"rule": "share"},
        "judge": {**local, **judge},
    }
    return parse(values, "test")


@pytest.fixture
def face() -> bytes:
    return encode_jpeg(np.full((112, 112, 3), 90, np.uint8))


@pytest.fixture
def cleaned(tmp_path: Path, face: bytes) -> Path:
    people = []
    for index, size in enumerate(SIZES):
        images = [Image(image_id=f"{k}", data=face, source="made") for k in range(size)]
        images[0].rejected = "clean:other_person"
        people.append(Identity(identity_id=f"p{index}", index=index, source="base", images=images))
    people[1].rejected = "clean:inconsistent"
    root = str(tmp_path / "w" / "clean")
    write_rows(root, "0.parquet", people)
    finish_set(root, job="clean")
    return tmp_path


def test_the_cleaned_set_is_counted(cleaned: Path) -> None:
    config = configured(cleaned)
    found = planning.plan(config)
    assert found is not None and found.exact and config.judge is not None
    asked = [3, 54, 55, 120]  # one was refused, one has a single image
    faces = [np.full((112, 112, 3), 90, np.uint8)] * 120
    question = Question.load(None)
    sheets = [s for n in asked for s in draw(faces[:n], config.judge.sheet, range(n))]
    assert (found.identities, found.asked, found.faces) == (4, 4, sum(asked))
    assert found.calls == len(sheets) == 1 + 1 + 2 + 3
    assert found.sent == sum(expected_tokens(config.judge, question, sheet) for sheet in sheets)
    assert found.dollars == price(found.sent, found.received, config.judge.prices)
    assert found.batch_dollars == pytest.approx(found.dollars / 2)


def test_an_audit_asks_a_share(cleaned: Path) -> None:
    nobody = planning.plan(configured(cleaned, ask="audit", audit=0.0))
    everybody = planning.plan(configured(cleaned, ask="audit", audit=1.0))
    assert nobody is not None and (nobody.asked, nobody.calls, nobody.dollars) == (0, 0, 0.0)
    assert everybody is not None and everybody.asked == everybody.identities == 4


def test_before_cleaning_it_is_an_estimate(tmp_path: Path, face: bytes) -> None:
    for person in range(6):
        folder = tmp_path / "base" / f"{person}"
        folder.mkdir(parents=True)
        for k in range(4):
            (folder / f"{k}.jpg").write_bytes(face)
    found = planning.plan(configured(tmp_path))
    assert found is not None and not found.exact
    assert (found.identities, found.asked, found.faces, found.calls) == (6, 6, 24, 6)
    half = planning.plan(configured(tmp_path, ask="audit", audit=0.5))
    assert half is not None and half.asked == 3


def test_nothing_is_planned_where_nothing_is_asked(tmp_path: Path) -> None:
    assert planning.plan(configured(tmp_path, kind="none")) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experts": ["clustering", "astrologer"]}, "no expert 'astrologer'"),
        ({"experts": ["vision", "vision"]}, "named twice"),
        ({"experts": ["clustering"]}, "vision is missing, and kind is 'openai'"),
        ({"experts": ["vision"], "kind": "none"}, "none is left where kind is none"),
        ({"experts": ["vision", "embedder"]}, "name both or neither"),
        ({"second": {"kind": "dlib"}}, "name both or neither"),
        ({"endpoints": ["api.openai.com"]}, "faces may not be sent to 127.0.0.1"),
    ],
)
def test_panels_that_cannot_speak_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured(tmp_path, **settings)
