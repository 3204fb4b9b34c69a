"""Configuration of the job that draws identity vectors."""

from typing import Literal

from pydantic import Field

from raypipe.config.base import Pool, Settings


class VectorsConfig(Settings):
    """Draws vectors of people who do not exist, to make images from."""

    count: int = Field(10_000, ge=1, description="identity vectors to draw")
    law: Literal["components", "gaussian"] = Field(
        "components",
        description="components: a multivariate normal law on the principal components of the "
        "set's class means; gaussian: one normal law for all dimensions, with their mean and "
        "variance, for features around the origin as those of ArcFace networks are",
    )
    source: str | None = Field(
        None,
        min_length=1,
        description="job whose face set the law is fitted on: a folder of the workspace with "
        "embeddings of the network that the generator was trained with; none: the cleaned base set",
    )
    ceiling: float = Field(
        0.3,
        gt=-1,
        le=1,
        description="cosine that every two vectors stay under; published: 0.3 to 0.4 for features "
        "of an ArcFace network, dlib's need about 0.97",
    )
    away_from_source: bool = Field(
        True, description="stay under the ceiling with the people of the source, too"
    )
    pool: Pool = Field(
        Pool(),
        description="what fitting and drawing reserve: num_cpus, num_gpus (with a faiss built for "
        "GPUs) and memory; the vectors and their directions are held, 8 bytes a number",
    )
