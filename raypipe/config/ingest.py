"""Configuration of the ingest job."""

from pydantic import Field, model_validator

from raypipe.config.align import AlignerConfig
from raypipe.config.base import Licence, Pool, Settings


class SourceConfig(Settings):
    """Identities that come from one place."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$",
        description="what rows carry as their source, and the first part of their identity_id",
    )
    path: str = Field(
        description="file, folder or URI in any format that raypipe reads: one folder of images a "
        "person, HSFace LMDB, RecordIO, WebDataset, Parquet, a list of paths, a face set"
    )
    mask: str | None = Field(
        None, description=".npy file with the indices of the records to take; for an LMDB"
    )
    licence: Licence = None


class IngestConfig(Settings):
    """Where the identities are, and how their images are read."""

    sources: list[SourceConfig] = Field(
        [],
        description="where identities come from, in the order they have in the set: the base set, "
        "and new ones that stand in for lost ones",
    )
    max_bytes: int = Field(
        20_000_000, ge=1, description="bytes of an image file; a larger one is rejected unread"
    )
    aligner: AlignerConfig | None = Field(
        None, description="aligns faces to 112×112 pixels; none: the images are aligned already"
    )
    pool: Pool = Field(Pool(), description="actors that read, check and align")

    @model_validator(mode="after")
    def _names_differ(self) -> "IngestConfig":
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError(f"sources: a name stands twice in {names}")
        return self
