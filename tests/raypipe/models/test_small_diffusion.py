"""The parts of a small Stable Diffusion."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from raypipe.config.diffusion import DiffusionConfig
from raypipe.config.diffusion_training import DiffusionTrainingConfig
from raypipe.diffusion_loading import load
from raypipe.models import small_diffusion
from raypipe.models.small_diffusion import TOKENS, tokenize
from raypipe.prompts import load_grammar, say

GRAMMAR = load_grammar("portraits")
SENTENCES = [
    say(GRAMMAR, {name: value})
    for name, attribute in GRAMMAR.attributes.items()
    for value in attribute.values
]
CONFIG = DiffusionTrainingConfig(
    side=32,
    vae_channels=[32] * 3,
    unet_channels=[32] * 3,
    text_width=32,
    text_layers=1,
)


pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_process_builds_the_same_networks_and_words() -> None:
    made = []
    for sentences in (SENTENCES, [*reversed(SENTENCES), SENTENCES[0]]):
        torch.manual_seed(0)
        made.append(small_diffusion.build(CONFIG, sentences))
    first, second = made
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    assert tokenize(first.tokenizer, SENTENCES).equal(tokenize(second.tokenizer, SENTENCES))
    for name in ("vae", "unet", "text"):
        states = (getattr(parts, name).state_dict() for parts in (first, second))
        for one, other in zip(*(state.values() for state in states), strict=True):
            assert one.equal(other)


def test_a_word_is_a_token_and_a_prompt_fits() -> None:
    tokenizer = small_diffusion.build(CONFIG, SENTENCES).tokenizer
    for word in ("portrait", "skin", "background", "photo", "light,", "camera"):
        assert len(tokenizer.tokenize(word)) <= 2, word
    longest = max(len(tokenizer(sentence).input_ids) for sentence in SENTENCES)
    ids = tokenize(tokenizer, SENTENCES)
    assert ids.shape == (len(SENTENCES), TOKENS)
    assert longest < TOKENS
    assert len({tuple(row.tolist()) for row in ids}) == len(set(SENTENCES))
    # A word that nobody said is spelt, not unknown.
    assert tokenizer.decode(tokenizer("zebra")["input_ids"], skip_special_tokens=True) == "zebra"


def test_a_saved_folder_paints_as_its_parts_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def paint(pipeline: object, caption: str) -> np.ndarray:
        pipeline.set_progress_bar_config(disable=True)
        random = torch.Generator().manual_seed(1)
        options = {"height": 32, "width": 32, "num_inference_steps": 3, "output_type": "np"}
        return pipeline([caption], generator=random, **options).images[0]

    torch.manual_seed(0)
    parts = small_diffusion.build(CONFIG, SENTENCES)
    dark, light = say(GRAMMAR, {"hair": "dark"}), say(GRAMMAR, {"hair": "light"})
    wanted, other = (paint(small_diffusion.pipeline(parts), said) for said in (dark, light))
    capfd.readouterr()
    # Both keep what they log from the root logger, where caplog listens.
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    small_diffusion.save(parts, str(tmp_path), torch.float16)
    assert capfd.readouterr().err == ""
    assert not caplog.records
    found = paint(load(DiffusionConfig(model=str(tmp_path)), torch.device("cpu")), dark)
    # Half precision moves a picture less than another caption does.
    assert np.abs(found - wanted).max() < 0.25 * np.abs(other - wanted).max()
    assert {p.dtype for p in parts.unet.parameters()} == {torch.float32}
