"""Configuration of the `assemble` job."""

from pydantic import Field, model_validator

from raypipe.config.base import Pool, Settings


class AssembleConfig(Settings):
    """From screened identities to a training set: a fixed number of images each, in order."""

    images_per_identity: int = Field(
        50, ge=1, le=10_000, description="images of every identity in the set"
    )
    min_images: int = Field(
        10, ge=1, description="an identity with fewer kept images is replaced, or dropped"
    )
    phases: list[str] = Field(
        ["new", "base"],
        min_length=1,
        description="sources of the identities in the order of training; synthetic ones first",
    )
    replacement: str | None = Field(
        "new",
        description="source whose identities only stand in for lost ones, one for one; "
        "null: every source is used in full and a lost identity is dropped",
    )
    shard_size: int = Field(
        10_000,
        ge=1,
        description="images in a Parquet file and in a tar; a worker holds four times their bytes",
    )
    jpeg_quality: int = Field(95, ge=1, le=100, description="quality of the augmented images")
    pool: Pool = Field(Pool(), description="actors that augment and that write the shards")

    @model_validator(mode="after")
    def _replacement_has_a_phase(self) -> "AssembleConfig":
        if len(set(self.phases)) != len(self.phases):
            raise ValueError(f"phases: a source stands twice in {self.phases}")
        if self.replacement is not None and self.replacement not in self.phases:
            raise ValueError(
                f"replacement: {self.replacement!r} is none of the phases {self.phases}; "
                "name one of them, or null for no replacement"
            )
        return self
