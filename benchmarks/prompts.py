"""How close drawn prompts come to the declared balance, and how fast they are drawn.

    python benchmarks/prompts.py [--grammar FILE] [--seed 0]

Prints a Markdown table: the largest difference, over all values of all attributes, between the
declared and the achieved share. Beside draws of raypipe stand two that one would write first: every
attribute drawn on its own and drawn again where the combination is excluded, and independent draws
from raypipe's law. "free" are the attributes that no exclusion names.
"""

import argparse
import time

import numpy as np
import yaml

from raypipe.prompts import Grammar, draw, load_grammar
from screening import machine

COUNTS = (1_000, 10_000, 300_000)


def again(grammar: Grammar, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Attributes drawn on their own, and again where excluded; int64 (count,) each."""
    with open(grammar.path, encoding="utf-8") as file:
        rules = yaml.safe_load(file).get("exclude", [])
    parts: list[dict[str, np.ndarray]] = []
    while sum(len(next(iter(part.values()))) for part in parts) < count:
        part = {
            name: rng.choice(len(attribute.values), count, p=attribute.declared)
            for name, attribute in grammar.attributes.items()
        }
        excluded = np.zeros(count, bool)
        for rule in rules:
            inside = np.ones(count, bool)
            for name, values in rule.items():
                places = [grammar.attributes[name].values.index(value) for value in values]
                inside &= np.isin(part[name], places)
            excluded |= inside
        parts.append({name: places[~excluded] for name, places in part.items()})
    return {
        name: np.concatenate([part[name] for part in parts])[:count] for name in grammar.attributes
    }


def independent(grammar: Grammar, count: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Independent draws from the law, int64 (count,) each."""
    drawn = {}
    for group in grammar.groups:
        places = [group.pick(row) for row in rng.random((count, len(group.names))).tolist()]
        drawn |= dict(zip(group.names, np.array(places).T, strict=True))
    return drawn


def largest(grammar: Grammar, drawn: dict[str, np.ndarray], names: set[str]) -> float:
    """The largest difference of shares over the values of some attributes."""
    return max(
        np.abs(
            np.bincount(drawn[name], minlength=len(attribute.values)) / len(drawn[name])
            - attribute.declared
        ).max()
        for name, attribute in grammar.attributes.items()
        if name in names
    )


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grammar")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    start, busy = time.perf_counter(), time.process_time()
    grammar = load_grammar(given.grammar)
    loaded, computed = time.perf_counter() - start, time.process_time() - busy
    free = {group.names[0] for group in grammar.groups if len(group.names) == 1}
    tied = set(grammar.attributes) - free
    places = {
        name: {value: k for k, value in enumerate(attribute.values)}
        for name, attribute in grammar.attributes.items()
    }
    reached = max(
        np.abs(shares - grammar.attributes[name].declared).max()
        for name, shares in grammar.reachable().items()
    )
    print(f"{machine()}\n")
    print(
        f"{len(grammar.attributes)} attributes, {len(tied)} tied by exclusions; loaded in "
        f"{loaded:.2f} s ({computed:.2f} s of CPU); the law's own largest difference: {reached:.1e}"
    )
    print("\n| draws | attributes | drawn again | independent | raypipe | prompts/s | per CPU s |")
    print("|---|---|---|---|---|---|---|")
    for count in COUNTS:
        start, busy = time.perf_counter(), time.process_time()
        drawn = {name: np.empty(count, np.int64) for name in grammar.attributes}
        for index in range(count):
            for name, value in draw(grammar, given.seed, index).attributes.items():
                drawn[name][index] = places[name][value]
        took, busy = time.perf_counter() - start, time.process_time() - busy
        rng = np.random.default_rng(given.seed)
        others = [again(grammar, count, rng), independent(grammar, count, rng)]
        for kind, names in (("tied", tied), ("free", free)):
            if names:
                far = " | ".join(f"{largest(grammar, d, names):.3%}" for d in [*others, drawn])
                speed = f"{count / took:,.0f} | {count / busy:,.0f}"
                print(f"| {count:,} | {kind} | {far} | {speed} |")


if __name__ == "__main__":
    main()
