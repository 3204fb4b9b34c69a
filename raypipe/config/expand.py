"""Configuration of the expansion job."""

from typing import Literal

from pydantic import Field

from raypipe.config.attributes import AttributesConfig
from raypipe.config.base import Licence, Pool, Settings


class PerturbationConfig(Settings):
    """How the vectors of an identity's images differ from the identity's."""

    kind: Literal["mixture", "reference", "directed"] = Field(
        "mixture",
        description="mixture: noise of 0.3, 0.5 and 0.7 for 40, 40 and 20 % of an identity's "
        "images, as published for sampled vectors; reference: noise of 0.2, as published for the "
        "vector of a photograph; directed: turned by an angle whose cosine is uniform, never past "
        "the bisector to the nearest other identity (IDperturb)",
    )
    scale: float | None = Field(
        None,
        gt=0,
        description="unit of the noise; published: 1, for raw features of ArcFace-R100; none: the "
        "spread of the set's own class means, for any embedder",
    )
    lowest: float = Field(
        0.6, ge=0, le=1, description="directed: smallest cosine to the identity's vector"
    )


class ExpandConfig(Settings):
    """Makes images of identities that have a reference image or a vector, with Vec2Face."""

    sources: list[str] = Field(
        ["vec"],
        min_length=1,
        description="sources whose identities are expanded, such as vec for sampled vectors; all "
        "others pass as they are",
    )
    weights: str | None = Field(
        None,
        description="generator: vec2face_generator.pth and other checkpoints of Vec2Face, or what "
        "train_generator wrote; its features are those of `embedder`; none: the small one that "
        "ships with raypipe, for dlib's",
    )
    licence: Licence = None
    images: int = Field(
        50,
        ge=1,
        le=10_000,
        description="kept images of an identity afterwards, its reference image among them",
    )
    attempts: int = Field(
        5, ge=1, description="times an image is drawn at most until one passes the checks"
    )
    perturbation: PerturbationConfig = PerturbationConfig()
    attributes: AttributesConfig | None = Field(
        None, description="what images are to show, by gradient descent on their vectors"
    )
    false_match_rate: float = Field(
        1e-3,
        gt=0,
        le=0.1,
        description="chance that an image of another person would pass as this one; whether an "
        "image is somebody else or a person of a gallery is decided at screen.false_match_rate",
    )
    jpeg_quality: int = Field(95, ge=1, le=100, description="of the images made")
    pool: Pool = Field(
        Pool(),
        description="actors that hold the generator and the embedder, and compare with all "
        "identities and galleries: 4 bytes a number of theirs in the memory of each",
    )
