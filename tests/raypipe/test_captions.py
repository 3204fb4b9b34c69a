"""Captions say what was measured, in the words of a grammar."""

import numpy as np
import pytest

from raypipe.captions import captions, cuts, value_of
from raypipe.config.diffusion_training import DiffusionTrainingConfig, MeasuredConfig
from raypipe.errors import UserError
from raypipe.prompts import load_grammar, say

GRAMMAR = load_grammar("portraits")
SKIN = MeasuredConfig(measure="skin", values=["dark", "light"])
POSE = MeasuredConfig(measure="yaw", values=["left", "forward", "right"])


def test_the_shipped_grammar_has_all_that_is_measured() -> None:
    for name, attribute in DiffusionTrainingConfig().attributes.items():
        for value in attribute.values:
            assert say(GRAMMAR, {name: value}) != say(GRAMMAR, {})


def test_values_stand_for_equal_shares() -> None:
    measured = np.random.default_rng(0).permutation(300) * 0.1
    borders = cuts(measured, 3)
    found = [value_of(value, POSE, borders) for value in measured]
    assert [found.count(value) for value in POSE.values] == [100, 100, 100]
    assert value_of(-1e9, POSE, borders) == "left"
    assert value_of(borders[0], POSE, borders) == "forward"


def test_a_caption_says_every_attribute_and_nothing_near_a_border() -> None:
    skin = np.arange(100.0)
    pose = np.roll(skin, 50)
    said = captions(
        GRAMMAR, {"skin_tone": SKIN, "pose": POSE}, {"skin_tone": skin, "pose": pose}, gap=0.1
    )
    tones = ["dark" if "dark skin" in s else "light" if "light skin" in s else "" for s in said]
    assert tones == ["dark"] * 45 + [""] * 10 + ["light"] * 45
    assert sum("looking to the left" in s for s in said) == 28
    assert sum("facing the camera" in s for s in said) == 24
    assert said[0] == say(GRAMMAR, {"skin_tone": "dark", "pose": "forward"})
    assert said[83] == say(GRAMMAR, {"skin_tone": "light"})  # its pose is at a border


def test_a_value_that_the_grammar_has_not_is_named() -> None:
    with pytest.raises(UserError, match=r"attributes\.hair: unknown value 'darc'; .*'dark'"):
        say(GRAMMAR, {"hair": "darc"})
    with pytest.raises(UserError, match="unknown attribute 'hairs'"):
        say(GRAMMAR, {"hairs": "dark"})
