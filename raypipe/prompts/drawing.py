"""Draws from a grammar: what the person of an index looks like, and the prompt that says so."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from raypipe import seeding
from raypipe.errors import UserError
from raypipe.prompts.grammar import Grammar
from raypipe.prompts.schema import hint
from raypipe.prompts.text import tidy

# Indices whose numbers are drawn together. In a whole block a number falls once in each of so many
# equal parts of [0, 1): a value of an attribute that exclusions leave free comes at most two draws
# too often or too rarely, others vary less than among independent draws (benchmarks/prompts.py). A
# thousand, so that weights in tenths of a percent come out as declared.
BLOCK = 1000


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What an image is made from.

    Attributes:
        prompt: what it shows.
        negative: what it is not to show.
        attributes: name to value, in the order of the grammar.
    """

    prompt: str
    negative: str
    attributes: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Share:
    """How often a value was asked for and how often it came, as shares in [0, 1].

    Attributes:
        attribute: its name.
        value: its name.
        declared: asked for by the weights.
        reachable: what draws converge to; other than declared only where exclusions force it.
        count: draws that have it.
        achieved: the same as a share.
    """

    attribute: str
    value: str
    declared: float
    reachable: float
    count: int
    achieved: float


@lru_cache(maxsize=512)
def _numbers(seed: int, name: str, block: int, stream: str) -> np.ndarray:
    """Latin hypercube sampling: float64 (BLOCK,) in [0, 1), one in each of BLOCK equal parts.

    McKay, Beckman and Conover, "A comparison of three methods for selecting values of input
    variables", 1979. Every name has an order of its own, so attributes do not depend on each other.
    """
    rng = seeding.generator(seed, name, block, stream)
    numbers = (rng.permutation(BLOCK) + rng.random(BLOCK)) / BLOCK
    return np.minimum(numbers, np.nextafter(1, 0))  # the last part may round up to 1


def draw(grammar: Grammar, seed: int, index: int) -> Prompt:
    """The prompt of an index.

    It depends on grammar, seed and index alone, not on how many are drawn nor by whom. Who draws an
    image again takes another seed for the image, and keeps the prompt and the person.

    Args:
        grammar: what to draw from.
        seed: seed of the run.
        index: of the person, 0 or more.
    """
    block, place = divmod(index, BLOCK)

    def number(name: str, stream: str) -> float:
        return float(_numbers(seed, name, block, stream)[place])

    def wording(name: str, count: int) -> int:
        return int(number(name, "prompts.wording") * count) if count > 1 else 0

    chosen: dict[str, int] = {}
    for group in grammar.groups:
        numbers = [number(name, "prompts.value") for name in group.names]
        chosen |= dict(zip(group.names, group.pick(numbers), strict=True))
    filled = {}
    for name, attribute in grammar.attributes.items():
        texts = attribute.texts[chosen[name]]
        filled[name] = texts[wording(name, len(texts))]
    for name, templates in [*grammar.phrases.items(), ("prompt", grammar.prompt)]:
        filled[name] = templates[wording(name, len(templates))].render(filled)
    return Prompt(
        prompt=tidy(filled["prompt"]),
        negative=grammar.negative,
        attributes={
            name: attribute.values[chosen[name]] for name, attribute in grammar.attributes.items()
        },
    )


def say(grammar: Grammar, values: Mapping[str, str]) -> str:
    """A prompt of given values in the first of all wordings; attributes without one are not said.

    Args:
        grammar: whose prompt it is.
        values: attribute to the name of its value.

    Raises:
        UserError: where the grammar has no such attribute or value.
    """
    filled = dict.fromkeys(grammar.attributes, "")
    for name, value in values.items():
        if name not in grammar.attributes:
            known = hint(name, list(grammar.attributes))
            raise UserError(f"{grammar.path}: unknown attribute {name!r}; {known}")
        attribute = grammar.attributes[name]
        if value not in attribute.values:
            known = hint(value, list(attribute.values))
            raise UserError(f"{grammar.path}: attributes.{name}: unknown value {value!r}; {known}")
        filled[name] = attribute.texts[attribute.values.index(value)][0]
    for name, templates in [*grammar.phrases.items(), ("prompt", grammar.prompt)]:
        filled[name] = templates[0].render(filled)
    return tidy(filled["prompt"])


def balance(grammar: Grammar, drawn: Iterable[Mapping[str, str]]) -> list[Share]:
    """The balance asked for and the balance achieved.

    Args:
        grammar: what was drawn from.
        drawn: the attributes of every person.
    """
    counts: Counter[tuple[str, str]] = Counter()
    total = 0
    for attributes in drawn:
        counts.update(attributes.items())
        total += 1
    return [
        Share(
            attribute=name,
            value=value,
            declared=float(grammar.attributes[name].declared[k]),
            reachable=float(reachable[k]),
            count=counts[name, value],
            achieved=counts[name, value] / max(total, 1),
        )
        for name, reachable in grammar.reachable().items()
        for k, value in enumerate(grammar.attributes[name].values)
    ]
