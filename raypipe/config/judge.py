"""Configuration of the judging job: the experts, and the vision model among them."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from raypipe.config.base import Pool, Settings
from raypipe.config.embed import EmbedderConfig
from raypipe.judging.experts import NAMES


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


class QualityConfig(Settings):
    """Below which quality a face is not worth keeping."""

    estimator: str = Field(
        "raypipe.estimators:face_quality",
        pattern=r"^[\w.]+:\w+$",
        description='"module:function", as for the attributes of expand, such as '
        "raypipe.estimators:magface",
    )
    weights: str | None = Field(None, description="file that the function gets")
    lowest: float = Field(-1.0, description="quality that a face needs, in the estimator's unit")


class JudgeConfig(Settings):
    """Combines experts on which faces of an identity show somebody else; a vision model can be one
    of them."""

    kind: Literal["none", "openai"] = Field(
        "none",
        description="none: nothing leaves the machine; openai: a service that speaks OpenAI's "
        "protocol, such as OpenAI itself or vLLM",
    )
    experts: list[str] = Field(
        ["clustering", "vision"],
        min_length=1,
        description=f"of {', '.join(NAMES)}: what `clean` found, a second embedder, quality, the "
        "vision model (where kind is not none)",
    )
    fusion: Literal["weights", "any", "all", "majority"] = Field(
        "weights",
        description="weights: by how often each expert errs, estimated from all verdicts (Dawid "
        "and Skene); any, all, majority: by the votes of those that were asked",
    )
    sample_identities: int = Field(
        2000, ge=2, description="identities that the weights are estimated on"
    )
    ask: Literal["all", "unsure", "audit"] = Field(
        "all",
        description="whose faces the vision model sees. all: everybody's; unsure: of identities "
        "with an image of which clustering is unsure, and of a random share of the others; audit: "
        "of that share alone",
    )
    margin: float = Field(
        0.02,
        gt=0,
        lt=0.5,
        description="unsure: the probability that an image shows somebody else lies between this "
        "and 1 less this",
    )
    audit: float = Field(0.02, ge=0, le=1, description="random share of the identities")
    second: EmbedderConfig | None = Field(None, description="embedder of the expert `embedder`")
    quality: QualityConfig = QualityConfig()
    mode: Literal["calls", "batch"] = Field(
        "calls",
        description="calls: answers within seconds; batch: by the Batch API, within a day and at "
        "half the price",
    )
    poll_seconds: float = Field(30.0, gt=0, description="batch: between two looks")
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
        Pool(batch_size=512),
        description="actors that ask; each has its part of concurrency and limits",
    )

    @property
    def panel(self) -> list[str]:
        """The experts that speak, in their order."""
        return [name for name in self.experts if name != "vision" or self.kind != "none"]

    @field_validator("experts")
    @classmethod
    def _experts_are_known(cls, experts: list[str]) -> list[str]:
        for name in experts:
            if name not in NAMES:
                raise ValueError(f"no expert {name!r}; there are {', '.join(NAMES)}")
        if len(set(experts)) < len(experts):
            raise ValueError("an expert is named twice")
        return experts

    @model_validator(mode="after")
    def _panel_can_speak(self) -> "JudgeConfig":
        if not self.panel:
            raise ValueError("experts: none is left where kind is none; name one beside vision")
        if ("embedder" in self.experts) != (self.second is not None):
            raise ValueError("second: the embedder of the expert `embedder`; name both or neither")
        if self.kind != "none" and "vision" not in self.experts:
            raise ValueError(f"experts: vision is missing, and kind is {self.kind!r}")
        return self

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
