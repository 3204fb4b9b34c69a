"""Experts: each gives the images of an identity the probability that they show somebody else.

A module here is an expert, and its name is what a configuration calls it. It has a function
`expert(tools)` that returns a function from a list of `Case` to a list of `View` in step with it,
and `LAWS`: which field of `Tools` holds the laws of the set that its probabilities follow from;
None where they are no more than what the expert says.
"""

import importlib
import pkgutil
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from raypipe.identities import Identity, Image
from raypipe.images import decode

if TYPE_CHECKING:
    from raypipe.cleaning.calibration import Calibration
    from raypipe.config.judge import JudgeConfig

NAMES = tuple(sorted(found.name for found in pkgutil.iter_modules(__path__)))


@dataclass(kw_only=True)
class Case:
    """An identity as the experts see it.

    Attributes:
        images: those that are judged, n of them: kept, or taken out as another person by `clean`.
        doubt: probability that each shows somebody else by what `clean` measured, float64 (n,).
        asked: why the vision model is asked: "all", "unsure" or "audit"; None: it is not.
    """

    identity: Identity
    images: list[Image]
    doubt: np.ndarray
    asked: str | None

    def pixels(self) -> list[np.ndarray]:
        """The images decoded, uint8 (H, W, 3) each."""
        return [decode(image.data, source=image.source) for image in self.images]


@dataclass(kw_only=True)
class View:
    """What an expert says of a case.

    Attributes:
        outlier: probability that an image shows somebody else, float64 (n,); NaN where the expert
            says nothing.
        reasons: in words, by the place of the image.
        problem: why the identity could not be judged; None where it was, or was not asked about.
        sheets: images that were shown to a service.
    """

    outlier: np.ndarray
    reasons: dict[int, str] = field(default_factory=dict)
    problem: str | None = None
    sheets: int = 0


Expert = Callable[[Sequence[Case]], list[View]]


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What experts are made from.

    Attributes:
        calibration: of the set; None under the rule `share`.
        second: of the set, for the second embedder.
        share: part of the configured concurrency and limits that is this actor's.
        reserve: asked before a call with what it may cost in dollars; False: the budget is spent.
        settle: told after it with that, and with what it did cost.
    """

    config: "JudgeConfig"
    calibration: "Calibration | None"
    second: "Calibration | None"
    share: float
    reserve: Callable[[float], Awaitable[bool]]
    settle: Callable[[float, float], Awaitable[None]]


def open_experts(tools: Tools) -> list[Expert]:
    """The experts of a configuration, in its order.

    Raises:
        UserError: where one of them lacks what it needs: weights, a key.
    """
    return [_module(name).expert(tools) for name in tools.config.panel]


def calibrated(panel: Sequence[str], laws: Collection[str]) -> list[bool]:
    """For each expert of a panel, whether its probabilities follow from laws that are there."""
    return [_module(name).LAWS in laws for name in panel]


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
