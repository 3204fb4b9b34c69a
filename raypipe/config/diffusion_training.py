"""Configuration of the `train_diffusion` job."""

from typing import Literal

from pydantic import Field, model_validator

from raypipe.config.base import Settings, Workers


class MeasuredConfig(Settings):
    """An attribute of captions that is measured in the pictures."""

    measure: Literal["skin", "hair", "background", "yaw"] = Field(
        description="what decides (raypipe.portraits): lightness of skin, of hair or of the "
        "background, or the yaw of the face, from left to right as the viewer sees it"
    )
    values: list[str] = Field(
        min_length=2,
        description="values of the grammar's attribute from the lowest measure to the highest; "
        "each stands for an equal share of the pictures",
    )


class DiffusionTrainingConfig(Workers):
    """A small Stable Diffusion, trained from scratch: autoencoder, then UNet and text encoder."""

    faces: str = Field("{workspace}/ingest", description="face set; it needs no features")
    grammar: str | None = Field(
        None,
        description="YAML of the grammar that captions are put in; none: portraits.yaml, which "
        "ships with raypipe",
    )
    attributes: dict[str, MeasuredConfig] = Field(
        {
            "skin_tone": MeasuredConfig(measure="skin", values=["dark", "light"]),
            "hair": MeasuredConfig(measure="hair", values=["dark", "light"]),
            "pose": MeasuredConfig(measure="yaw", values=["left", "forward", "right"]),
            "background": MeasuredConfig(measure="background", values=["dark", "light"]),
        },
        min_length=1,
        description="attributes of the grammar that captions say",
    )
    gap: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="share of the pictures around the border of two values whose caption says "
        "neither",
    )
    min_quality: float | None = Field(
        None, description="leave out pictures that estimator face_quality gives less"
    )
    side: int = Field(64, ge=32, multiple_of=32, description="pixels of a picture's side")
    vae_channels: list[int] = Field(
        [32, 64, 64], min_length=3, max_length=3, description="of the autoencoder's three levels"
    )
    unet_channels: list[int] = Field(
        [64, 128, 128], min_length=3, max_length=3, description="of the UNet's three levels"
    )
    text_width: int = Field(128, ge=32, multiple_of=32, description="of the text encoder")
    text_layers: int = Field(2, ge=1, description="of the text encoder")
    vae_steps: int = Field(4000, ge=1, description="updates of the autoencoder")
    steps: int = Field(20000, ge=1, description="updates of UNet and text encoder after that")
    vae_batch_size: int = Field(64, ge=1, description="pictures a worker takes in one of them")
    batch_size: int = Field(128, ge=1, description="likewise, of UNet and text encoder")
    vae_lr: float = Field(4e-4, gt=0, description="highest rate of the autoencoder")
    lr: float = Field(4e-4, gt=0, description="highest rate of UNet and text encoder")
    warmup_steps: int = Field(200, ge=0, description="in which the rate rises to the highest")
    kl: float = Field(1e-6, ge=0, description="weight of the divergence to a normal law")
    perceptual: float = Field(
        1.0, ge=0, description="weight of the distance of the embedder's feature maps"
    )
    unsaid: float = Field(
        0.1, ge=0, lt=1, description="share of captions left empty, for classifier-free guidance"
    )
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the average that is kept")
    precision: Literal["no", "bf16"] = Field("no", description="mixed precision")
    period: int = Field(1000, ge=1, description="updates between checkpoints, each with a picture")

    @model_validator(mode="after")
    def _groups_fit(self) -> "DiffusionTrainingConfig":
        for name in ("vae_channels", "unet_channels"):
            if any(channels % 32 for channels in getattr(self, name)):
                raise ValueError(f"{name} must be multiples of 32, which group norm divides by")
        return self
