"""Configuration of prompts for people who do not exist."""

from pydantic import Field

from raypipe.config.base import Settings


class PromptsConfig(Settings):
    """What new people are to look like."""

    grammar: str | None = Field(
        None,
        min_length=1,
        description="YAML of attributes, their declared balance and how they are put into words "
        "(docs/prompts.md), or one that ships with raypipe: faces, or portraits, which has all "
        "that the small model knows; none: faces",
    )
