"""Verification: what the trained recognizer reaches on pairs of people it has never seen."""

from typing import Any

from raypipe.report.blocks import Block, Section, Text, Tile, absent
from raypipe.report.sections.verification_figures import drawings
from raypipe.report.sections.verification_tables import (
    epochs_table,
    groups_table,
    ijb_table,
    published_notes,
    published_table,
    sets_table,
    tars_of,
)
from raypipe.report.words import count, percent
from raypipe.report.workspace import Workspace

ANCHOR, TITLE = "verification", "Verification"
_ENOUGH = 10  # pairs let through by mistake that a rate should rest on


def _results(workspace: Workspace) -> dict[str, Any]:
    found = workspace.json("evaluate", "results.json")
    return {"sets": {}, "ijb": {}, "epochs": [], **(found or {})}


def tiles(workspace: Workspace) -> list[Tile]:
    """Accuracy on each verification set, and the true accept rate at the smallest FAR asked for."""
    found = []
    for name, result in _results(workspace)["sets"].items():
        far, tar = min(tars_of(result).items())
        found.append(
            Tile(
                label=f"Accuracy on {name}",
                value=percent(result["accuracy"]),
                detail=f"± {100 * result['std']:.1f} over {len(result['accuracies'])} folds;"
                f" TAR {percent(tar['mean'])} at FAR {percent(far)}",
            )
        )
    return found


def section(workspace: Workspace) -> Section:
    """The section of the evaluation job."""
    found = _results(workspace)
    sets, ijb, epochs = found["sets"], found["ijb"], found["epochs"]
    if not sets and not ijb:
        return absent(ANCHOR, TITLE, "evaluate")
    blocks: list[Block] = []
    if sets:
        blocks += [sets_table(sets), *_cautions(sets)]
    if ijb:
        blocks.append(ijb_table(ijb))
    if groups := groups_table(sets):
        blocks.append(groups)
    blocks.append(drawings(sets, ijb, epochs))
    if epochs:
        blocks.append(epochs_table(epochs))
    blocks.append(published_table({"this recognizer": sets}))
    blocks += [Text(text=note) for note in published_notes()]
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
        far, impostors = min(tars_of(result)), result["impostor"]
        if far * impostors < _ENOUGH:
            found.append(
                Text(
                    text=f"{name} has {count(impostors, 'pair')} of two people. A FAR of"
                    f" {percent(far)} is {far * impostors:.1f} of them, so the TAR there is a rough"
                    " figure; a larger set would measure it."
                )
            )
    return found
