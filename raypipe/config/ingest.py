"""Configuration of the ingest job."""

from pydantic import Field

from raypipe.config.align import AlignerConfig
from raypipe.config.base import Pool, Settings


class IngestConfig(Settings):
    """Where the base set is, and how its images are read."""

    path: str = Field(description="base set: a folder or URI with one folder of images a person")
    source: str = Field(
        "base", min_length=1, description="name that the rows carry as their source"
    )
    max_bytes: int = Field(
        20_000_000, ge=1, description="bytes of an image file; a larger one is rejected unread"
    )
    aligner: AlignerConfig | None = Field(
        None, description="aligns faces to 112×112 pixels; none: the images are aligned already"
    )
    pool: Pool = Field(Pool(), description="actors that read, check and align")
