"""Configuration of the `assemble` job."""

from typing import Literal

from pydantic import Field, model_validator

from raypipe.config.base import Pool, Settings


class SimilarityConfig(Settings):
    """Which images are in, by the cosine of their embedding to the centre of their identity: the
    template of its images or, where they were made of one reference or vector, that one."""

    lowest: float | None = Field(
        None, ge=-1, le=1, description="an image below it is rejected; null: none is"
    )
    highest: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="an image above it is rejected, also the picture that others were made of, "
        "which has 1; null: none is",
    )

    @property
    def band(self) -> tuple[float, float]:
        """The lowest and the highest similarity, in [-1, 1]."""
        return (
            -1.0 if self.lowest is None else self.lowest,
            1.0 if self.highest is None else self.highest,
        )

    @model_validator(mode="after")
    def _leaves_something(self) -> "SimilarityConfig":
        lowest, highest = self.band
        if lowest >= highest:
            raise ValueError(f"lowest: {lowest} is not below highest, {highest}")
        return self


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
    similarity: SimilarityConfig | None = Field(
        None, description="filter by similarity to the identity's centre, before min_images"
    )
    choose: Literal["random", "stratified"] = Field(
        "random",
        description="images that stay where there are more than images_per_identity: drawn, or "
        "spread evenly over the identity's range of similarity to its centre",
    )
    order: Literal["shuffled", "similar_first", "dissimilar_first"] = Field(
        "shuffled",
        description="inside a phase: all images shuffled, or level by level of similarity to "
        "their identity's centre, similar (easy) or dissimilar ones first, shuffled in a level",
    )
    levels: int = Field(
        10, ge=1, description="levels of a phase, of equal size, in an order by similarity"
    )
    nearest: bool = Field(
        False,
        description="measure how similar every identity is to the nearest other one of the set, "
        "for a curriculum by it (train.curriculum.by: nearest); an exact search of all pairs",
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
