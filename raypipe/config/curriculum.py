"""Configuration of the order in which a training sees its images."""

from typing import Literal

from pydantic import Field, model_validator

from raypipe.config.base import Settings


class CurriculumConfig(Settings):
    """Phases, from easy to hard, and a schedule over them; every epoch shuffles anew in a phase."""

    schedule: Literal["sequential", "paced", "mixed"] = Field(
        "sequential",
        description="sequential: every epoch goes through the phases one after another; paced: "
        "harder phases are admitted over the epochs, and what is admitted is shuffled together; "
        "mixed: everything is shuffled together",
    )
    by: Literal["source", "similarity", "nearest"] = Field(
        "source",
        description="source: the phases of the set; similarity: images by their similarity to the "
        "centre of their identity, most similar first; nearest: identities by their similarity to "
        "the nearest other identity, least similar first",
    )
    levels: int = Field(3, ge=2, description="phases of equal size, by similarity or nearest")
    start: float = Field(
        0.25, gt=0, le=1, description="paced: share of the images admitted in the first epoch"
    )
    full_at: float = Field(
        0.5, gt=0, le=1, description="paced: share of the epochs after which all are admitted"
    )
    power: float = Field(
        1.0, gt=0, description="paced: below 1 admits early, above 1 late; 1 is linear"
    )
    fade: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="paced: share of a phase that leaves with every epoch after the next phase was "
        "admitted in full",
    )
    window: int = Field(
        100_000,
        ge=1,
        description="images shuffled among each other; of a larger phase, row groups of the set "
        "are drawn until there are so many. A reader holds so many images",
    )

    @model_validator(mode="after")
    def _fields_belong_to_the_schedule(self) -> "CurriculumConfig":
        for name in ("start", "full_at", "power", "fade"):
            default = CurriculumConfig.model_fields[name].default
            if self.schedule != "paced" and getattr(self, name) != default:
                raise ValueError(f"{name}: means nothing to schedule {self.schedule!r}")
        if self.by == "source" and self.levels != CurriculumConfig.model_fields["levels"].default:
            raise ValueError("levels: phases by source are those of the set; leave it out")
        return self
