import pytest

from raypipe.reasons import REASONS
from raypipe.report import words


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "image", "1 image"), (2000, "image", "2,000 images"), (0, "identity", "0 identities")],
)
def test_count(number: int, noun: str, text: str) -> None:
    assert words.count(number, noun) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (71.3, "1 min 11 s"), (3 * 3600 + 125, "3 h 02 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999 B"), (1_234_567, "1.2 MB"), (5e15, "5000.0 TB")]
)
def test_size(number: float, text: str) -> None:
    assert words.size(number) == text


@pytest.mark.parametrize("reason", sorted(REASONS))
def test_every_reason_is_a_sentence(reason: str) -> None:
    sentence = words.reason_sentence(reason)
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert ":" not in words.short_reason(reason)


def test_numbers_have_a_minus_sign() -> None:
    assert words.signed(-0.178) == "\N{MINUS SIGN}0.18"
    assert words.signed(0.5) == "0.50"
