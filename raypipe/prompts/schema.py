"""The YAML of a grammar: its shape, read safely."""

import difflib
import reprlib
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from raypipe import storage
from raypipe.config.base import Settings
from raypipe.errors import UserError

MOST_BYTES = 2**19  # of the file


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=64)]
Text = Annotated[str, Field(max_length=2000)]
Wordings = Annotated[list[Text], Field(min_length=1, max_length=100), BeforeValidator(_listed)]
ValueName = Annotated[str, Field(min_length=1, max_length=100)]


class ValueSource(Settings):
    """A value of an attribute. A bare number is its weight."""

    weight: float = Field(
        ge=1e-6, le=1e6, description="share of the draws, divided by the attribute's sum of weights"
    )
    text: Wordings | None = Field(
        None,
        description="what a prompt says, in one or several wordings, equally likely; none: the "
        "value's name; empty: nothing",
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_weight(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"weight": value} if number else value


class GrammarSource(Settings):
    """What the file of a grammar holds."""

    prompt: Wordings = Field(
        description="text with {attribute} and {phrase} slots; of several wordings each is "
        "equally likely"
    )
    negative: Text = Field("", description="what no image is to show; plain text")
    phrases: dict[Name, Wordings] = Field(
        default={},
        max_length=100,
        description="pieces of prompts, with slots; one whose slots are all empty is empty",
    )
    attributes: dict[Name, Annotated[dict[ValueName, ValueSource], Field(min_length=1)]] = Field(
        min_length=1, max_length=64, description="values of each attribute, with their weights"
    )
    exclude: list[Annotated[dict[str, list[str]], Field(min_length=1)]] = Field(
        default=[],
        max_length=1000,
        description="combinations that never occur: attribute to values; excluded is who has one "
        "of the values in every attribute named",
    )


class _Loader(yaml.SafeLoader):
    """The safe loader, without two of its habits.

    Of a key that stands twice it takes the last; keys merged with `<<` can multiply without end.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            problem = None
            if key.tag == "tag:yaml.org,2002:merge":
                problem = "keys cannot be merged with <<; write them out"
            elif isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"{key.value!r} stands twice; keep one of them"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def hint(name: str, known: list[str]) -> str:
    """What to write instead of an unknown name."""
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"


def _explain(error: ValidationError) -> str:
    # A misspelt key is also a missing one; the first says what to do.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"] if part != "[key]"]
    key = ".".join(location)
    match first["type"]:
        case "extra_forbidden":
            owner = ValueSource if location[0] == "attributes" else GrammarSource
            return f"unknown key {key!r}; {hint(location[-1], list(owner.model_fields))}"
        case "missing":
            return f"the key {key!r} is required"
        case "string_type":
            return f"{key}: expected text, got {reprlib.repr(first['input'])}; write it in quotes"
        case "string_pattern_mismatch":
            return f"{key}: a name is of small letters, digits and _, and begins with a letter"
        case "model_type":
            return f"{key}: expected a weight, or keys weight and text"
    return f"{key}: {first['msg']} (got {reprlib.repr(first['input'])})"


def parse(data: bytes, where: str) -> GrammarSource:
    """A grammar of the right shape; whether its names fit together is not checked here.

    Args:
        data: YAML, at most `MOST_BYTES`.
        where: what to call it in an error.

    Raises:
        UserError: one line that names the key or the line, what is wrong with it, and what to do.
    """
    if len(data) > MOST_BYTES:
        raise UserError(f"{where}: larger than {MOST_BYTES:,} bytes; this is no grammar of prompts")
    try:
        values = yaml.load(data, _Loader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{where}: not valid YAML, line {line}: {error.problem}") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply; this is no grammar of prompts") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys and values, got {type(values).__name__}")
    if not all(isinstance(key, str) for key in values):
        raise UserError(f"{where}: keys are text; known: {', '.join(GrammarSource.model_fields)}")
    try:
        return GrammarSource(**values)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from error


def read(path: str) -> bytes:
    """The bytes of a grammar's file, not many more than it may have.

    Raises:
        UserError: where there is no such file.
    """
    return storage.read_bytes(path, MOST_BYTES + 1)
