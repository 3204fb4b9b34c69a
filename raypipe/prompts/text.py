"""Text with slots: `a portrait of {person}, {light}`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from raypipe.errors import UserError

TOKENS = 75  # that the text encoders of Stable Diffusion read, begin and end not counted
_SLOT = re.compile(r"\{([^{}]*)\}")
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_")


@dataclass(frozen=True, kw_only=True)
class Template:
    """Literal text around slots.

    Attributes:
        literals: one more than there are slots.
        slots: names of attributes or phrases.
    """

    literals: tuple[str, ...]
    slots: tuple[str, ...]

    def render(self, filled: Mapping[str, str]) -> str:
        """The text with its slots filled; empty where there are slots and all stay empty."""
        fills = [filled[slot] for slot in self.slots]
        if fills and not any(fills):
            return ""
        between = zip(self.literals, [*fills, ""], strict=True)
        return "".join(literal + fill for literal, fill in between)


def parse(text: str, where: str) -> Template:
    """Splits a text at its slots.

    Raises:
        UserError: where a brace has no counterpart.
    """
    pieces = _SLOT.split(text)
    for literal in pieces[::2]:
        for brace, wrong, other in (("{", "never closed", "}"), ("}", "never opened", "{")):
            if brace in literal:
                near = literal[literal.index(brace) :][:20]
                raise UserError(f"{where}: a slot is {wrong} at {near!r}; add the {other!r}")
    return Template(literals=tuple(pieces[::2]), slots=tuple(slot.strip() for slot in pieces[1::2]))


def tidy(text: str) -> str:
    """Single spaces, one space after a comma, none before, and no comma with nothing beside it."""
    parts = (" ".join(part.split()) for part in text.split(","))
    return ", ".join(part for part in parts if part)


def least_tokens(text: str) -> int:
    """Tokens that CLIP makes of a text, at least: one for a word that it knows, more for others.

    It splits at what is not a letter, and digits from each other (`clip/simple_tokenizer.py` of
    github.com/openai/CLIP).
    """
    return len(_PIECE.findall(text))
