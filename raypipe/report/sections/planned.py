"""Plan and actual: what the build was expected to take, and what it took."""

from collections.abc import Sequence
from typing import Any

from raypipe.planning.actual import Amount, Row, compare, total
from raypipe.planning.plan import PLAN
from raypipe.report import charts
from raypipe.report.blocks import Block, Cell, Chart, Charts, Section, Table, Text, Tile, Tiles
from raypipe.report.words import duration, size
from raypipe.report.workspace import Workspace

ANCHOR, TITLE = "plan", "Plan and actual"
# What a plan with measured rates is held to (benchmarks/plan.py).
SECONDS_OFF, BYTES_OFF = 0.25, 0.10
_NOTHING = "–"


def section(workspace: Workspace) -> Section:
    """The section of plan.json, which `raypipe build` writes before its first job."""
    planned: dict[str, Any] | None = workspace.json(PLAN)
    if planned is None:
        lead = "No plan was made before these jobs ran; `raypipe build` makes one as it begins."
        return Section(anchor=ANCHOR, title=TITLE, lead=lead)
    rows = compare(planned, workspace.root)
    rates = planned["rates"]
    by = f"by rates measured on {rates}" if rates else "by assumed rates, nothing being measured"
    lead = (
        f"What the build was expected to take, {by}, beside what it took. A ratio of 1 is a plan"
        " that was right; above it, the job took more."
    )
    if not rows:
        return Section(anchor=ANCHOR, title=TITLE, lead=f"{lead} No job is finished yet.")
    blocks: list[Block] = [_tiles(rows), _chart(rows), _table(rows)]
    if off := _off(rows):
        blocks.append(Text(text=off))
    if resumed := [row.job for row in rows if row.resumed]:
        blocks.append(
            Text(
                text=f"In several sittings: {', '.join(resumed)}. Their time is that of the last "
                "one alone."
            )
        )
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)


def ratio(planned: float | None, actual: float | None) -> float | None:
    """Actual in units of planned; None where either is unknown or nothing was planned."""
    return None if not planned or actual is None else actual / planned


def _tiles(rows: Sequence[Row]) -> Tiles:
    seconds = total(list(rows), lambda amount: amount.seconds)
    kept = total(list(rows), lambda amount: amount.bytes)
    return Tiles(
        tiles=(
            _tile("Time", duration(seconds[1]), duration(seconds[0]), ratio(*seconds), SECONDS_OFF),
            _tile("Bytes", size(kept[1]), size(kept[0]), ratio(*kept), BYTES_OFF),
        )
    )


def _tile(label: str, actual: str, planned: str, off: float | None, allowed: float) -> Tile:
    near = off is not None and abs(off - 1) <= allowed
    return Tile(
        label=label,
        value=actual,
        detail=f"planned {planned}, ratio {_ratio(off)}",
        tone="good" if near else "warn",
    )


def _chart(rows: Sequence[Row]) -> Charts:
    timed = [row for row in rows if row.actual.seconds is not None]
    labels = [label for row in timed for label in (row.job, "")]
    planned = [v for row in timed for v in (row.planned.seconds or 0.0, 0.0)]
    actual = [v for row in timed for v in (0.0, row.actual.seconds or 0.0)]
    told = ", ".join(
        f"{row.job} {duration(row.planned.seconds or 0)} planned, "
        f"{duration(row.actual.seconds or 0)} actual"
        for row in timed
    )
    return Charts(
        charts=(
            Chart(
                title="Seconds, planned and actual",
                hint="Look for pairs of bars that differ: there the rates, or the shares that were"
                " assumed, do not fit this machine or this set.",
                alt=f"Bars: {told}",
                svg=charts.stacked_bars(
                    "planned",
                    labels,
                    [("planned", planned, "blue"), ("actual", actual, "orange")],
                    x_label="seconds",
                ),
            ),
        )
    )


def _table(rows: Sequence[Row]) -> Table:
    lines: list[tuple[Cell, ...]] = [_line(row.job, row.planned, row.actual) for row in rows]
    sums = [total(list(rows), value) for value in (lambda a: a.seconds, lambda a: a.bytes)]
    lines.append(
        _line(
            "all",
            Amount(seconds=sums[0][0], bytes=sums[1][0], images=None),
            Amount(seconds=sums[0][1], bytes=sums[1][1], images=None),
        )
    )
    return Table(
        caption="Planned and actual, by job",
        head=(
            *("Job", "Time planned", "Time", "Ratio", "Bytes planned", "Bytes", "Ratio"),
            *("Images planned", "Images", "Ratio"),
        ),
        rows=tuple(lines),
        numeric=frozenset(range(1, 10)),
    )


def _line(job: str, planned: Amount, actual: Amount) -> tuple[Cell, ...]:
    cells: list[Cell] = [job]
    for write, name in ((duration, "seconds"), (size, "bytes"), (_count, "images")):
        both = getattr(planned, name), getattr(actual, name)
        cells += [_NOTHING if value is None else write(value) for value in both]
        cells.append(_ratio(ratio(*both)))
    return tuple(cells)


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}"


def _off(rows: Sequence[Row]) -> str:
    """Where the plan was off, in words; the largest differences first."""
    late = sorted(
        (
            (row.actual.seconds - row.planned.seconds, row.job)
            for row in rows
            if row.actual.seconds is not None
            and row.planned.seconds
            and abs(row.actual.seconds / row.planned.seconds - 1) > SECONDS_OFF
        ),
        key=lambda item: -abs(item[0]),
    )
    if not late:
        return ""
    told = ", ".join(
        f"{job} took {duration(abs(seconds))} {'longer' if seconds > 0 else 'less'}"
        for seconds, job in late
    )
    return f"Off by more than {100 * SECONDS_OFF:.0f} %: {told}."
