"""Results of verification as tables: for the report, `evaluate/results.md` and the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from raypipe.published import SETS, published_name, read_published
from raypipe.report.blocks import Table
from raypipe.report.words import percent

Results = Mapping[str, Mapping[str, Any]]  # by name of the set, as in results.json
_NONE = "–"
_AT_ONE = ("tar", "far")  # at the thresholds of the set, which are one for all groups


def tars_of(result: Mapping[str, Any]) -> dict[float, Any]:
    """What stands at each false accept rate, with the rates as numbers."""
    return {float(far): value for far, value in result["tar_at_far"].items()}


def _rates(results: Iterable[Mapping[str, Any]]) -> list[float]:
    return sorted({far for result in results for far in tars_of(result)})


def _spread(mean: float, std: float, digits: int) -> str:
    return f"{percent(mean, digits)} ± {100 * std:.{digits}f}"


def sets_table(sets: Results) -> Table:
    """A row a set: accuracy, TAR at FAR and area under the ROC curve."""
    fars = _rates(sets.values())
    rows = []
    for name, result in sets.items():
        tars = tars_of(result)
        rows.append(
            (
                name,
                f"{result['pairs']:,}",
                _spread(result["accuracy"], result["std"], 2),
                *(
                    _spread(tars[far]["mean"], tars[far]["std"], 1) if far in tars else _NONE
                    for far in fars
                ),
                f"{result['auc']:.4f}",
            )
        )
    return Table(
        caption="Results (mean ± standard deviation over the folds)",
        head=(
            "Set",
            "Pairs",
            "Accuracy",
            *(f"TAR at FAR {percent(far)}" for far in fars),
            "Area under the ROC",
        ),
        rows=tuple(rows),
        numeric=frozenset(range(1, 4 + len(fars))),
    )


def ijb_table(results: Results) -> Table:
    """A row a set of templates: TAR at the FARs that are published."""
    fars = _rates(results.values())
    return Table(
        caption="IJB, 1:1 (TAR in %)",
        head=("Set", "Pairs of templates", *(f"FAR {far:g}" for far in fars), "Area under the ROC"),
        rows=tuple(
            (
                name,
                f"{result['pairs']:,}",
                *(f"{100 * tars_of(result)[far]['tar']:.2f}" for far in fars),
                f"{result['auc']:.4f}",
            )
            for name, result in results.items()
        ),
        numeric=frozenset(range(1, 3 + len(fars))),
    )


def groups_table(sets: Results) -> Table | None:
    """A row a group of people; None where no set states groups."""
    known = [
        (name, group, found)
        for name, result in sets.items()
        for group, found in result.get("groups", {}).items()
    ]
    if not known:
        return None
    fars = _rates(found for _, _, found in known)
    rows = []
    for name, group, found in known:
        tars = tars_of(found)
        rows.append(
            (
                name,
                group,
                f"{found['genuine']:,}",
                f"{found['impostor']:,}",
                percent(found["accuracy"], 2),
                *(percent(found[rate]) if found[rate] is not None else _NONE for rate in _AT_ONE),
                *(percent(tars[far]["tar"]) if far in tars else _NONE for far in fars),
            )
        )
    return Table(
        caption="By group (accuracy, TAR and FAR at the set's thresholds; then TAR at the group's"
        " own)",
        head=(
            *("Set", "Group", "Genuine", "Impostor", "Accuracy", "TAR", "FAR"),
            *(f"TAR at FAR {percent(far)}" for far in fars),
        ),
        rows=tuple(rows),
        numeric=frozenset(range(2, 7 + len(fars))),
    )


def epochs_table(epochs: Sequence[Mapping[str, Any]]) -> Table:
    """A row an epoch, a column a set: accuracy."""
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch["sets"]))
    return Table(
        caption="Accuracy by epoch (mean ± standard deviation over the folds)",
        head=("Epoch", *names),
        rows=tuple(
            (
                str(epoch["epoch"]),
                *(
                    _spread(found["accuracy"], found["std"], 2)
                    for found in (epoch["sets"][name] for name in names)
                ),
            )
            for epoch in epochs
        ),
        numeric=frozenset(range(1, 1 + len(names))),
    )


def published_table(own: Mapping[str, Results]) -> Table:
    """Accuracy in percent beside published ones: own rows first, then those of others.

    Args:
        own: name of a recognizer → its results; a set whose name is that of none of the published
            ones has no column, and who was scored on no other has no row.
    """
    rows = []
    for recognizer, sets in own.items():
        found = {published_name(name): 100 * result["accuracy"] for name, result in sets.items()}
        values = [found.get(name) for name in SETS]
        known = [value for value in values if value is not None]
        average = float(np.mean(known)) if len(known) == len(SETS) else None
        if known:
            rows.append((recognizer, *map(_cell, values), _cell(average), "measured"))
    for row in read_published().rows:
        values = [row.accuracies.get(name) for name in SETS]
        source = f"published [{row.source}]"
        name = f"{row.name}, {row.images}"
        rows.append((name, *map(_cell, values), _cell(row.average), source))
    return Table(
        caption="Accuracy in %, beside published ones",
        head=("Recognizer", *SETS, "Mean", "Source"),
        rows=tuple(rows),
        numeric=frozenset(range(1, 2 + len(SETS))),
    )


def _cell(value: float | None) -> str:
    return _NONE if value is None else f"{value:.2f}"


def published_notes() -> list[str]:
    """What has to stand under `published_table`: how far it can be compared, and the sources."""
    published = read_published()
    sources = "; ".join(f"[{number}] {text}" for number, text in published.sources.items())
    return [published.note, f"Sources: {sources}."]
