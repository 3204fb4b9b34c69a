"""Configuration of what is done to an image before a recognizer is trained on it."""

from typing import Any, Self

from pydantic import Field, model_validator

from raypipe.config.base import Settings

# flip: arcface_torch, which does nothing else. adaface: AdaFace's `Augmenter` with its defaults,
# also the basic one of CVLface. hsface: the same in SOTA-FR with `augment` and random erasing, what
# HSFace10K is published with.
PRESETS: dict[str, dict[str, float]] = {
    "none": {},
    "flip": {"flip": 0.5},
    "adaface": {"flip": 0.5, "crop": 0.2, "low_resolution": 0.2, "photometric": 0.2},
    "hsface": {"flip": 0.5, "crop": 0.3, "low_resolution": 0.3, "photometric": 0.3, "erase": 0.5},
}


class AugmentConfig(Settings):
    """Probabilities, or the name of a preset in their place (raypipe/batch_augment.py)."""

    flip: float = Field(
        0.0, ge=0, le=1, description="mirror left-right; published (arcface_torch): 0.5"
    )
    crop: float = Field(
        0.0,
        ge=0,
        le=1,
        description="black outside of a rectangle; published: 0.2 (AdaFace), 0.3 (SOTA-FR)",
    )
    low_resolution: float = Field(
        0.0,
        ge=0,
        le=1,
        description="make small and large again; published: 0.2 (AdaFace), 0.3 (SOTA-FR)",
    )
    photometric: float = Field(
        0.0,
        ge=0,
        le=1,
        description="other brightness, contrast and saturation; published: 0.2 (AdaFace), 0.3 "
        "(SOTA-FR)",
    )
    erase: float = Field(
        0.0, ge=0, le=1, description="grey rectangle; published (torchvision, HSFace): 0.5"
    )

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        if data not in PRESETS:
            raise ValueError(f"no preset {data!r}; there are {', '.join(PRESETS)}")
        return PRESETS[data]

    @classmethod
    def preset(cls, name: str) -> Self:
        """The probabilities that go by a name.

        Raises:
            ValueError: where there is no such preset, naming those there are.
        """
        return cls.model_validate(name)
