"""Configuration of the screening job."""

from pydantic import Field, model_validator

from raypipe.config.align import AlignerConfig
from raypipe.config.base import Pool, Settings
from raypipe.config.ingest import SourceConfig


class GalleryConfig(SourceConfig):
    """Photographs of real people that no identity may be; its name is also a folder's."""

    aligner: AlignerConfig | None = Field(
        None, description="aligns faces to 112×112 pixels; none: the images are aligned already"
    )


class ScreenConfig(Settings):
    """Refuses identities that are a real person of a gallery, or the same person as an earlier
    one."""

    galleries: list[GalleryConfig] = Field([], description="public galleries to compare with")
    false_match_rate: float = Field(
        1e-5,
        gt=0,
        le=0.1,
        description="chance that one comparison of two different people reaches the threshold; an "
        "identity is compared with every face of a gallery and with every other identity, so "
        "choose it well below 1 / (number of faces) and 1 / (number of identities)",
    )
    pool: Pool = Field(
        Pool(batch_size=64),
        description="actors that compare identities with the galleries; with num_gpus and a faiss "
        "built for GPUs, on the GPU",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> "ScreenConfig":
        names = [gallery.name for gallery in self.galleries]
        if len(set(names)) != len(names):
            raise ValueError(f"galleries: a name stands twice in {names}")
        return self
