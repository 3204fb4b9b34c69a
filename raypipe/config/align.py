"""Configuration of the aligner."""

from typing import Literal

from pydantic import Field, model_validator

from raypipe.config.base import Licence, Settings


class AlignerConfig(Settings):
    """Finds the faces of a photograph and warps them onto the 112×112 ArcFace template."""

    kind: Literal["dlib", "insightface"] = Field(
        "dlib",
        description="dlib: HOG detector and 5 landmarks, no weights to bring (extra `demo`); "
        "insightface: the SCRFD detector of a model pack",
    )
    weights: str | None = Field(
        None,
        description="insightface only: the detector's .onnx file, or the folder of a model pack "
        "that holds one (det_*.onnx or scrfd_*.onnx); a path or URI",
    )
    upsample: int = Field(
        1,
        ge=0,
        le=3,
        description="dlib: times the photograph is doubled; HOG sees faces of 80 pixels",
    )
    margin: float = Field(
        0.0,
        ge=0,
        le=1,
        description="dlib: the photograph's edge is repeated around it over this share of its "
        "longer side; HOG wants room around a face: of 100 faces that fill their picture, 0.25 "
        "finds 76 where 0 finds 70",
    )
    input_size: int = Field(
        640,
        ge=32,
        multiple_of=32,
        description="SCRFD: side of the square the photograph is fitted in",
    )
    min_score: float | None = Field(
        None,
        description="detector score a face needs; none: the detector's own (dlib 0, SCRFD 0.5)",
    )
    encoding: Literal["png", "jpeg"] = Field(
        "png", description="how crops are stored: png keeps every bit, jpeg (quality 95) is smaller"
    )
    licence: Licence = None

    @model_validator(mode="after")
    def _weights_given(self) -> "AlignerConfig":
        if self.kind == "insightface" and self.weights is None:
            raise ValueError("kind 'insightface' needs weights: give the path of its model pack")
        return self
