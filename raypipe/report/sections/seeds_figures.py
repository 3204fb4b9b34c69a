"""The tables and drawings of the section of new identities."""

from itertools import pairwise
from typing import Any

from raypipe.prompts import Grammar, balance
from raypipe.report import charts
from raypipe.report.blocks import Badge, Block, Cell, Chart, Charts, Table, Text
from raypipe.report.charts import Line
from raypipe.report.seeds import DRAWN, GOOD, ONE_FACE, SURPLUS, TAKEN, UNIQUE, UNKNOWN, Seeded
from raypipe.report.words import count, percent, reason_sentence, short_reason

_NAMES = {
    DRAWN: "drawn",
    ONE_FACE: "one face",
    GOOD: "good enough",
    TAKEN: "needed",
    UNKNOWN: "in no gallery",
    UNIQUE: "unique",
}
_MEANING = {
    DRAWN: "A picture was drawn.",
    ONE_FACE: "The detector finds exactly one face.",
    GOOD: "The face is large, sharp, turned to the camera and no drawing.",
    TAKEN: "The number asked for was not yet reached.",
    UNKNOWN: "Unlike every face of the galleries.",
    UNIQUE: "Unlike every other identity.",
}
_COLOURS = ("red", "orange", "blue", "green", "purple")  # of thresholds, the smallest first


def _steps(found: Seeded, screened: bool) -> list[int]:
    needed = [TAKEN] if found.outcomes[SURPLUS] else []
    return [DRAWN, ONE_FACE, GOOD, *needed, *([UNKNOWN, UNIQUE] if screened else [])]


def funnel(found: Seeded, screened: bool) -> Table:
    """How many pictures and identities came through every step."""
    rows: list[tuple[Cell, ...]] = []
    before: int | None = None
    for step in _steps(found, screened):
        pictures, identities = found.pictures[step], found.identities[step]
        passed = "–" if not before else percent(pictures / before)
        rows.append((_NAMES[step], _MEANING[step], f"{pictures:,}", passed, f"{identities:,}"))
        before = pictures
    return Table(
        caption="From drawn pictures to new identities",
        head=("Step", "What it means", "Pictures", "Of the step before", "Identities"),
        rows=tuple(rows),
        numeric=frozenset({2, 3, 4}),
    )


def refusals(found: Seeded) -> Table | None:
    """Why pictures and identities were refused, the most frequent reason first."""
    rows: list[tuple[Cell, ...]] = []
    for unit, numbers in (("pictures", found.tries), ("identities", found.outcomes)):
        refused = [(reason, number) for reason, number in numbers.items() if reason]
        rows += [
            (
                Badge(text=short_reason(reason), tone="bad"),
                reason_sentence(reason),
                unit,
                f"{number:,}",
                percent(number / numbers.total()),
            )
            for reason, number in sorted(refused, key=lambda item: (-item[1], item[0]))
        ]
    if not rows:
        return None
    return Table(
        caption="Refused pictures and identities by reason",
        head=("Reason", "What it means", "Of", "Number", "Of all drawn"),
        rows=tuple(rows),
        numeric=frozenset({3, 4}),
    )


def drawings(found: Seeded, screened: bool, curves: dict[str, Any] | None) -> Charts:
    """The funnel, and the curves of separability where they were measured."""
    steps = _steps(found, screened)
    passed = [found.pictures[step] for step in steps]
    lost = [0, *(before - now for before, now in pairwise(passed))]
    bars = Chart(
        title="Pictures that came through every step",
        hint="Green came through, orange was lost at this step. Look for the longest piece of"
        " orange: that step decides how many pictures a new identity costs.",
        alt="Bars: "
        + ", ".join(
            f"{_NAMES[step]} {number:,}" for step, number in zip(steps, passed, strict=True)
        ),
        svg=charts.stacked_bars(
            "seeds-funnel",
            [_NAMES[step] for step in steps],
            [("came through", passed, "green"), ("lost here", lost, "orange")],
            x_label="pictures",
        ),
    )
    return Charts(charts=(bars, separability(curves)) if curves else (bars,))


def separability(measured: dict[str, Any]) -> Chart:
    """Unique identities over identities drawn, at several thresholds.

    Args:
        measured: the content of `separability.json`.
    """
    drawn, calibrated = measured["drawn"], measured["calibrated"]
    total = drawn[-1]
    curves = []
    for threshold, unique, colour in zip(
        measured["thresholds"], measured["unique"], _COLOURS, strict=True
    ):
        own = " (screening)" if threshold == calibrated else ""
        curves.append(Line(label=f"from {threshold:.3f}{own}", x=drawn, y=unique, colour=colour))
    curves.append(Line(label="if all were unique", x=[0, total], y=[0, total], colour="muted"))
    ends = ", ".join(
        f"{unique[-1]:,} at {threshold:.3f}"
        for threshold, unique in zip(measured["thresholds"], measured["unique"], strict=True)
    )
    return Chart(
        title="Unique identities against identities drawn",
        hint="Two identities count as one person from the similarity that the legend names; the"
        f" threshold of screening is {calibrated:.3f}, the others lie half a standard deviation of"
        " the comparisons of two identities apart. Look for a curve that bends: there the model"
        " draws the same people again, and more pictures give few new ones. Galleries and"
        " identities from elsewhere do not count here.",
        alt=f"Curves of the unique identities among {count(total, 'identity')} drawn: {ends}",
        svg=charts.lines(
            "seeds-separability",
            curves,
            x_label="identities drawn that passed the gates",
            y_label="unique identities",
        ),
    )


def balances(found: Seeded, grammar: Grammar | None) -> list[Block]:
    """The balance asked for, drawn and left, value by value, and where it moved most."""
    drawn, left = found.identities[DRAWN], len(found.left)
    if not drawn:
        return []
    if grammar:
        shares = balance(grammar, ())
        declared = {(one.attribute, one.value): percent(one.declared) for one in shares}
    else:
        declared = dict.fromkeys(sorted(found.drawn), "–")
    rows: list[tuple[Cell, ...]] = []
    for key, wanted in declared.items():
        rows.append(
            (
                key[0].replace("_", " "),
                key[1],
                wanted,
                percent(found.drawn[key] / drawn),
                percent(found.admitted[key] / left) if left else "–",
            )
        )
    table = Table(
        caption="Balance of the attributes: asked for, drawn, taken",
        head=("Attribute", "Value", "Asked for", "Drawn", "Taken"),
        rows=tuple(rows),
        numeric=frozenset({2, 3, 4}),
    )
    texts = [_moved(found, left)] if left else []
    if not grammar:
        texts.append("The grammar's file is gone or was changed: what was asked for is not shown.")
    elif missed := grammar.out_of_reach():
        texts.append(
            "Exclusions of the grammar keep draws from what was asked for: "
            + ", ".join(
                f"{name} {value} comes to {percent(reached)}".replace("_", " ")
                for name, value, _, reached in missed
            )
            + "."
        )
    return [*(Text(text=text) for text in texts), table]


def _moved(found: Seeded, left: int) -> str:
    """Which value the gates and screening changed most."""
    drawn = found.identities[DRAWN]
    shares = {key: (n / drawn, found.admitted[key] / left) for key, n in found.drawn.items()}
    (name, value), (before, after) = min(
        shares.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0])
    )
    return (
        "The gates and screening do not know the attributes, but may refuse some of them more"
        f" often. They moved {name.replace('_', ' ')} {value} most: {percent(before)} of those"
        f" drawn, {percent(after)} of those taken."
    )
