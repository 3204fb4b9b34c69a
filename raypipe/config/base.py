"""What every configuration class shares."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

# Not in what is dumped: neither what a job makes nor whether it is made anew depends on it.
Licence = Annotated[
    str | None,
    Field(
        min_length=1,
        exclude=True,
        description="licence it stands under, for the dataset card and the report; none: what is "
        'known of published weights, else "not stated"',
    ),
]


class Settings(BaseModel):
    """A part of the configuration: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pool(Settings):
    """Resources of an actor pool. They change how fast a job is, never what it makes."""

    min: int = Field(1, ge=1, description="actors at the start, and at least")
    max: int = Field(1, ge=1, description="actors at most")
    num_cpus: float = Field(1.0, ge=0, description="CPUs an actor reserves")
    num_gpus: float = Field(0.0, ge=0, description="GPUs an actor reserves; a fraction shares one")
    batch_size: int = Field(8, ge=1, description="identities handed to an actor in one call")
    accelerator_type: str | None = Field(None, description="GPU type to run on, for example L4")
    memory: int | None = Field(None, description="bytes of memory an actor reserves")


class Workers(Settings):
    """Training processes of Ray Train. Except for their number and the type of device they change
    how a run goes, not what comes out of it."""

    num_workers: int = Field(1, ge=1, description="training processes")
    use_gpu: bool = Field(False, description="one GPU for each worker")
    cpus_per_worker: float = Field(
        1.0, gt=0, description="CPUs a worker reserves, and threads it computes with"
    )
    accelerator_type: str | None = Field(None, description="GPU type to train on, for example H200")
    prefetch_batches: int = Field(2, ge=1, description="batches decoded ahead of the step")
    max_failures: int = Field(
        3, ge=0, description="how often training goes on from its checkpoint after a worker died"
    )


class FeatureTraining(Workers):
    """What the trainings on images and their features share."""

    faces: str = Field(
        "{workspace}/embed", description="face set with features, such as `embed` makes"
    )
    epochs: int = Field(ge=1, description="passes over the set")
    warmup_epochs: float = Field(ge=0, description="epochs in which the rate rises linearly")
    period: int | None = Field(
        None,
        ge=1,
        description="batches between checkpoints, each with a picture; none: as many as an epoch "
        "has",
    )
    batch_size: int = Field(ge=1, description="images a worker takes in one step")
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one update")
    precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="mixed precision of Accelerate; published: fp16"
    )
    shuffle: int = Field(10_000, ge=1, description="images a worker shuffles among")
    grid: int = Field(8, ge=1, le=64, description="people in a picture")
    store: Literal["float32", "float16"] = Field("float32", description="type of stored weights")

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs:g} of {self.epochs} epochs; choose fewer"
            )
        return self
