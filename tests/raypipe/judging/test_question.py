"""The question, what is an answer, how many tokens and dollars."""

import json
from pathlib import Path

import pytest

from raypipe.config.judge import JudgeConfig, PriceConfig
from raypipe.errors import UserError
from raypipe.judging import tokens
from raypipe.judging.question import MalformedError, Question, read
from raypipe.judging.sheets import Sheet

SHEET = Sheet(labels=(1, 2, 3, 4), anchors=frozenset({2}), data=b"picture")


def said(*outliers: tuple[int, float]) -> str:
    return json.dumps(
        {"outliers": [{"label": n, "confidence": c, "reason": "nose"} for n, c in outliers]}
    )


def test_the_question_names_the_numbers_and_the_anchors() -> None:
    question = Question.load(None)
    text = question.ask(SHEET.labels, SHEET.anchors)
    assert "001, 002, 003, 004" in text
    assert "The pictures 002 are known" in text
    assert "known" not in question.ask((1, 2), frozenset())
    assert "empty list" in text


def test_a_clean_identity_is_an_answer() -> None:
    assert read(said(), SHEET).outliers == []
    assert [o.label for o in read(said((3, 0.7), (1, 1)), SHEET).outliers] == [3, 1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Invalid JSON"),
        ('{"outliers": [', "Invalid JSON"),
        ("[]", "answer"),
        ("{}", "outliers: Field required"),
        (said((5, 0.5)), "names 005, which is not on the sheet"),
        (said((1, 0.5), (1, 0.5)), "names a face twice"),
        (said((1, 1.5)), "less than or equal to 1"),
        (said((1, 1), (2, 1), (3, 1), (4, 1)), "of every face"),
        (said()[:-1] + ', "more": 1}', "Extra inputs"),
    ],
)
def test_what_is_no_answer(text: str, why: str) -> None:
    with pytest.raises(MalformedError, match=why):
        read(text, SHEET)


def test_the_key_is_of_all_that_is_asked(tmp_path: Path) -> None:
    question = Question.load(None)
    key = question.key(SHEET, "gpt-4o")
    assert key == Question.load(None).key(SHEET, "gpt-4o")
    path = tmp_path / "prompt.yaml"
    path.write_text(
        "version: 2\nsystem: a\nuser: 'who? {labels} {anchors}'\nanchors: '{anchors}'\n"
    )
    others = [
        question.key(SHEET, "other"),
        Question.load(str(path)).key(SHEET, "gpt-4o"),
        question.key(Sheet(labels=(1, 2, 3, 4), anchors=frozenset(), data=b"picture"), "gpt-4o"),
        question.key(Sheet(labels=(1, 2, 3, 5), anchors=SHEET.anchors, data=b"picture"), "gpt-4o"),
        question.key(Sheet(labels=SHEET.labels, anchors=SHEET.anchors, data=b"other"), "gpt-4o"),
    ]
    assert len({key, *others}) == 6


@pytest.mark.parametrize(
    "text",
    [
        "version: 1",
        "- a",
        "version: 1\nsystem: a\nuser: '{label}'\nanchors: b",
        "version: 1\nsystem: a\nuser: 'x'\nanchors: b",
        "version: 1\nsystem: a\nuser: '{labels}'\nanchors: b\nmore: c",
        "version: [",
    ],
)
def test_a_prompt_that_cannot_be_used_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "prompt.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"prompt\.yaml: (a prompt has|user has no)"):
        Question.load(str(path))


@pytest.mark.parametrize(
    ("width", "height", "wanted"),
    [
        (512, 512, 255),
        (510, 927, 425),
        (513, 512, 425),
        (1024, 1024, 765),  # OpenAI's example: scaled to 768×768
        (2048, 4096, 1105),  # OpenAI's example: scaled to 768×1536
        (4096, 512, 765),  # fits 2048×256 first: four tiles
    ],
)
def test_tokens_of_an_image(width: int, height: int, wanted: int) -> None:
    assert tokens.image_tokens(width, height, PriceConfig()) == wanted


def test_tokens_and_dollars_by_hand() -> None:
    # Compare, the, shape, the comma, it, 's, a space, 123, 4, the full stop
    assert tokens.text_tokens("Compare the shape, it's 1234.") == 10
    assert tokens.message_tokens(["a b", "c"]) == 3 + (4 + 2) + (4 + 1)
    prices = PriceConfig(input=2, output=8, batch=0.5)
    assert tokens.price(1_000_000, 500_000, prices) == 6.0
    assert tokens.price(1_000_000, 500_000, prices, batch=True) == 3.0


def test_faces_go_to_allowed_hosts_only() -> None:
    JudgeConfig(base_url="http://127.0.0.1:8000/v1", endpoints=["127.0.0.1"])
    with pytest.raises(ValueError, match=r"may not be sent to evil\.example; if they may, add it"):
        JudgeConfig(base_url="https://evil.example/v1")
    # The host is what counts, not where its name stands.
    with pytest.raises(ValueError, match="may not be sent to"):
        JudgeConfig(base_url="https://evil.example/api.openai.com")
    with pytest.raises(ValueError, match="holds a user name, a password or a key"):
        JudgeConfig(base_url="https://api.openai.com@evil.example/v1")
    with pytest.raises(ValueError, match="is no address"):
        JudgeConfig(base_url="ftp://api.openai.com")
