"""Configuration of the embedder and of the embedding stage."""

from typing import Literal

from pydantic import Field, model_validator

from raypipe.config.base import Licence, Pool, Settings


class EmbedderConfig(Settings):
    """The network that turns a 112×112 face into a vector."""

    kind: Literal["dlib", "iresnet", "insightface"] = Field(
        "dlib",
        description="dlib: the 29-layer ResNet that ships with raypipe, 128 numbers; iresnet: "
        "arcface_torch's network, 512 numbers; insightface: an ONNX recognition model",
    )
    weights: str | None = Field(
        None,
        description="weights file, a path or URI (s3://, gs://, hf://OWNER/REPOSITORY/FILE), which "
        "is fetched once a node: .safetensors, .pt or .pth for dlib and iresnet, .onnx for "
        "insightface; none: the file that ships with raypipe (dlib only)",
    )
    depth: Literal["10", "18", "34", "50", "100", "200"] = Field(
        "50", description="layers of an iresnet"
    )
    width: int = Field(64, ge=4, description="planes of an iresnet's first stage; published: 64")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "bfloat16", description="precision of an iresnet on a GPU; a CPU always computes in float32"
    )
    licence: Licence = None

    @model_validator(mode="after")
    def _weights_given(self) -> "EmbedderConfig":
        if self.kind != "dlib" and self.weights is None:
            raise ValueError(f"kind {self.kind!r} needs weights: give the path of its weights file")
        return self


class EmbedConfig(Settings):
    """Embeds every kept image. One model batch holds images of one identity only."""

    images_per_batch: int = Field(
        64,
        ge=1,
        description="images in a model batch at most; an identity with more takes several batches, "
        "and two identities never share one, so that results do not depend on who is neighbour",
    )
    pool: Pool = Pool()
