import pytest

from jobs.prompts import preview
from raypipe.errors import UserError

GRAMMAR = """
prompt: "[b] {gender} {beard}"
negative: blurry
attributes:
  gender: {woman: 1, man: 1}
  beard: {no beard: 1, beard: 3}
exclude: [{gender: [woman], beard: [beard]}]
"""


def test_a_preview_shows_prompts_and_what_is_out_of_reach(tmp_path, capsys):
    path = tmp_path / "g.yaml"
    path.write_text(GRAMMAR)
    preview(3, str(path), seed=0)
    text = capsys.readouterr().err
    assert sum("[b] " in line for line in text.splitlines()) == 3
    assert "negative: blurry" in text and "of 10,000" in text
    assert "out of reach beard 'beard': declared 75.00%, exclusions leave 63.40%" in text
    assert "too long" not in text


def test_a_prompt_that_is_not_read_to_its_end_is_named(tmp_path, capsys):
    path = tmp_path / "g.yaml"
    path.write_text(GRAMMAR.replace("{beard}", "{beard}" + " word" * 75))
    preview(1, str(path), seed=0)
    assert "too long the longest prompt has at least" in capsys.readouterr().err


def test_a_mistake_in_a_grammar(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        preview(1, str(tmp_path / "none.yaml"), seed=0)
