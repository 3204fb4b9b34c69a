"""Says before a run what it will ask of others, and what that costs."""

from rich.table import Table

from jobs.progress import console
from raypipe.config import Build
from raypipe.judging.planning import Plan, plan


def run(config: Build) -> Plan | None:
    """Prints calls, tokens and price of the vision model; returns them.

    Raises:
        UserError: where a source cannot be read.
    """
    found, judge = plan(config), config.judge
    if found is None or judge is None:
        console.print("no vision model is asked: nothing leaves the machine, and nothing is paid")
        return None
    table = Table(
        "", "calls", "Batch API", title=f"{judge.model} at {judge.base_url}", title_justify="left"
    )
    table.add_row("identities asked about", f"{found.asked:,} of {found.identities:,}", "")
    table.add_row("faces sent", f"{found.faces:,}", "")
    table.add_row("questions, one a sheet", f"{found.calls:,}", f"{found.calls:,}")
    table.add_row("tokens sent", f"{found.sent:,}", f"{found.sent:,}")
    table.add_row("tokens back", f"{found.received:,}", f"{found.received:,}")
    table.add_row("price", f"${found.dollars:,.2f}", f"${found.batch_dollars:,.2f}")
    if judge.budget is not None:
        table.add_row("budget", f"${judge.budget:,.2f}", f"${judge.budget:,.2f}")
    console.print(table)
    console.print(f"{found.basis}; prices are those of the configuration (judge.prices)")
    if judge.budget is not None and min(found.dollars, found.batch_dollars) > judge.budget:
        console.print("[bold red]the budget will not last[/]: the job stops when it is spent")
    return found
