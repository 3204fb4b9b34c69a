"""Configuration of `raypipe plan`; no result depends on it."""

from pydantic import Field

from raypipe.config.base import Settings


class SizeConfig(Settings):
    """How large a set is that cannot be read where the plan is made."""

    identities: int = Field(ge=1, description="people in it")
    images: int = Field(ge=1, description="images of all of them")
    image_bytes: float | None = Field(
        None, gt=0, description="mean bytes of an image; none: that of an aligned JPEG"
    )


class PlanPricesConfig(Settings):
    """What machines and storage cost, in dollars; what is left out is not priced."""

    nodes: dict[str, float] = Field(
        {},
        description="dollars an hour, by node type of the cluster file (gpu_l4: 0.9), or for one "
        "GPU by its accelerator (L4: 0.7)",
    )
    storage: float | None = Field(
        None, ge=0, description="dollars for a GB in the bucket for a month"
    )
    disk: float | None = Field(
        None, ge=0, description="dollars for a GB of a node's disk for a month"
    )


class PlanConfig(Settings):
    """What a plan cannot find out for itself."""

    sources: dict[str, SizeConfig] = Field(
        {}, description="name of a source of ingest → its size, where it cannot be read"
    )
    galleries: dict[str, SizeConfig] = Field(
        {}, description="name of a gallery → its size, where it cannot be read"
    )
    prices: PlanPricesConfig = PlanPricesConfig()
    months: float = Field(1.0, ge=0, description="months that the results stay in the bucket")
