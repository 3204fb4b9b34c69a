"""Configuration of the gates of references."""

from pydantic import Field

from raypipe.config.base import Settings


class GatesConfig(Settings):
    """What a picture that was drawn for a reference must show, besides exactly one face.

    benchmarks/gates.py says what the defaults let pass.
    """

    min_size: float | None = Field(
        32,
        gt=0,
        description="shorter side of the face's box in pixels of the picture; 80 and more fill the "
        "112×112 crop without being enlarged; none: not checked",
    )
    min_sharpness: float | None = Field(
        0.4,
        ge=0,
        le=1,
        description="1 − blur effect (Crete et al. 2007) of the face; 0.5 is a sharp photograph, "
        "0.35 one blurred by σ = 2 pixels of the crop; none: not checked",
    )
    max_yaw: float | None = Field(
        35,
        ge=0,
        le=90,
        description="degrees that the face is turned to a side at most; none: not checked",
    )
    max_pitch: float | None = Field(
        25,
        ge=0,
        le=90,
        description="degrees that the face looks up or down at most; none: not checked",
    )
    max_flatness: float | None = Field(
        0.65,
        ge=0,
        le=1,
        description="Gini coefficient of the steps between pixels of the face; photographs have "
        "0.4 to 0.6, drawings 0.7 to 0.95; none: not checked",
    )
