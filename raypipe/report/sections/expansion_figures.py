"""The tables and drawings of the expansion section."""

from typing import Any

from raypipe.impostors import BIN
from raypipe.recheck import IN_GALLERY, NOT_THE_PERSON, OUT_OF_BAND, SOMEBODY_ELSE
from raypipe.report import charts
from raypipe.report.blocks import Badge, Cell, Chart, Charts, Table
from raypipe.report.charts import Line, Mark
from raypipe.report.expanded import Expanded
from raypipe.report.sections.similarity import Fine, coarse
from raypipe.report.words import count, percent, reason_sentence, short_reason

COLOURS = {
    NOT_THE_PERSON: "orange",
    SOMEBODY_ELSE: "purple",
    IN_GALLERY: "red",
    OUT_OF_BAND: "blue",
}
_DIALS = {"vec2face": "noise on the vector (spreads)", "cemiface": "similarity asked for (m)"}


def comparisons(measured: dict[str, Any]) -> Table:
    """Which similarities decided.

    Args:
        measured: the content of `thresholds.json`.
    """
    thresholds, rates = measured["thresholds"], measured["false_match_rates"]
    recognised = measured["recognised"]
    own, other = (f"1 in {1 / rates[name]:,.0f}" for name in ("own", "other"))
    others = [("every other identity", f"less than {thresholds['other']:.3f}, and than to its own")]
    others += [
        (f"gallery {name}", f"less than {value:.3f}")
        for name, value in sorted(thresholds["galleries"].items())
    ]
    return Table(
        caption="What an image needed to pass",
        head=(
            "Compared with",
            "Similarity",
            "Strangers that reach it",
            "Pictures of one person that reach it",
        ),
        rows=(
            (
                "the vector of its own identity",
                f"at least {thresholds['own']:.3f}",
                own,
                "–" if recognised is None else percent(recognised),
            ),
            *((name, needed, other, "–") for name, needed in others),
        ),
        numeric=frozenset({1, 2, 3}),
    )


def refusals(found: Expanded) -> Table:
    """Why images were refused."""
    rows: list[tuple[Cell, ...]] = [
        (
            Badge(text=short_reason(reason), tone="bad"),
            reason_sentence(reason),
            f"{found.refused[reason]:,}",
            percent(found.refused[reason] / found.drawn),
        )
        for reason in COLOURS
        if reason != OUT_OF_BAND or found.refused[reason]  # there may have been no band
    ]
    return Table(
        caption="Refused images by reason",
        head=("Reason", "What it means", "Images", "Of all drawn"),
        rows=tuple(rows),
        numeric=frozenset({2, 3}),
    )


def painters(found: Expanded) -> Table:
    """What each generator painted."""
    rows: list[tuple[Cell, ...]] = [
        (
            name,
            f"{painted.drawn:,}",
            percent(painted.drawn / found.drawn),
            percent(painted.passed / painted.drawn),
            f"{painted.similarity / painted.drawn:.3f}",
        )
        for name, painted in sorted(found.painters.items())
    ]
    return Table(
        caption="Images by generator",
        head=("Generator", "Images drawn", "Of all", "Passed", "Mean similarity to the vector"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
    )


def _attempts(found: Expanded) -> list[int]:
    return sorted({attempt for attempt, _ in found.draws})


def acceptance(found: Expanded) -> Table:
    """How many images passed at their first draw, their second and so on."""
    rows: list[tuple[Cell, ...]] = []
    missing = found.wanted
    for attempt in _attempts(found):
        drawn = sum(number for (when, _), number in found.draws.items() if when == attempt)
        passed = found.draws[attempt, None]
        missing -= passed
        rows.append(
            (f"{attempt + 1}", f"{drawn:,}", f"{passed:,}", percent(passed / drawn), f"{missing:,}")
        )
    return Table(
        caption="Acceptance by draw",
        head=("Draw", "Images", "Passed", "Share", "Still missing"),
        rows=tuple(rows),
        numeric=frozenset(range(5)),
    )


def drawings(found: Expanded, measured: dict[str, Any]) -> Charts:
    """Similarities with their thresholds, and the draws.

    Args:
        found: with at least one image drawn.
        measured: the content of `thresholds.json`.
    """
    own, other = (measured["thresholds"][name] for name in ("own", "other"))
    groups = [
        Fine(label=label, colour=colour, start=-1.0, width=BIN, counts=histogram.counts)
        for label, colour, histogram in (
            ("to its own vector", "blue", found.own),
            ("to the nearest other person", "orange", found.nearest),
        )
    ]
    similarity = Chart(
        title="Images: own vector against the nearest other person",
        hint="All images drawn. Blue: an image and the vector it was made from. Orange: the same"
        " image and whoever else it is most like. An image passes right of the first line in blue"
        " and left of the second in orange. Look for blue left of its line: those are draws that"
        " were wasted.",
        alt=f"Histogram of the similarities of {count(found.drawn, 'image')} to their own vectors,"
        f" threshold {own:.3f}, and to the nearest other person, threshold {other:.3f}",
        svg=charts.histogram(
            "expand-similarity",
            coarse(groups),
            x_label="cosine similarity",
            marks=[
                Mark(label=f"own: at least {own:.3f}", value=own),
                Mark(label=f"other: below {other:.3f}", value=other),
            ],
        ),
    )
    attempts = _attempts(found)
    parts = [
        (name, [found.draws[attempt, reason] for attempt in attempts], colour)
        for reason, name, colour in (
            (None, "passed", "green"),
            *((reason, short_reason(reason), colour) for reason, colour in COLOURS.items()),
        )
    ]
    draws = Chart(
        title="Passed and refused, draw by draw",
        hint="An image that is refused is drawn again with other noise. Look for long bars below"
        " the first: many attempts cost time, and images that pass only then may all look alike.",
        alt="Bars: "
        + ", ".join(
            f"draw {attempt + 1} {found.draws[attempt, None]:,} passed" for attempt in attempts
        ),
        svg=charts.stacked_bars(
            "expand-draws",
            [f"draw {attempt + 1}" for attempt in attempts],
            [part for part in parts if any(part[1])],
            x_label="images",
        ),
    )
    return Charts(charts=(similarity, draws))


def dials(measured: dict[str, Any]) -> Charts:
    """What similarity each value of a generator's dial gives.

    Args:
        measured: the content of `dial.json`, of at least one generator.
    """
    low, high = measured["band"]
    return Charts(
        charts=tuple(
            _dial(f"expand-dial-{place}", painter, low, high)
            for place, painter in enumerate(measured["painters"])
        )
    )


def _dial(name: str, painter: dict[str, Any], low: float, high: float) -> Chart:
    curve = painter["curve"]
    lowest, highest = min(curve["fitted"]), max(curve["fitted"])
    return Chart(
        title=f"What sets the similarity: {painter['weights']}",
        hint="Measured before the job painted: the mean similarity of images to their vector at"
        " some values of the dial, and the curve that the dial was set by. The lines are the band"
        " of similarities that was wanted. Look for a part of the band that the curve does not"
        " reach: images were aimed at the curve's end there.",
        alt=f"Curve of the dial of {painter['weights']}: similarities from {lowest:.3f} to"
        f" {highest:.3f}; wanted were {low:g} to {high:g}",
        svg=charts.lines(
            name,
            [
                Line(label="measured", x=curve["means"], y=curve["dials"]),
                Line(label="used", x=curve["fitted"], y=curve["dials"]),
            ],
            x_label="cosine similarity",
            y_label=_DIALS[painter["kind"]],
            marks=[
                Mark(label=f"from {low:g}", value=low),
                Mark(label=f"to {high:g}", value=high),
            ],
        ),
    )
