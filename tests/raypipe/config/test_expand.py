"""The configuration of expansion: what fits together and what does not."""

from fractions import Fraction

import pytest
from pydantic import ValidationError

from raypipe.config.expand import ExpandConfig, MixedPainterConfig


def test_fields_of_a_generator_stand_beside_the_others() -> None:
    config = ExpandConfig(images=9, weights="a/b.pth", perturbation={"kind": "reference"})
    assert (config.kind, config.weights_file, config.shares) == ("vec2face", "b.pth", [1])
    assert config.painters == [config]
    assert ExpandConfig().weights_file == "vec2face_small.safetensors"


def test_a_mix() -> None:
    config = ExpandConfig(
        kind="cemiface",
        weights="a/cemi.safetensors",
        similarity=[-0.1, 0.1],
        steps=10,
        mix=[{"share": 0.1}, {"share": 0.2, "perturbation": {"kind": "directed"}}],
    )
    assert config.shares == [Fraction(7, 10), Fraction(1, 10), Fraction(2, 10)]
    assert config.weights_file == "cemi.safetensors"
    assert [painter.kind for painter in config.painters] == ["cemiface", "vec2face", "vec2face"]
    assert isinstance(config.mix[0], MixedPainterConfig)
    for again in (
        ExpandConfig(**config.model_dump()),
        ExpandConfig(**config.model_dump(mode="json")),
    ):
        assert again == config, "an actor gets every field, those of the other kind too"


CEMIFACE = {"kind": "cemiface"}
GOALS = {"goals": [{"name": "q", "estimator": "a:b", "goal": "value", "value": 1, "tolerance": 1}]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 10}, "steps: means nothing to kind 'vec2face'"),
        ({"similarity": 0.5}, "similarity: means nothing to kind 'vec2face'"),
        (
            {"kind": "cemiface", "perturbation": {"scale": 1}},
            "perturbation: means nothing to kind 'cemiface'",
        ),
        ({"kind": "cemiface", "attributes": GOALS}, "attributes: means nothing to"),
        ({"mix": [{"share": 0.5, "steps": 9}]}, "steps: means nothing to kind 'vec2face'"),
        ({"kind": "cemiface", "similarity": 1.5}, "less than or equal to 1"),
        ({**CEMIFACE, "similarity": [0.5, 0.2]}, "0.5 is not below 0.2"),
        ({"mix": [{}]}, "Field required"),
        ({"mix": [{"share": 1}]}, "less than 1"),
        ({"mix": [{"share": 0.9}, {"share": 0.1}]}, "the shares sum to 1 or more"),
        ({"band": [0.9, 0.9]}, "band: 0.9 is not below 0.9"),
        ({"band": [0.9, 1.1]}, "less than or equal to 1"),
        ({"band": [0.1, 0.9], "perturbation": {"kind": "directed"}}, "a band sets it"),
        (
            {"band": [0.1, 0.9], "mix": [{**CEMIFACE, "similarity": 0.1, "share": 0.1}]},
            "similarity: a band sets it",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(values, message) -> None:
    with pytest.raises(ValidationError, match=message):
        ExpandConfig(**values)
