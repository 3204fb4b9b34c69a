"""Configuration of the `train_generator` job."""

from typing import Literal

from pydantic import Field, model_validator

from raypipe.config.base import FeatureTraining, Settings


class Losses(Settings):
    """Weights of the losses; 0 leaves one out, none: as the recipe has it."""

    pixels: float | None = Field(None, ge=0, description="mean squared error, images in [-1, 1]")
    perceptual: float | None = Field(None, ge=0, description="LPIPS, or distance of features")
    ssim: float | None = Field(None, ge=0, description="1 - structural similarity")
    token: float | None = Field(None, ge=0, description="decoder's tokens against the feature map")
    identity: float | None = Field(None, ge=0, description="1 - cosine to the vector")
    centred: float | None = Field(
        None,
        ge=0,
        description="likewise, with the set's mean feature subtracted from both, for embedders "
        "whose features share a large part (dlib)",
    )
    gan: float | None = Field(None, ge=0, description="patch discriminator, adaptive weight")


# Published weights: VQLPIPSWithDiscriminator and vec2face.py of github.com/HaiyuWu/Vec2Face (its
# 0.1 is multiplied by an LPIPS that is doubled before); Vec2Face+ as its paper has it, and
# pose_training.py of github.com/HaiyuWu/Vec2Face_plus has the same but for the token loss.
RECIPES = {
    "vec2face": {
        "pixels": 1.0,
        "perceptual": 0.2,
        "ssim": 0.1,
        "token": 1.0,
        "identity": 1.0,
        "centred": 0.0,
        "gan": 0.8,
    },
    "vec2face+": {
        "pixels": 1.0,
        "perceptual": 0.4,
        "ssim": 1.0,
        "token": 1.0,
        "identity": 1.0,
        "centred": 0.0,
        "gan": 0.0,
    },
}


class GeneratorConfig(FeatureTraining):
    """Vec2Face, trained to paint every image of a face set from the image's own feature.

    The defaults are the released recipe (README of github.com/HaiyuWu/Vec2Face: 4 GPUs × 32 images,
    100 epochs, discriminator from epoch 80, 5 epochs of warm-up, base rate 4e-5).
    """

    size: Literal["base", "large", "huge", "small"] = Field(
        "base", description="published sizes, or small: for CPUs, starts from a DCGAN"
    )
    weights: str | None = Field(None, description="generator to go on from; none: a new one")
    dcgan: str | None = Field(
        None, description="DCGAN that the small size starts from; none: the one that ships"
    )
    dcgan_pictures: int = Field(
        8192,
        ge=100,
        description="pictures of the DCGAN that a small network's first guess of a "
        "person's latent is learnt from",
    )
    position_std: float = Field(
        0.02, gt=0, description="of a new network's position embeddings; published: 0.02"
    )
    whiten: bool = Field(
        False, description="a new network's first layer starts by whitening the set's features"
    )
    freeze_dcgan: bool = Field(
        False, description="the small size keeps the layers of its DCGAN as they are"
    )
    dropout: bool = Field(True, description="the transformer's published dropout of 0.1")
    recipe: Literal["vec2face", "vec2face+"] = Field(
        "vec2face", description="published weights of the losses: with a discriminator, or without"
    )
    losses: Losses = Losses()
    gan_from: int = Field(80, ge=0, description="epochs without the discriminator")
    identity_every: int = Field(
        1,
        ge=1,
        description="identity and feature losses on every so many steps, weighted as many "
        "times: the embedder costs more than a small generator",
    )
    perceptual: str | None = Field(
        None, description="LPIPS with VGG16, .safetensors or .pth; none: features of the embedder"
    )
    mask_lowest: float = Field(0.5, ge=0, lt=1, description="smallest share of masked tokens")
    mask_mean: float = Field(0.75, description="of the normal law of the share, before truncation")
    mask_std: float = Field(0.25, gt=0, description="likewise its standard deviation")
    epochs: int = Field(100, ge=1, description="passes over the set")
    batch_size: int = Field(32, ge=1, description="images a worker takes in one step")
    base_lr: float = Field(
        4e-5, gt=0, description="rate for 112 images an update; others in proportion"
    )
    min_lr: float = Field(0.0, ge=0, description="rate at the end of the cosine")
    warmup_epochs: float = Field(5.0, ge=0, description="epochs in which the rate rises linearly")
    clip: float = Field(2.0, gt=0, description="largest norm of the gradient")

    @model_validator(mode="after")
    def _a_frozen_layer_has_no_gradient(self) -> "GeneratorConfig":
        if self.freeze_dcgan and self.weight("gan"):
            raise ValueError(
                "freeze_dcgan: the discriminator is weighted by the gradient of a frozen layer"
            )
        return self

    def weight(self, loss: str) -> float:
        """The weight of a loss: set, or the recipe's."""
        given = getattr(self.losses, loss)
        return RECIPES[self.recipe][loss] if given is None else given
