"""Configuration of the `train` job."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from raypipe.config.augment import AugmentConfig
from raypipe.config.base import Workers
from raypipe.config.curriculum import CurriculumConfig

# Published margins; the other heads have theirs in fields of their own.
_MARGIN = {"arcface": 0.5, "cosface": 0.4, "adaface": 0.4}
_OWN = {
    "combined": ["margins"],
    "adaface": ["h", "t_alpha"],
    "magface": ["norms", "norm_margins", "lambda_g"],
}


def _published_margin(data: dict[str, Any]) -> float:
    return _MARGIN.get(data.get("head", ""), 0.0)


class TrainConfig(Workers):
    """A recognizer with a margin head.

    The defaults are the recipe published for ArcFace networks on sets of 10,000 to 500,000
    identities (AdaFace and CVLface: 26 epochs, rate 0.1 at 512 images a step, divided by ten at 12,
    20 and 24).
    """

    set: str | None = Field(
        None,
        description="folder of Parquet files with columns image and label, as `raypipe convert "
        "--format parquet` writes them; none: what `assemble` made",
    )
    network: Literal["iresnet", "mobilefacenet"] = Field(
        "iresnet", description="what embeds a face (raypipe/models)"
    )
    depth: Literal["10", "18", "34", "50", "100", "200"] = Field(
        "50", description="layers of the IResNet; 10 is for CPUs"
    )
    width: int = Field(64, ge=1, description="planes of the first stage; published: 64")
    se: bool = Field(False, description="squeeze and excitation as in the recipe of HSFace")
    dropout: float = Field(0.0, ge=0, lt=1, description="before the last linear layer")
    epochs: int = Field(26, ge=1, description="passes over the set")
    batch_size: int = Field(
        512,
        ge=2,
        description="images of a step over all workers; where these cannot share it evenly, the "
        "nearest number that they can",
    )
    micro_batch: int = Field(
        128,
        ge=2,
        description="images a worker takes through the network at once, at most, and that share "
        "the statistics of batch norm; it takes as many of these for a step as it needs to",
    )
    lr: float = Field(0.1, gt=0, description="learning rate after the warm-up")
    lr_batch: int = Field(
        512,
        ge=1,
        description="images of a step that this rate is meant for; with another number the rate "
        "is changed in proportion",
    )
    warmup_epochs: float = Field(
        1.0, ge=0, description="the rate rises linearly from zero over so many epochs"
    )
    decay: Literal["milestones", "linear"] = Field(
        "milestones", description="how the rate falls after the warm-up; linear: to zero"
    )
    milestones: list[int] = Field(
        [12, 20, 24], description="after so many epochs the rate is divided by ten"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(
        5e-4, ge=0, description="of convolutions, linear layers and head; not of BN, PReLU and bias"
    )
    clip: float = Field(5.0, gt=0, description="largest norm of the network's gradient")
    head: Literal["arcface", "cosface", "combined", "adaface", "magface"] = Field(
        "arcface", description="what shapes the embedding while it trains (raypipe/heads.py)"
    )
    margin: float = Field(
        default_factory=_published_margin,
        ge=0,
        lt=1.6,
        description="arcface: radians, published: 0.5; cosface, adaface: published: 0.4",
    )
    scale: float = Field(64.0, gt=0, description="of the logits; published: 64")
    margins: tuple[PositiveFloat, NonNegativeFloat, NonNegativeFloat] = Field(
        (1.0, 0.3, 0.2), description="combined: m1, m2 and m3 of cos(m1 · theta + m2) - m3"
    )
    h: float = Field(0.333, gt=0, description="adaface: how much the margin depends on the norm")
    t_alpha: float = Field(
        0.01, gt=0, le=1, description="adaface: weight of a batch in the mean and spread of norms"
    )
    norms: tuple[PositiveFloat, PositiveFloat] = Field(
        (10.0, 110.0), description="magface: norms between which the margin rises"
    )
    norm_margins: tuple[float, float] = Field(
        (0.45, 0.8), description="magface: margins at these norms, in radians"
    )
    lambda_g: float = Field(
        35.0, ge=0, description="magface: weight of the pull to large norms, at least 23 by theory"
    )
    class_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the classes in a step (Partial FC): those of its images, and others "
        "at random; below 1 pays from a million identities on",
    )
    augment: AugmentConfig = Field(
        AugmentConfig.preset("flip"),
        description="what is done to an image before it is trained on; a preset or probabilities",
    )
    curriculum: CurriculumConfig = Field(
        CurriculumConfig(), description="the order of the images, from epoch to epoch"
    )
    decoder: Literal["pillow", "nvimgcodec"] = Field(
        "pillow",
        description="what decodes the images; nvimgcodec: JPEG on the worker's device, which is "
        "its GPU with use_gpu (needs the package nvidia-nvimgcodec)",
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="of the convolutions; bfloat16 pays on GPUs and on CPUs that have it"
    )
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="above 0 the result is the moving average of the weights: this share of it "
        "stays at every step, for example 0.9999",
    )
    min_workers: int | None = Field(
        None,
        ge=1,
        description="go on with as few workers as this while nodes are missing; none: wait for all",
    )
    checkpoint_steps: int | None = Field(
        None,
        ge=1,
        description="steps after which a checkpoint is written, beside the one at the end of every "
        "epoch; a killed run loses no more than these",
    )
    keep_every: int = Field(
        0,
        ge=0,
        description="weights of every so many epochs are kept in train/epochs, for `evaluate`; 0: "
        "only the last",
    )
    log: list[Literal["tensorboard", "mlflow", "wandb"]] = Field(
        ["tensorboard"], description="where losses are sent beside history.json"
    )

    @model_validator(mode="after")
    def _precision_goes_with_the_share(self) -> "TrainConfig":
        if self.class_share < 1 and self.precision == "float16":
            raise ValueError("precision: float16 does not go with class_share; use bfloat16")
        return self

    @model_validator(mode="after")
    def _workers_are_a_range(self) -> "TrainConfig":
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers: {self.min_workers} is above num_workers, {self.num_workers}"
            )
        return self

    @model_validator(mode="after")
    def _milestones_rise(self) -> "TrainConfig":
        if any(b <= a for a, b in zip([0, *self.milestones], self.milestones, strict=False)):
            raise ValueError(f"milestones: {self.milestones} must be positive and rise")
        return self

    @model_validator(mode="after")
    def _fields_belong_to_the_head(self) -> "TrainConfig":
        for head, names in _OWN.items():
            for name in names:
                default = TrainConfig.model_fields[name].default
                if head != self.head and getattr(self, name) != default:
                    raise ValueError(f"{name}: means nothing to head {self.head!r}; leave it out")
        if self.margin and self.head not in _MARGIN:
            fields = ", ".join(_OWN[self.head])
            raise ValueError(f"margin: head {self.head!r} has {fields} instead; leave it out")
        return self

    @model_validator(mode="after")
    def _margin_rises_with_the_norm(self) -> "TrainConfig":
        if self.norms[0] >= self.norms[1]:
            raise ValueError(f"norms: {self.norms[0]:g} is not below {self.norms[1]:g}")
        low, high = self.norm_margins
        if not 0 <= low <= high < 1.6:
            raise ValueError(f"norm_margins: {low:g} and {high:g} must rise from 0 to below 1.6")
        return self
