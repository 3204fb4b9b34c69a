"""The tables of a plan."""

from rich.markup import escape
from rich.table import Table

from jobs.progress import console
from raypipe.config import Build
from raypipe.judging import planning as judging
from raypipe.planning.plan import Plan
from raypipe.planning.timing import HERE
from raypipe.report.words import duration, size


def print_jobs(plan: Plan) -> None:
    """Prints a line a job, a line a pool, and the bottleneck."""
    table = Table("job", "sizes", box=None, pad_edge=False)
    for name in ("identities", "images", "bytes", "FLOP", "time"):
        table.add_column(name, justify="right")
    for time in plan.times:
        job = time.job
        table.add_row(
            job.name,
            "done" if job.name in plan.done else job.basis,
            f"{job.identities:,.0f}" if job.identities else "",
            f"{job.images:,.0f}" if job.images else "",
            size(job.bytes),
            _operations(job.operations),
            duration(time.seconds),
        )
    table.add_row(
        "all", "", "", "", size(plan.bytes), _operations(plan.operations), duration(plan.seconds)
    )
    console.print(table)
    for time in plan.times:
        if time.job.note:
            console.print(f"{time.job.name}: {time.job.note}", style="dim")
    _print_steps(plan)
    longest = plan.bottleneck
    share = 100 * longest.seconds / plan.seconds
    console.print(f"bottleneck: [bold]{longest.job.name}[/], {share:.0f} % of the time")


def _print_steps(plan: Plan) -> None:
    """Where the pools land, and how fast each actor is taken to be."""
    table = Table("step", title="pools", title_justify="left", box=None, pad_edge=False)
    for name in ("actors", "on", "images", "images/s each", "time", "rate"):
        text = name in ("on", "rate")
        table.add_column(name, justify="left" if text else "right", no_wrap=True)
    for time in plan.times:
        for found in time.steps:
            if not found.step.field or found.seconds <= 0:
                continue
            rate = found.step.images / found.seconds / found.place.actors
            table.add_row(
                f"{time.job.name}: {found.step.name}",
                f"{found.place.actors:,}",
                f"{found.place.nodes:,} {found.place.node.name}",
                f"{found.step.images:,.0f}",
                f"{rate:,.1f}",
                duration(found.seconds),
                "measured" if found.measured else "assumed",
            )
    console.print(table)


def _operations(number: float) -> str:
    """Floating point operations with a unit: 1234567890 → "1.2 G"."""
    for unit in ("M", "G", "T", "P", "E"):
        number /= 1000 if unit != "M" else 1e6
        if number < 1000 or unit == "E":
            return f"{number:,.1f} {unit}" if number >= 0.05 else ""
    raise AssertionError


def print_machines(plan: Plan, config: Build) -> None:
    """Prints hours of machines and, where there are prices, dollars."""
    table = Table("", title="machines and storage", title_justify="left", box=None, pad_edge=False)
    table.add_column("hours", justify="right")
    table.add_column("GPU-hours", justify="right")
    table.add_column("dollars", justify="right")
    for name, hours in plan.hours.items():
        dollars = plan.bill.machines.get(name)
        gpus = plan.gpus[name] * hours
        table.add_row(name, f"{hours:,.2f}", f"{gpus:,.2f}" if gpus else "", in_dollars(dollars))
    months = config.plan.months
    kept = f"{plan.bytes / 1e9:,.1f} GB, {months:g} months"
    table.add_row(f"results: {kept}", "", "", in_dollars(plan.bill.bucket))
    if plan.bill.disks is not None:
        table.add_row("disks of the nodes", "", "", in_dollars(plan.bill.disks))
    if plan.questions is not None:
        batch = config.judge is not None and config.judge.mode == "batch"
        asked = plan.questions.batch_dollars if batch else plan.questions.dollars
        table.add_row("vision model", "", "", in_dollars(asked))
        total = None if plan.bill.total is None else plan.bill.total + asked
    else:
        total = plan.bill.total
    if plan.bill.machines:
        table.add_row("all", "", "", in_dollars(total))
    console.print(table)
    if plan.bill.missing and plan.bill.missing != [HERE]:
        console.print(
            f"no price of {', '.join(plan.bill.missing)}: plan.prices.nodes of the configuration"
        )


def in_dollars(value: float | None) -> str:
    """1234.5 → "1,234.50"; nothing where there is no price."""
    return "" if value is None else f"{value:,.2f}"


def print_questions(config: Build, found: judging.Plan | None) -> None:
    """Prints calls, tokens and price of the vision model."""
    judge = config.judge
    if found is None or judge is None:
        console.print("no vision model is asked: nothing leaves the machine, and nothing is paid")
        return
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


def print_basis(plan: Plan) -> None:
    """Prints what the rates come from."""
    if not plan.reached:
        console.print("the workspace cannot be reached from here: planned as if nothing was done")
    if plan.rates.where:
        console.print(f"rates: measured on {escape(plan.rates.where)}", soft_wrap=True)
        rest = sorted(
            {s.step.name for t in plan.times for s in t.steps if not s.measured and s.seconds > 1}
        )
        if rest:
            console.print(f"assumed all the same: {', '.join(rest)}", style="yellow")
    else:
        console.print(
            "[yellow]rates: assumed[/] from peaks of the hardware (raypipe/planning/rates.yaml); "
            "`raypipe plan CONFIG --calibrate` measures them where it runs"
        )
