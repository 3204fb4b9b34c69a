"""Configuration of the `train_estimator` job."""

from pydantic import Field

from raypipe.config.base import Settings


class EstimatorConfig(Settings):
    """A small network for quality, yaw and pitch, trained on what dlib's detector says of faces."""

    faces: str = Field("{workspace}/ingest", description="face set; it needs no features")
    people: int = Field(
        3000, ge=20, description="identities to take, the first ones; their images are held"
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="share of the identities that the result is measured on"
    )
    epochs: int = Field(12, ge=1, description="passes over the images")
    batch_size: int = Field(64, ge=2, description="images of a step")
    lr: float = Field(2e-3, gt=0, description="rate at the start, falling to 0 along a cosine")
    weight_decay: float = Field(0.02, ge=0, description="of AdamW")
