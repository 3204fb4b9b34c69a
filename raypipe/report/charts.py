"""The drawings of the report: matplotlib to SVG that fits into a page.

Colours are drawn as placeholders and replaced by CSS variables, so that one drawing serves the
light and the dark scheme. Text stays text, in the page's font.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# A placeholder is a colour that nothing else uses.
COLOURS = {
    "ink": "#010201",
    "muted": "#010202",
    "line": "#010203",
    "blue": "#010204",
    "orange": "#010205",
    "green": "#010206",
    "red": "#010207",
    "purple": "#010208",
    "card": "#010209",
}
SERIES = ("blue", "orange", "green", "purple", "red")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_WIDTH, _HEIGHT = 5.0, 3.0  # inches of 72 units: 360×216, the width of a phone, so text is legible
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve: x and y of equal length, and the colour's name (default: by position)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str | None = None


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts in bins: `edges` has one entry more than `counts`."""

    label: str
    edges: Sequence[float]
    counts: Sequence[float]
    colour: str | None = None


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A vertical line at a value, for example a threshold."""

    label: str
    value: float


def _svg(figure: Figure, name: str) -> str:
    """The drawing as an SVG element without a fixed size, ids of its own and no metadata."""
    buffer = io.StringIO()
    # The salt makes the clip paths' ids different from one drawing to the next, and repeatable.
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view, "matplotlib writes a view box"
    # Inside HTML an SVG element needs no namespaces, and without a size it fills its container.
    text = f'<svg aria-hidden="true" focusable="false" {view[0]}>' + text[text.index(">") + 1 :]
    text = re.sub(r'<g id="[\w.]+_\d+"(/?)>', r"<g\1>", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--font)", text)
    text = re.sub(r"\n\s*", " ", text)
    for colour, placeholder in COLOURS.items():
        text = text.replace(placeholder, f"var(--{colour})")
    return text.strip()


def _axes(x_label: str, y_label: str, height: float = _HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.tick_params(length=0)
    return figure, axes


def _legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = 1 if max(map(len, labels)) > 26 else 2
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, fontsize=9
        )


def _colour(name: str | None, position: int) -> str:
    return COLOURS[name or SERIES[position % len(SERIES)]]


def lines(
    name: str, curves: Sequence[Line], *, x_label: str, y_label: str, marks: Sequence[Mark] = ()
) -> str:
    """Curves over a linear axis.

    Args:
        name: unique over the page.
        curves: at least one.
        marks: vertical lines, each named.

    Returns:
        An SVG element.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(x_label, y_label)
        for position, curve in enumerate(curves):
            single = "o" if len(curve.x) == 1 else None
            axes.plot(
                curve.x,
                curve.y,
                label=curve.label,
                color=_colour(curve.colour, position),
                linestyle=_DASHES[position % len(_DASHES)],
                marker=single,
            )
        for mark in marks:
            axes.axvline(mark.value, color=COLOURS["ink"], linewidth=1.0, linestyle=":")
            axes.annotate(
                mark.label,
                (mark.value, 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -9),
                textcoords="offset points",
                color=COLOURS["muted"],
                fontsize=9.5,
            )
        if all(float(value).is_integer() for curve in curves for value in curve.x):  # epochs
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.01)
        _legend(axes)
        return _svg(figure, name)


def roc(name: str, curves: Sequence[Line]) -> str:
    """ROC curves: true accept rate over the logarithm of the false accept rate.

    Args:
        name: unique over the page.
        curves: x is FAR in [0, 1], y is TAR in [0, 1]; a FAR of 0 cannot be drawn and is left out.

    Returns:
        An SVG element.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes("false accept rate (FAR), log scale", "true accept rate (TAR)")
        for position, curve in enumerate(curves):
            far, tar = np.asarray(curve.x, float), np.asarray(curve.y, float)
            drawn = far > 0
            axes.plot(
                far[drawn],
                tar[drawn],
                label=curve.label,
                color=_colour(curve.colour, position),
                linestyle=_DASHES[position % len(_DASHES)],
                drawstyle="steps-post",
            )
        least = min((min(x for x in curve.x if x > 0) for curve in curves), default=1e-4)
        chance = np.geomspace(least, 1, 40)
        axes.plot(chance, chance, color=COLOURS["muted"], linewidth=0.9, label="guessing")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.set_xlim(least / 1.5, 1)
        _legend(axes)
        return _svg(figure, name)


def histogram(
    name: str, groups: Sequence[Histogram], *, x_label: str, marks: Sequence[Mark] = ()
) -> str:
    """Histograms over each other, each as a share of its own group, so that sizes compare.

    Args:
        name: unique over the page.
        groups: at least one; the bins may differ.
        marks: thresholds, drawn as dashed vertical lines and named in the legend.

    Returns:
        An SVG element.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(x_label, "share of the group")
        low, high, width = np.inf, -np.inf, max(_bin_width(group) for group in groups)
        for position, group in enumerate(groups):
            counts, edges = np.asarray(group.counts, float), np.asarray(group.edges, float)
            total = counts.sum()
            if total == 0:
                continue
            # Per widest bin, so that groups with different bins have equal areas.
            density = counts / total * width / np.diff(edges)
            colour = _colour(group.colour, position)
            axes.stairs(density, edges, fill=True, color=colour, alpha=0.28)
            axes.stairs(density, edges, color=colour, linewidth=1.4, label=group.label)
            filled = np.flatnonzero(counts)
            low, high = min(low, edges[filled[0]]), max(high, edges[filled[-1] + 1])
        for position, mark in enumerate(marks):
            style = _DASHES[1 + position % 3]
            axes.axvline(
                mark.value, color=COLOURS["ink"], linewidth=1.4, linestyle=style, label=mark.label
            )
            low, high = min(low, mark.value), max(high, mark.value)
        margin = 0.03 * (high - low) or 0.05
        if low < high:
            axes.set_xlim(low - margin, high + margin)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        _legend(axes)
        return _svg(figure, name)


def _bin_width(group: Histogram) -> float:
    return float(np.max(np.diff(np.asarray(group.edges, float))))


def stacked_bars(
    name: str,
    labels: Sequence[str],
    parts: Sequence[tuple[str, Sequence[float], str]],
    *,
    x_label: str,
) -> str:
    """Horizontal bars, each stacked of the same parts, the first label on top.

    Args:
        name: unique over the page.
        labels: one for each bar.
        parts: (legend, value of each bar, colour's name), values not negative.

    Returns:
        An SVG element.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _axes(x_label, "", height=0.9 + 0.24 * len(labels))
        places = np.arange(len(labels))[::-1]
        left = np.zeros(len(labels))
        for legend, values, colour in parts:
            lengths = np.asarray(values, float)
            axes.barh(
                places,
                lengths,
                left=left,
                height=0.7,
                label=legend if len(parts) > 1 else None,
                color=COLOURS[colour],
                edgecolor=COLOURS["card"],
                linewidth=0.6,
            )
            left += lengths
        axes.set_yticks(places, labels)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, max(float(left.max()) * 1.05, 1e-3))
        _legend(axes)
        return _svg(figure, name)
