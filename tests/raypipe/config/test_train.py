import pytest
from pydantic import ValidationError

from raypipe.config.train import TrainConfig


@pytest.mark.parametrize(
    ("head", "margin"),
    [("arcface", 0.5), ("cosface", 0.4), ("adaface", 0.4), ("combined", 0.0), ("magface", 0.0)],
)
def test_margin_is_the_published_one_of_the_head(head, margin):
    config = TrainConfig(head=head)
    assert config.margin == margin
    assert TrainConfig(**config.model_dump()) == config
    assert TrainConfig(**config.model_dump(mode="json")) == config


def test_a_stated_margin_stays():
    assert TrainConfig(head="cosface", margin=0.35).margin == 0.35
    assert TrainConfig(margin=0.3).margin == 0.3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"head": "sphereface"}, "'arcface', 'cosface', 'combined', 'adaface' or 'magface'"),
        ({"h": 0.2}, "h: means nothing to head 'arcface'"),
        ({"head": "adaface", "lambda_g": 20}, "lambda_g: means nothing to head 'adaface'"),
        ({"head": "combined", "margin": 0.5}, "head 'combined' has margins instead"),
        ({"head": "magface", "margin": 0.5}, "has norms, norm_margins, lambda_g instead"),
        ({"head": "combined", "margins": [0, 0.3, 0.2]}, "greater than 0"),
        ({"head": "combined", "margins": [1, 0.3]}, "margins"),
        ({"head": "magface", "norms": [110, 10]}, "norms: 110 is not below 10"),
        ({"head": "magface", "norm_margins": [0.8, 0.45]}, "0.8 and 0.45 must rise"),
        ({"head": "adaface", "t_alpha": 0}, "t_alpha"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        TrainConfig(**fields)
