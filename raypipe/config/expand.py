"""Configuration of the expansion job."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raypipe.config.attributes import AttributesConfig
from raypipe.config.base import Licence, Pool, Settings

Cosine = Annotated[float, Field(ge=-1, le=1)]
_SHIPPED = {"vec2face": "vec2face_small.safetensors", "cemiface": "cemiface_small.safetensors"}
# What means something to one kind alone.
_OWN = {"vec2face": ("perturbation", "attributes"), "cemiface": ("similarity", "steps")}


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


class PainterConfig(Settings):
    """A generator that paints images of a person from the embedding of that person."""

    kind: Literal["vec2face", "cemiface"] = Field(
        "vec2face",
        description="vec2face: from the embedding with noise on it; cemiface: by diffusion, from "
        "the embedding and a wanted similarity to it",
    )
    weights: str | None = Field(
        None,
        description="vec2face: vec2face_generator.pth and other checkpoints of Vec2Face, or what "
        "train_generator wrote; cemiface: what train_cemiface wrote; its features are those of "
        "`embedder`; none: the small one that ships with raypipe, for dlib's",
    )
    licence: Licence = None
    perturbation: PerturbationConfig = PerturbationConfig()
    attributes: AttributesConfig | None = Field(
        None,
        description="vec2face: what images are to show, by gradient descent on their vectors",
    )
    similarity: Cosine | tuple[Cosine, Cosine] = Field(
        0.0,
        description="cemiface: the wanted similarity m, or a range [low, high] that it is uniform "
        "in; published: 0 (arXiv 2409.18876, section 4). What is measured is more than m",
    )
    steps: int = Field(20, ge=1, le=1000, description="cemiface: of DDIM; published: 20")

    @property
    def weights_file(self) -> str:
        """Name of the weight file, the shipped one's where none is stated."""
        return (self.weights or _SHIPPED[self.kind]).rpartition("/")[2]

    @property
    def foreign(self) -> list[str]:
        """Fields that mean nothing to the kind."""
        return [name for kind, names in _OWN.items() if kind != self.kind for name in names]

    def is_set(self, name: str) -> bool:
        """Whether a field differs from its default."""
        return bool(getattr(self, name) != PainterConfig.model_fields[name].default)

    @model_validator(mode="after")
    def _fields_belong_to_the_kind(self) -> "PainterConfig":
        for name in self.foreign:
            if self.is_set(name):
                raise ValueError(f"{name}: means nothing to kind {self.kind!r}; leave it out")
        if isinstance(self.similarity, tuple) and self.similarity[0] >= self.similarity[1]:
            raise ValueError(f"similarity: {self.similarity[0]} is not below {self.similarity[1]}")
        return self


class MixedPainterConfig(PainterConfig):
    """A further generator, and how much of the work it does."""

    share: float = Field(gt=0, lt=1, description="of an identity's images, exact by identity")


class ExpandConfig(PainterConfig):
    """Makes images of identities that have a reference image or a vector.

    The fields of a generator say how; `mix` adds others, each with the same fields.
    """

    sources: list[str] = Field(
        ["vec"],
        min_length=1,
        description="sources whose identities are expanded, such as vec for sampled vectors; all "
        "others pass as they are",
    )
    mix: list[MixedPainterConfig] = Field(
        [],
        description="further generators, each with its share of an identity's images; the first "
        "one makes the rest",
    )
    band: tuple[Cosine, Cosine] | None = Field(
        None,
        description="[low, high]: wanted similarity of an image to its identity's vector, a cosine "
        "of raw features; the images of an identity are spread evenly over it, and one outside is "
        "drawn again. It takes the place of perturbation and similarity. Look at dial.json for "
        "what a generator reaches: with dlib's features all cosines are high",
    )
    images: int = Field(
        50,
        ge=1,
        le=10_000,
        description="kept images of an identity afterwards, its reference image among them",
    )
    attempts: int = Field(
        5, ge=1, description="times an image is drawn at most until one passes the checks"
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
        description="actors that hold the generators and the embedder, and compare with all "
        "identities and galleries: 4 bytes a number of theirs in the memory of each",
    )

    @property
    def painters(self) -> Sequence[PainterConfig]:
        """The generators, the first one first."""
        return [self, *self.mix]

    @property
    def shares(self) -> list[Fraction]:
        """What each of them makes of an identity's images; they sum to 1."""
        others = [Fraction(str(painter.share)) for painter in self.mix]  # 0.1 is one tenth
        return [1 - sum(others, Fraction()), *others]

    @model_validator(mode="after")
    def _shares_and_band(self) -> "ExpandConfig":
        if self.shares[0] <= 0:
            raise ValueError(
                "mix: the shares sum to 1 or more, and nothing is left for the first generator"
            )
        if self.band is None:
            return self
        if self.band[0] >= self.band[1]:
            raise ValueError(f"band: {self.band[0]} is not below {self.band[1]}")
        for painter in self.painters:
            for name in ("perturbation", "similarity"):
                if painter.is_set(name):
                    raise ValueError(f"{name}: a band sets it for every image; leave one out")
        return self
