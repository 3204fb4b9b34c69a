"""What every configuration class shares."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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
