"""Tables of results at a terminal and in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from jobs.progress import console
from raypipe.report.blocks import Table
from raypipe.report.sections import verification_tables as tables


def blocks_of(results: Mapping[str, Any]) -> list[Table]:
    """The tables of one recognizer's results, `results.json` of a workspace."""
    found = []
    if results["sets"]:
        found.append(tables.sets_table(results["sets"]))
    if results["ijb"]:
        found.append(tables.ijb_table(results["ijb"]))
    if groups := tables.groups_table(results["sets"]):
        found.append(groups)
    if results.get("epochs"):
        found.append(tables.epochs_table(results["epochs"]))
    return found


def show(blocks: Sequence[Table]) -> None:
    """Prints tables."""
    for block in blocks:
        console.print(block.caption, style="bold", markup=False)
        shown = RichTable(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
        for place, name in enumerate(block.head):
            numeric = place in block.numeric
            # At a narrow terminal headings and names are broken, and no number.
            least = max((len(str(row[place])) for row in block.rows), default=0) if place else None
            shown.add_column(name, justify="right" if numeric else "left", min_width=least)
        for row in block.rows:
            shown.add_row(*(escape(str(cell)) for cell in row))
        console.print(shown)
        console.print()


def show_published(own: Mapping[str, tables.Results]) -> None:
    """Prints the accuracies of recognizers, by name, beside published ones."""
    show([tables.published_table(own)])
    for note in tables.published_notes():
        console.print(note, style="dim", markup=False)


def markdown(blocks: Sequence[Table], own: Mapping[str, tables.Results]) -> str:
    """Tables, and last that of `show_published`, as a document in Markdown."""
    parts = ["# Verification"]
    for block in [*blocks, tables.published_table(own)]:
        rule = ["---:" if place in block.numeric else "---" for place in range(len(block.head))]
        lines = [_line(block.head), _line(rule), *(_line(map(str, row)) for row in block.rows)]
        parts += [f"## {block.caption}", "\n".join(lines)]
    return "\n\n".join([*parts, *tables.published_notes()]) + "\n"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
