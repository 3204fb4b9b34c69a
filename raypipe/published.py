"""Accuracies that others published, to stand beside one's own (`published.yaml`)."""

import re
from dataclasses import dataclass
from importlib import resources

import yaml

SETS = ("LFW", "CFP-FP", "AgeDB-30", "CALFW", "CPLFW")
_NAMES = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in (*SETS, "AgeDB")}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A recognizer of others.

    Attributes:
        name: of the set that it was trained on.
        images: how many that set has, as published.
        accuracies: in percent, by names of `SETS`; what was not published is not there.
        average: as published, in percent.
        source: key of `Published.sources`.
    """

    name: str
    images: str
    accuracies: dict[str, float]
    average: float
    source: int


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was published, where each row stands, and how far it can be compared."""

    rows: tuple[Row, ...]
    sources: dict[int, str]
    note: str


def read_published() -> Published:
    """The content of `published.yaml`."""
    content = yaml.safe_load(resources.files("raypipe").joinpath("published.yaml").read_bytes())
    rows = tuple(
        Row(
            name=row["name"],
            images=row["images"],
            accuracies={name: row[name] for name in SETS if name in row},
            average=row["average"],
            source=row["source"],
        )
        for row in content["rows"]
    )
    return Published(rows=rows, sources=content["sources"], note=content["note"])


def published_name(name: str) -> str | None:
    """Which of `SETS` a verification set is by its name, for example "cfp_fp" or "AgeDB30"."""
    known = re.sub(r"[^a-z0-9]", "", name.lower())
    found = _NAMES.get(known)
    return "AgeDB-30" if found == "AgeDB" else found
