"""Configuration of the `train_cemiface` job."""

from typing import Literal

from pydantic import Field

from raypipe.config.base import FeatureTraining


class CemiFaceTrainingConfig(FeatureTraining):
    """CemiFace, trained to paint every image of a face set from its own feature, at a similarity
    that is drawn for each.

    The defaults are the published ones (arXiv 2409.18876, sections 4.1 and 4.3: T 1000, 10 epochs,
    160 images an update, λ 0.05, similarities 0.04 apart), and where the paper is silent those of
    the code it builds on (DCFace's: AdamW with 1e-4, EMA with decay 0.9999).
    """

    size: Literal["published", "small"] = Field(
        "published", description="112×112 pixels as published, or small: 32×32, for CPUs"
    )
    weights: str | None = Field(None, description="network to go on from; none: a new one")
    similarity_weight: float = Field(
        0.05, ge=0, description="λ, of the losses that compare features with the image's own"
    )
    similarity_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of a batch whose features are compared; published: 1. An embedder costs "
        "as much as a small network",
    )
    lowest: float = Field(
        -1.0, ge=-1, lt=1, description="lowest similarity that is drawn; the highest is 1"
    )
    stretch: tuple[float, float] | None = Field(
        None,
        description="[factor, about]: in the weights that are written, a similarity m has the "
        "effect that about + factor (m - about) had in training; for a dial that turns the right "
        "way and not far enough",
    )
    interval: float = Field(
        0.04,
        gt=0,
        le=1,
        description="between two neighbouring similarities; without a grid training collapsed "
        "(published)",
    )
    epochs: int = Field(10, ge=1, description="passes over the set")
    batch_size: int = Field(160, ge=1, description="images a worker takes in one step")
    lr: float = Field(1e-4, gt=0, description="highest rate")
    final_lr: float | None = Field(
        None, ge=0, description="rate at the end of a half cosine; none: constant, as published"
    )
    warmup_epochs: float = Field(0.0, ge=0, description="epochs in which the rate rises linearly")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(
        0.9999,
        ge=0,
        lt=1,
        description="highest decay of the average that is kept; update n has 1 - (1 + n)^(-3/4)",
    )
