"""Captions of pictures nobody has described: what is measured in them, in a grammar's words."""

from collections.abc import Mapping, Sequence

import numpy as np

from raypipe.config.diffusion_training import MeasuredConfig
from raypipe.prompts import Grammar, say


def cuts(measured: np.ndarray, count: int) -> list[float]:
    """Borders between `count` values that stand for equal shares of the measures, (N,)."""
    return np.quantile(measured, np.arange(1, count) / count).tolist()


def value_of(measure: float, attribute: MeasuredConfig, borders: Sequence[float]) -> str:
    """The value that a measure has, whether a caption would say it or not."""
    return attribute.values[int(np.searchsorted(borders, measure, side="right"))]


def captions(
    grammar: Grammar,
    attributes: Mapping[str, MeasuredConfig],
    measured: Mapping[str, np.ndarray],
    gap: float,
) -> list[str]:
    """What is said of each picture.

    Args:
        attributes: of the grammar, and what decides them.
        measured: attribute to its measure in every picture, (N,).
        gap: share of the pictures around a border of two values that are said to have neither.

    Returns:
        N captions.
    """
    said: dict[str, list[str | None]] = {}
    for name, attribute in attributes.items():
        ranks = measured[name].argsort(kind="stable").argsort(kind="stable")
        places = (ranks + 0.5) / len(ranks) * len(attribute.values)  # 1.0: a border
        inner = np.abs(places - places.round()) / len(attribute.values) >= gap / 2
        outer = (places.round() == 0) | (places.round() == len(attribute.values))
        said[name] = [
            attribute.values[int(place)] if clear else None
            for place, clear in zip(places, inner | outer, strict=True)
        ]
    return [
        say(grammar, {name: value for name, values in said.items() if (value := values[i])})
        for i in range(len(next(iter(measured.values()))))
    ]
