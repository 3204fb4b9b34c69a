"""A grammar of prompts, checked and ready to draw from."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raypipe.errors import UserError
from raypipe.prompts import schema, text
from raypipe.prompts.law import Exclusion, Group, groups

SHIPPED = str(Path(__file__).with_name("faces.yaml"))
PORTRAITS = str(Path(__file__).with_name("portraits.yaml"))  # what the small model knows
_NAMES = {"faces": SHIPPED, "portraits": PORTRAITS}
MOST_CHARACTERS = 2000  # of a prompt; the text encoders of Stable Diffusion read 77 tokens
_VISIBLE = 1e-4  # a difference of shares below this is not worth a word


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """What can be drawn.

    Attributes:
        values: their names.
        texts: for each value its wordings.
        declared: the shares of the values, float64, positive, of sum 1.
    """

    values: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    declared: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Attributes, how they are drawn, and how they are put into words.

    Attributes:
        path: its file.
        digest: hex SHA-256 of the file.
        negative: the negative prompt.
        prompt: wordings of the whole.
        phrases: wordings of the pieces, each after those that it uses.
        attributes: in the order of the file.
        groups: the law of the attributes.
    """

    path: str
    digest: str
    negative: str
    prompt: tuple[text.Template, ...]
    phrases: dict[str, tuple[text.Template, ...]]
    attributes: dict[str, Attribute]
    groups: tuple[Group, ...]

    def reachable(self) -> dict[str, np.ndarray]:
        """The shares of each attribute's values, float64, that draws converge to.

        They are the declared ones unless exclusions make these impossible.
        """
        shares = {
            name: share
            for group in self.groups
            for name, share in zip(group.names, group.marginals, strict=True)
        }
        return {name: shares[name] for name in self.attributes}

    def out_of_reach(self) -> list[tuple[str, str, float, float]]:
        """Attribute, value, declared share and reachable share, where these differ visibly."""
        return [
            (name, value, float(declared), float(reached))
            for name, shares in self.reachable().items()
            for value, declared, reached in zip(
                self.attributes[name].values, self.attributes[name].declared, shares, strict=True
            )
            if abs(declared - reached) > _VISIBLE
        ]


def _plain(words: str, where: str) -> str:
    if "{" in words or "}" in words:
        raise UserError(f"{where}: slots stand in prompt and phrases only; write plain text")
    return words


def _attribute(name: str, source: dict[str, schema.ValueSource], where: str) -> Attribute:
    texts: dict[tuple[str, ...], str] = {}
    for value, entry in source.items():
        key = f"{where}: attributes.{name}.{value}"
        wordings = tuple(_plain(words, key) for words in entry.text or [value])
        if wordings in texts:
            raise UserError(f"{key}: has the same text as {texts[wordings]!r}; make one of the two")
        texts[wordings] = value
    weights = np.array([entry.weight for entry in source.values()])
    return Attribute(values=tuple(source), texts=tuple(texts), declared=weights / weights.sum())


def _templates(wordings: Iterable[str], known: list[str], where: str) -> tuple[text.Template, ...]:
    templates = tuple(text.parse(words, where) for words in wordings)
    for template in templates:
        for slot in template.slots:
            if slot not in known:
                hint = schema.hint(slot, known)
                raise UserError(f"{where}: unknown attribute or phrase {slot!r}; {hint}")
    return templates


def _ordered(
    phrases: dict[str, tuple[text.Template, ...]], where: str
) -> dict[str, tuple[text.Template, ...]]:
    """Phrases, each after those that it uses."""
    done: dict[str, tuple[text.Template, ...]] = {}
    while len(done) < len(phrases):
        ready = [
            name
            for name, templates in phrases.items()
            if name not in done
            and all(s in done or s not in phrases for t in templates for s in t.slots)
        ]
        if not ready:
            stuck = ", ".join(name for name in phrases if name not in done)
            raise UserError(f"{where}: phrases: {stuck} contain each other; take a slot out")
        done |= {name: phrases[name] for name in ready}
    return done


def _check_prompt(grammar: Grammar, where: str) -> None:
    """Every wording of the prompt says every attribute, and none is too long."""
    said = {name: {name} for name in grammar.attributes}
    longest = {
        name: max(len(words) for texts in attribute.texts for words in texts)
        for name, attribute in grammar.attributes.items()
    }
    for name, templates in [*grammar.phrases.items(), ("prompt", grammar.prompt)]:
        key = name if name == "prompt" else f"phrases.{name}"
        longest[name] = max(
            sum(map(len, template.literals)) + sum(longest[slot] for slot in template.slots)
            for template in templates
        )
        if longest[name] > MOST_CHARACTERS:
            raise UserError(
                f"{where}: {key}: up to {longest[name]:,} characters, at most {MOST_CHARACTERS:,}; "
                "make it shorter"
            )
        every = [set().union(*(said[slot] for slot in template.slots)) for template in templates]
        said[name] = set.intersection(*every)
    for name in grammar.attributes:
        if name not in said["prompt"]:
            raise UserError(
                f"{where}: attributes.{name}: not every wording of the prompt says it; "
                f"put {{{name}}} there, or delete the attribute"
            )


def _exclusion(
    i: int, rule: dict[str, list[str]], attributes: dict[str, Attribute], where: str
) -> Exclusion:
    for name, values in rule.items():
        if name not in attributes:
            hint = schema.hint(name, list(attributes))
            raise UserError(f"{where}: exclude.{i}: unknown attribute {name!r}; {hint}")
        for value in values:
            if value not in attributes[name].values:
                hint = schema.hint(value, list(attributes[name].values))
                raise UserError(f"{where}: exclude.{i}.{name}: unknown value {value!r}; {hint}")
    return {
        name: frozenset(map(attributes[name].values.index, values)) for name, values in rule.items()
    }


def load_grammar(path: str | None = None) -> Grammar:
    """Reads a grammar and computes its law.

    Args:
        path: file or URI, or "faces" or "portraits", which ship with raypipe; none: faces.

    Raises:
        UserError: one line that names the file, the key, what is wrong, and what to do.
    """
    where = _NAMES.get(path or "faces", path or "")
    data = schema.read(where)
    source = schema.parse(data, where)
    for name in ("prompt", *source.phrases):
        if name in source.attributes or (name == "prompt" and name in source.phrases):
            raise UserError(f"{where}: {name!r} names two things; rename one of them")
    attributes = {
        name: _attribute(name, values, where) for name, values in source.attributes.items()
    }
    known = [*attributes, *source.phrases]
    exclusions = [_exclusion(i, rule, attributes, where) for i, rule in enumerate(source.exclude)]
    phrases = {
        name: _templates(wordings, known, f"{where}: phrases.{name}")
        for name, wordings in source.phrases.items()
    }
    grammar = Grammar(
        path=where,
        digest=hashlib.sha256(data).hexdigest(),
        negative=" ".join(_plain(source.negative, f"{where}: negative").split()),
        prompt=_templates(source.prompt, known, f"{where}: prompt"),
        phrases=_ordered(phrases, where),
        attributes=attributes,
        groups=groups(
            {name: attribute.declared for name, attribute in attributes.items()},
            exclusions,
            {name: attribute.values for name, attribute in attributes.items()},
            where,
        ),
    )
    _check_prompt(grammar, where)
    return grammar
