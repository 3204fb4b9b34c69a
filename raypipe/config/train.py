"""Configuration of the `train` job."""

from typing import Literal

from pydantic import Field, model_validator

from raypipe.config.base import Workers


class TrainConfig(Workers):
    """IResNet with an ArcFace head, trained in the order of the set.

    The defaults are the recipe published for ArcFace networks on sets of 10,000 to 500,000
    identities (AdaFace and CVLface: 26 epochs, rate 0.1 divided by ten at 12, 20 and 24).
    """

    depth: Literal["10", "18", "34", "50", "100", "200"] = Field(
        "50", description="layers of the IResNet; 10 is for CPUs"
    )
    width: int = Field(64, ge=1, description="planes of the first stage; published: 64")
    dropout: float = Field(0.0, ge=0, lt=1, description="before the last linear layer")
    epochs: int = Field(26, ge=1, description="passes over the set, each in the same order")
    batch_size: int = Field(128, ge=2, description="images a worker takes in one step")
    lr: float = Field(0.1, gt=0, description="learning rate after the warm-up")
    warmup_epochs: float = Field(
        1.0, ge=0, description="the rate rises linearly from zero over so many epochs"
    )
    milestones: list[int] = Field(
        [12, 20, 24], description="after so many epochs the rate is divided by ten"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(
        5e-4, ge=0, description="of convolutions, linear layers and head; not of BN, PReLU and bias"
    )
    clip: float = Field(5.0, gt=0, description="largest norm of the network's gradient")
    margin: float = Field(0.5, ge=0, lt=1.6, description="of ArcFace, in radians")
    scale: float = Field(64.0, gt=0, description="of ArcFace")
    flip: bool = Field(True, description="mirror every image left-right with probability 1/2")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the convolutions; bfloat16 pays on GPUs and on CPUs that have it"
    )

    @model_validator(mode="after")
    def _milestones_rise(self) -> "TrainConfig":
        if any(b <= a for a, b in zip([0, *self.milestones], self.milestones, strict=False)):
            raise ValueError(f"milestones: {self.milestones} must be positive and rise")
        return self
