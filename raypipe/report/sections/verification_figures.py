"""The charts of the verification section."""

from collections.abc import Mapping, Sequence
from typing import Any

from raypipe.report import charts
from raypipe.report.blocks import Chart, Charts
from raypipe.report.charts import Histogram, Line
from raypipe.report.sections.verification_tables import Results


def drawings(sets: Results, ijb: Results, epochs: Sequence[Mapping[str, Any]]) -> Charts:
    """ROC curves of pairs and of IJB, accuracy by epoch, and similarities of every set."""
    drawn = []
    if sets:
        drawn.append(
            _roc(
                "ROC",
                "Each point is a threshold: further left it lets fewer strangers through,"
                " further up it recognises more people. Look for a curve close to the upper left"
                " corner; the thin line is guessing.",
                "roc",
                sets,
            )
        )
    if ijb:
        drawn.append(
            _roc(
                "ROC of IJB",
                "The same for pairs of templates. Look at the left: where it is published, at a"
                " FAR of 0.0001, a single stranger in ten thousand is let through.",
                "roc-ijb",
                ijb,
            )
        )
    if epochs:
        drawn.append(_by_epoch(epochs))
    drawn += [_similarities(place, name, found) for place, (name, found) in enumerate(sets.items())]
    return Charts(charts=tuple(drawn))


def _roc(title: str, hint: str, identifier: str, results: Results) -> Chart:
    areas = ", ".join(f"{name} with area {found['auc']:.3f}" for name, found in results.items())
    curves = [
        Line(
            label=name,
            x=[point[0] for point in found["roc"]],
            y=[point[1] for point in found["roc"]],
        )
        for name, found in results.items()
    ]
    return Chart(
        title=title, hint=hint, alt=f"{title}: {areas}", svg=charts.roc(identifier, curves)
    )


def _by_epoch(epochs: Sequence[Mapping[str, Any]]) -> Chart:
    curves = [
        Line(
            label=name,
            x=[epoch["epoch"] for epoch in epochs],
            y=[100 * epoch["sets"][name]["accuracy"] for epoch in epochs],
        )
        for name in epochs[0]["sets"]
    ]
    ends = ", ".join(f"{c.label} from {c.y[0]:.1f} % to {c.y[-1]:.1f} %" for c in curves)
    return Chart(
        title="Accuracy by epoch",
        hint="What the recognizer was after the epochs whose weights were kept. Look for a curve"
        " that still rises at its end, which asks for more epochs, or that falls, which asks for"
        " fewer.",
        alt=f"Lines: {ends}",
        svg=charts.lines("by-epoch", curves, x_label="epoch", y_label="accuracy in %"),
    )


def _similarities(place: int, name: str, found: Mapping[str, Any]) -> Chart:
    histogram = found["histogram"]
    return Chart(
        title=f"Similarities of {name}",
        hint="Blue: pairs of one person. Orange: pairs of two. Look for hills that stand"
        " apart; where they overlap the recognizer is wrong, wherever the threshold is"
        " put.",
        alt=f"Histogram of genuine and impostor similarities of {name}",
        svg=charts.histogram(
            f"verification-{place}",
            [
                Histogram(label=label, edges=histogram["edges"], counts=histogram[kind])
                for label, kind in (("one person", "genuine"), ("two people", "impostor"))
            ],
            x_label="cosine similarity of the trained network",
        ),
    )
