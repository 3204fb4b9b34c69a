"""The question that goes with a sheet, and what counts as an answer."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raypipe import storage
from raypipe.errors import UserError
from raypipe.judging.sheets import Sheet


class Outlier(BaseModel):
    """A face that shows somebody else, as the model says."""

    model_config = ConfigDict(extra="forbid")

    label: int
    confidence: float = Field(ge=0, le=1)
    reason: str


class Answer(BaseModel):
    """What the model says of a sheet; an empty list is an answer."""

    model_config = ConfigDict(extra="forbid")

    outliers: list[Outlier]


class MalformedError(ValueError):
    """An answer that is none; the text says why."""


# Structured output knows no limits of numbers; `read` checks them.
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "outliers": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "label": {"type": "integer"},
                    "confidence": {"type": "number"},
                    "reason": {"type": "string"},
                },
                "required": ["label", "confidence", "reason"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["outliers"],
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, which is data.

    Attributes:
        version: of the text.
        system: first message.
        user: message beside the image, with {labels} and {anchors}.
        anchors: sentence for {anchors}, with {anchors}, on sheets that have some.
    """

    version: int
    system: str
    user: str
    anchors: str

    @classmethod
    def load(cls, path: str | None) -> "Question":
        """The question of a YAML file; of the one that comes with raypipe where there is none.

        Raises:
            UserError: where a key is missing or unknown, or the text has no place for the labels.
        """
        if path is None:
            text = resources.files("raypipe.judging").joinpath("prompt.yaml").read_bytes()
        else:
            text = storage.read_bytes(path)
        where = path or "prompt.yaml"
        try:
            values = yaml.safe_load(text)
            found = cls(**values)
            found.user.format(labels="", anchors="")
            found.anchors.format(anchors="")
        except (yaml.YAMLError, TypeError, KeyError, IndexError, ValueError) as error:
            raise UserError(
                f"{where}: a prompt has version, system, user and anchors, with {{labels}} and "
                f"{{anchors}} in user ({' '.join(str(error).split())})"
            ) from error
        if "{labels}" not in found.user:
            raise UserError(
                f"{where}: user has no {{labels}}; the model would not know the numbers"
            )
        return found

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of all that the model reads beside the image, the schema among it."""
        values = [self.version, self.system, self.user, self.anchors, SCHEMA]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def ask(self, labels: tuple[int, ...], anchors: frozenset[int]) -> str:
        """The text beside a sheet."""

        def said(numbers: list[int]) -> str:
            return ", ".join(f"{number:03d}" for number in numbers)

        known = self.anchors.format(anchors=said(sorted(anchors))) + " " if anchors else ""
        return self.user.format(labels=said(list(labels)), anchors=known)

    def key(self, sheet: Sheet, model: str) -> str:
        """Hex SHA-256 of what is asked: image, numbers, question, model."""
        values = [
            *(self.digest, model, self.ask(sheet.labels, sheet.anchors)),
            hashlib.sha256(sheet.data).hexdigest(),
        ]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def read(text: str, sheet: Sheet) -> Answer:
    """Checks what the model wrote about a sheet.

    Raises:
        MalformedError: where it is no JSON of the schema, names a face that is not on the sheet or
            one twice, or says that all show somebody else.
    """
    try:
        answer = Answer.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise MalformedError(f"{where or 'answer'}: {first['msg']}") from None
    named = [outlier.label for outlier in answer.outliers]
    if strange := sorted(set(named) - set(sheet.labels)):
        raise MalformedError(f"names {strange[0]:03d}, which is not on the sheet")
    if len(set(named)) < len(named):
        raise MalformedError("names a face twice")
    if len(named) == len(sheet.labels):
        raise MalformedError("says of every face that it shows somebody else")
    return answer
