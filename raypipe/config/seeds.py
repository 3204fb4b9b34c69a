"""Configuration of the job that draws references of new people."""

from pydantic import Field

from raypipe.config.align import AlignerConfig
from raypipe.config.base import Pool, Settings
from raypipe.config.diffusion import DiffusionConfig
from raypipe.config.gates import GatesConfig
from raypipe.config.prompts import PromptsConfig


class SeedsConfig(Settings):
    """Draws people who do not exist, one reference picture each, with a text-to-image model."""

    number: int = Field(ge=1, description="new people that screening is to let in")
    tries: int = Field(
        3, ge=1, le=100, description="pictures drawn of a person at most until one passes the gates"
    )
    limit: int = Field(
        10,
        ge=1,
        description="people drawn at most for each one asked for; where that is not enough the job "
        "ends with an error",
    )
    prompts: PromptsConfig = PromptsConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    aligner: AlignerConfig = Field(
        AlignerConfig(margin=0.25),
        description="finds the face of a picture and makes the 112×112 reference of it",
    )
    gates: GatesConfig = GatesConfig()
    pool: Pool = Field(
        Pool(batch_size=32),
        description="actors that hold the text-to-image model; the batch in multiples of "
        "diffusion.batch_size",
    )
    reference_pool: Pool = Field(
        Pool(batch_size=32), description="actors that align, check and embed what was drawn"
    )
