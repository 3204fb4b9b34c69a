"""Verification: what the trained recognizer reaches on pairs of people it has never seen."""

from typing import Any

from raypipe.report import charts
from raypipe.report.blocks import Block, Chart, Charts, Section, Table, Text, Tile, absent
from raypipe.report.charts import Histogram, Line
from raypipe.report.words import count, percent
from raypipe.report.workspace import Workspace

ANCHOR, TITLE = "verification", "Verification"
_ENOUGH = 10  # pairs let through by mistake that a rate should rest on


def _sets(workspace: Workspace) -> dict[str, dict[str, Any]]:
    results = workspace.json("evaluate", "results.json")
    return results["sets"] if results else {}


def tiles(workspace: Workspace) -> list[Tile]:
    """Accuracy on each verification set, and the true accept rate at the smallest FAR asked for."""
    found = []
    for name, result in _sets(workspace).items():
        far, tar = min(_tars(result).items())
        found.append(
            Tile(
                label=f"Accuracy on {name}",
                value=percent(result["accuracy"]),
                detail=f"± {100 * result['std']:.1f} over {len(result['accuracies'])} folds;"
                f" TAR {percent(tar['mean'])} at FAR {percent(far)}",
            )
        )
    return found


def _tars(result: dict[str, Any]) -> dict[float, dict[str, float]]:
    return {float(far): tar for far, tar in result["tar_at_far"].items()}


def section(workspace: Workspace) -> Section:
    """The section of the evaluation job."""
    sets = _sets(workspace)
    if not sets:
        return absent(ANCHOR, TITLE, "evaluate")
    blocks: list[Block] = [_table(sets), *_cautions(sets), _charts(sets)]
    lead = (
        "The recognizer gets two photographs and has to say whether they show one person."
        " Accuracy is the share of right answers, with the threshold chosen on the other folds;"
        " 50 % is"
        " guessing. TAR at FAR: of the pairs of one person, the share that is recognised when so"
        " many pairs of"
        " two people are let through by mistake. That is the number that matters at a door."
    )
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)


def _cautions(sets: dict[str, dict[str, Any]]) -> list[Text]:
    """A sentence for each set that has too few pairs for its smallest false accept rate."""
    found = []
    for name, result in sets.items():
        far, impostors = min(_tars(result)), result["impostor"]
        if far * impostors < _ENOUGH:
            found.append(
                Text(
                    text=f"{name} has {count(impostors, 'pair')} of two people. A FAR of"
                    f" {percent(far)} is {far * impostors:.1f} of them, so the TAR there is a rough"
                    " figure; a larger set would measure it."
                )
            )
    return found


def _table(sets: dict[str, dict[str, Any]]) -> Table:
    fars = sorted({far for result in sets.values() for far in _tars(result)})
    rows = []
    for name, result in sets.items():
        tars = _tars(result)
        rows.append(
            (
                name,
                f"{result['pairs']:,}",
                f"{percent(result['accuracy'], 2)} ± {100 * result['std']:.2f}",
                *(
                    f"{percent(tars[far]['mean'])} ± {100 * tars[far]['std']:.1f}"
                    if far in tars
                    else "–"
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


def _charts(sets: dict[str, dict[str, Any]]) -> Charts:
    drawn = [
        Chart(
            title="ROC",
            hint="Each point is a threshold: further left it lets fewer strangers through,"
            " further up it"
            " recognises more people. Look for a curve close to the upper left corner; the thin"
            " line is guessing.",
            alt="ROC curves: "
            + ", ".join(f"{name} with area {result['auc']:.3f}" for name, result in sets.items()),
            svg=charts.roc(
                "roc",
                [
                    Line(
                        label=name,
                        x=[point[0] for point in result["roc"]],
                        y=[point[1] for point in result["roc"]],
                    )
                    for name, result in sets.items()
                ],
            ),
        )
    ]
    for position, (name, result) in enumerate(sets.items()):
        histogram = result["histogram"]
        drawn.append(
            Chart(
                title=f"Similarities of {name}",
                hint="Blue: pairs of one person. Orange: pairs of two. Look for hills that stand"
                " apart; where they overlap the recognizer is wrong, wherever the threshold is"
                " put.",
                alt=f"Histogram of genuine and impostor similarities of {name}",
                svg=charts.histogram(
                    f"verification-{position}",
                    [
                        Histogram(label=label, edges=histogram["edges"], counts=histogram[kind])
                        for label, kind in (("one person", "genuine"), ("two people", "impostor"))
                    ],
                    x_label="cosine similarity of the trained network",
                ),
            )
        )
    return Charts(charts=tuple(drawn))
