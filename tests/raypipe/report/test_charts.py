import re
from xml.etree import ElementTree

import numpy as np
import pytest

from raypipe.report import charts
from raypipe.report.charts import COLOURS, Histogram, Line, Mark

CURVE = Line(label="a <b> & c", x=[1.0, 2.0, 3.0], y=[3.0, 2.0, 1.5])


def drawings() -> dict[str, str]:
    histogram = Histogram(label="genuine", edges=[0, 0.5, 1.0], counts=[1, 3])
    far = np.logspace(-3, 0, 20).tolist()
    return {
        "lines": charts.lines("lines", [CURVE], x_label="x", y_label="y"),
        "histogram": charts.histogram(
            "histogram", [histogram], x_label="x", marks=[Mark(label="threshold", value=0.4)]
        ),
        "roc": charts.roc("roc", [Line(label="set", x=[0.0, *far], y=[0.1, *far])]),
        "bars": charts.stacked_bars(
            "bars", ["one", "two"], [("a", [1, 2], "blue"), ("b", [2, 0], "orange")], x_label="s"
        ),
    }


@pytest.fixture(scope="module")
def drawn() -> dict[str, str]:
    return drawings()


@pytest.mark.parametrize("name", ["lines", "histogram", "roc", "bars"])
def test_fits_its_container_and_follows_the_scheme(drawn: dict[str, str], name: str) -> None:
    svg = drawn[name]
    root = ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert root.attrib.keys() == {"aria-hidden", "focusable", "viewBox"}, "no fixed size"
    assert not any(placeholder in svg for placeholder in COLOURS.values())
    assert "var(--ink)" in svg or "var(--muted)" in svg
    assert "http" not in svg
    assert set(re.findall(r"font-family: ([^;\"]*)", svg)) == {"var(--font)"}, (
        "text in the page's font"
    )
    assert len(svg) < 60_000


def test_text_stays_text_and_is_escaped(drawn: dict[str, str]) -> None:
    assert "a &lt;b&gt; &amp; c" in drawn["lines"]


def test_no_id_is_used_twice_over_all_drawings(drawn: dict[str, str]) -> None:
    ids = [found for svg in drawn.values() for found in re.findall(r'\bid="([^"]+)"', svg)]
    assert len(ids) == len(set(ids))


def test_same_input_gives_the_same_bytes(drawn: dict[str, str]) -> None:
    assert drawings() == drawn


def test_a_group_without_counts_is_left_out() -> None:
    svg = charts.histogram(
        "empty",
        [
            Histogram(label="full", edges=[0, 1, 2], counts=[1, 1]),
            Histogram(label="nothing here", edges=[0, 1], counts=[0]),
        ],
        x_label="x",
    )
    assert "full" in svg
    assert "nothing here" not in svg
