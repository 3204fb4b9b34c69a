"""Configuration of attribute control: what made faces are to show."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from raypipe.config.base import Settings


class AttributeConfig(Settings):
    """One attribute, and its goal."""

    name: str = Field(min_length=1, description="what to call it in results")
    estimator: str = Field(
        pattern=r"^[\w.]+:\w+$",
        description='"module:function", called as function(weights, device), which returns a '
        "PyTorch module from images (N, 3, 112, 112), RGB in [-1, 1], to values (N,); those of "
        "raypipe.estimators, or anybody's",
    )
    weights: str | None = Field(None, description="file that the function gets")
    goal: Literal["at_least", "value", "magnitude"] = Field(
        description="at_least: the value or more (quality); value: it (pitch); magnitude: it, of "
        "either sign (published for yaw)"
    )
    value: float | list[float] = Field(
        description="of the goal; of several the images of an identity take turns"
    )
    tolerance: float = Field(
        ge=0,
        description="how far from the goal is near enough; published: 1 for MagFace's quality, 5 "
        "degrees for yaw",
    )
    weight: float = Field(
        1.0, gt=0, description="of the distance from the goal in the loss; published: 1"
    )

    def value_for(self, image: int) -> float:
        """The goal's value for an image of an identity."""
        values = self.value if isinstance(self.value, list) else [self.value]
        return values[image % len(values)]


class AttributesConfig(Settings):
    """AttrOP of Vec2Face: gradient descent on the vectors.

    The defaults are published for the features of ArcFace networks: `gen_image` of
    github.com/HaiyuWu/Vec2Face, pixel_generator/vec2face/model_vec2face.py, which has no bound, and
    the bound of github.com/HaiyuWu/Vec2Face_plus.
    """

    goals: list[AttributeConfig] = Field(min_length=1, description="that hold together")
    steps: int = Field(30, ge=0, description="at most; 0 only looks which images are at their goal")
    rate: float = Field(
        0.1, gt=0, description="of Adam, in units of the spread of the features' components"
    )
    identity_weight: float = Field(
        100.0, ge=0, description="of 1 - cosine of an image's feature and the identity's vector"
    )
    identity_distance: float = Field(
        0.3, ge=0, le=2, description="how large 1 - cosine may be at the end"
    )

    def values_for(self, images: Sequence[int]) -> list[list[float]]:
        """The goals of images of an identity, each a list in the order of `goals`."""
        return [[goal.value_for(image) for goal in self.goals] for image in images]
