"""Training: loss, accuracy and learning rate from epoch to epoch."""

from typing import Any

from raypipe.config.curriculum import CurriculumConfig
from raypipe.report import charts
from raypipe.report.blocks import Block, Chart, Charts, Section, Table, absent
from raypipe.report.charts import Line
from raypipe.report.words import count, duration, percent
from raypipe.report.workspace import Workspace

ANCHOR, TITLE = "training", "Training"


_ORDERS = {
    "sequential": "phase after phase in each",
    "paced": "harder phases admitted from epoch to epoch",
    "mixed": "all phases mixed",
}
_PHASES = {
    "source": "; phases are the sources",
    "similarity": "; phases go from images near their identity's centre to those far from it",
    "nearest": "; phases go from identities like nobody else to those with a near neighbour",
}


def section(workspace: Workspace) -> Section:
    """The section of the training job."""
    history = workspace.json("train", "history.json")
    if history is None:
        return absent(ANCHOR, TITLE, "train")
    epochs: list[dict[str, Any]] = history["epochs"]
    blocks: list[Block] = [_charts(epochs), _table(epochs)]
    card = workspace.json("train", "recognizer.json")
    assert card is not None  # written with the history
    curriculum = CurriculumConfig(**card["config"]["curriculum"])
    lead = (
        f"{count(len(epochs), 'epoch')} of {count(epochs[-1]['images'], 'image')}, "
        f"{_ORDERS[curriculum.schedule]}{_PHASES[curriculum.by]}. The network learns to tell the"
        " identities of the training set apart; how well it does on people it has never seen"
        " is in the next section."
    )
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)


def _charts(epochs: list[dict[str, Any]]) -> Charts:
    numbers = [float(number) for number in range(1, len(epochs) + 1)]
    losses = [epoch["loss"] for epoch in epochs]
    accuracies = [100 * epoch["accuracy"] for epoch in epochs]
    return Charts(
        charts=(
            Chart(
                title="Loss",
                hint="Look for a curve that falls and flattens. One that rises again, or jumps,"
                " asks for a smaller learning rate.",
                alt=f"Line from {losses[0]:.2f} in the first epoch to {losses[-1]:.2f} in the last",
                svg=charts.lines(
                    "loss",
                    [Line(label="mean loss", x=numbers, y=losses)],
                    x_label="epoch",
                    y_label="cross entropy with margin",
                ),
            ),
            Chart(
                title="Training accuracy",
                hint="Share of the training images nearest to their own identity. Look for a"
                " rise; near 100 % with a poor result in verification means that the set was"
                " learned by heart.",
                alt=f"Line from {accuracies[0]:.1f} % in the first epoch to {accuracies[-1]:.1f} %",
                svg=charts.lines(
                    "accuracy",
                    [Line(label="training accuracy", x=numbers, y=accuracies, colour="green")],
                    x_label="epoch",
                    y_label="%",
                ),
            ),
        )
    )


def _table(epochs: list[dict[str, Any]]) -> Table:
    # Of a long training the first, the last and some between are enough to read.
    step = max(1, -(-len(epochs) // 30))
    chosen = sorted({*range(0, len(epochs), step), len(epochs) - 1})
    return Table(
        caption="Epochs" if step == 1 else f"Epochs, every {step}",
        head=(
            *("Epoch", "Images", "Loss", "Accuracy", "Learning rate", "Time"),
            *("Waiting for data", "Images/s"),
        ),
        rows=tuple(
            (
                f"{number + 1}",
                f"{epoch['images']:,}",
                f"{epoch['loss']:.3f}",
                percent(epoch["accuracy"]),
                f"{epoch['learning_rate']:.2g}",
                duration(epoch["seconds"]),
                percent(epoch["wait_seconds"] / max(epoch["seconds"], 1e-9), 0),
                f"{epoch['images'] / max(epoch['seconds'], 1e-9):,.0f}",
            )
            for number in chosen
            for epoch in [epochs[number]]
        ),
        numeric=frozenset(range(1, 8)),
    )
