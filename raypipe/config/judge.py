"""Configuration of the vision model that looks at identities."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from raypipe.config.base import Pool, Settings


class SheetConfig(Settings):
    """How the faces of an identity are laid out on images for the model.

    The defaults fill two tiles of 512×512 with 54 faces of 85 pixels: 425 tokens for gpt-4o.
    """

    face: int = Field(85, ge=32, le=512, description="pixels of a face's side")
    columns: int = Field(6, ge=1, le=20, description="faces side by side")
    rows: int = Field(9, ge=1, le=40, description="rows of faces, at most")
    anchors: int = Field(
        5,
        ge=1,
        description="faces that stand on every sheet, where an identity needs more than one: those "
        "most similar to its centre",
    )

    @property
    def capacity(self) -> int:
        """Faces on a sheet, at most."""
        return self.columns * self.rows

    @model_validator(mode="after")
    def _anchors_leave_room(self) -> "SheetConfig":
        if self.anchors >= self.capacity:
            raise ValueError(
                f"anchors: {self.anchors} of the {self.capacity} places of a sheet; choose fewer"
            )
        return self


class PriceConfig(Settings):
    """What a call costs. The defaults are OpenAI's list prices for gpt-4o; check them."""

    input: float = Field(2.5, ge=0, description="dollars for a million tokens that are sent")
    output: float = Field(10.0, ge=0, description="dollars for a million tokens that come back")
    batch: float = Field(0.5, gt=0, le=1, description="share of these that the Batch API costs")
    image_base: int = Field(85, ge=0, description="tokens of any image; 85 for gpt-4o")
    image_tile: int = Field(170, ge=0, description="tokens of a tile of 512×512; 170 for gpt-4o")


class JudgeConfig(Settings):
    """Asks a vision model which faces of an identity show somebody else."""

    kind: Literal["none", "openai"] = Field(
        "none",
        description="none: nothing leaves the machine; openai: a service that speaks OpenAI's "
        "protocol, such as OpenAI itself or vLLM",
    )
    base_url: str = Field("https://api.openai.com/v1", description="address of the service")
    endpoints: list[str] = Field(
        ["api.openai.com"],
        description="hosts that faces may be sent to; base_url has to name one of them",
    )
    model: str = Field("gpt-4o", description="name of the model at the service")
    key_variable: str = Field(
        "OPENAI_API_KEY", description="environment variable that holds the key"
    )
    key_file: str | None = Field(
        None, description="file that holds the key, in place of the environment variable"
    )
    prompt: str | None = Field(
        None, description="YAML with version, system and user; none: the one that comes with it"
    )
    sheet: SheetConfig = SheetConfig()
    prices: PriceConfig = PriceConfig()
    budget: float | None = Field(
        None, gt=0, description="dollars that may be spent in all; the job stops before it is more"
    )
    answers: str = Field(
        "{workspace}/answers",
        description="folder of all answers that were paid for, by the digest of what was asked",
    )
    concurrency: int = Field(64, ge=1, le=2000, description="calls at a time")
    requests_per_minute: int = Field(5000, ge=1, description="calls that the service allows")
    tokens_per_minute: int = Field(800_000, ge=1, description="tokens that the service allows")
    timeout: float = Field(60.0, gt=0, description="seconds until a call counts as lost")
    retries: int = Field(
        6, ge=0, description="times a call is tried again after 429, 5xx or a timeout"
    )
    asks: int = Field(
        3, ge=1, description="times the model is asked until an answer is well formed"
    )
    max_output: int = Field(2000, ge=64, description="tokens an answer may have")
    pool: Pool = Field(
        Pool(batch_size=256),
        description="actors that ask; each has its part of concurrency and limits",
    )

    @model_validator(mode="after")
    def _endpoint_is_allowed(self) -> "JudgeConfig":
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise ValueError(f"base_url: {self.base_url!r} is no address of a service")
        if address.username or address.password or address.query:
            raise ValueError("base_url: holds a user name, a password or a key; take it out")
        if address.hostname not in self.endpoints:
            raise ValueError(
                f"base_url: faces may not be sent to {address.hostname}; if they may, add it to "
                "endpoints"
            )
        return self
