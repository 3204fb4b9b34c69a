"""Where the time went: seconds per stage, throughput, waiting for data against computing."""

from typing import Any

from raypipe import storage
from raypipe.planning.actual import job_seconds
from raypipe.report import charts
from raypipe.report.blocks import Block, Chart, Charts, Section, Table
from raypipe.report.words import duration
from raypipe.report.workspace import JOBS, Workspace

ANCHOR, TITLE = "timing", "Time"


def _inner(workspace: Workspace, job: str) -> list[tuple[str, str]]:
    """(prefix, folder) of the stages that a job runs inside its folder, in their order."""
    if job == "assemble":
        return [("", "assemble/identities")]
    if job == "screen":
        galleries = storage.listdir(workspace.path("screen", "galleries"))
        return [
            (f"gallery {gallery.name}", f"screen/galleries/{gallery.name}/{part}")
            for gallery in galleries
            for part in ("ingest", "embed")
        ]
    return []


def _stages(workspace: Workspace) -> list[tuple[str, dict[str, Any]]]:
    """(label, stage of run.json) of every job that left one."""
    found = []
    for job in JOBS:
        for prefix, folder in [*_inner(workspace, job), ("", job)]:
            run = workspace.json(folder, "run.json")
            for stage in run["stages"] if run else []:
                label = " ".join(part for part in (prefix, stage["name"]) if part)
                found.append((job if label == job else f"{job}: {label}", stage))
    return found


def total_seconds(workspace: Workspace) -> float:
    """Seconds of all finished jobs' last runs."""
    return sum(job_seconds(workspace.root, job)[0] or 0.0 for job in JOBS)


def section(workspace: Workspace) -> Section:
    """The section of `run.json` of all jobs."""
    stages = _stages(workspace)
    lead = (
        "How long each stage took, and how fast it was. Times are of the last run of each job; a"
        " run that was resumed counts only what was left to do."
    )
    if not stages:
        return Section(anchor=ANCHOR, title=TITLE, lead="No job has noted its timings yet.")
    blocks: list[Block] = [_charts(stages), _table(stages)]
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)


def _charts(stages: list[tuple[str, dict[str, Any]]]) -> Charts:
    labels = [label for label, _ in stages]
    walls = [stage["seconds"] for _, stage in stages]
    drawn = [
        Chart(
            title="Seconds per stage",
            hint="Look for the longest bar: that is where more actors or a GPU would help most.",
            alt="Bars: " + ", ".join(f"{n} {s:.1f} s" for n, s in zip(labels, walls, strict=True)),
            svg=charts.stacked_bars(
                "walls", labels, [("wall time", walls, "blue")], x_label="seconds"
            ),
        )
    ]
    pooled = [(label, stage) for label, stage in stages if stage.get("actors")]
    if pooled:
        shares = [_shares(stage) for _, stage in pooled]
        names = [label for label, _ in pooled]
        alt = ", ".join(
            f"{n} {c:.0f} % computing" for n, (c, _, _) in zip(names, shares, strict=True)
        )
        drawn.append(
            Chart(
                title="Computing or waiting",
                hint="Look for much orange: actors that wait for data do not get faster by more of"
                " them; give the reading side more CPUs.",
                alt=f"Bars, share of the actors' time: {alt}",
                svg=charts.stacked_bars(
                    "shares",
                    names,
                    [
                        ("computing", [share[0] for share in shares], "blue"),
                        ("converting", [share[1] for share in shares], "purple"),
                        ("waiting for data", [share[2] for share in shares], "orange"),
                    ],
                    x_label="% of the actors' time",
                ),
            )
        )
    return Charts(charts=tuple(drawn))


def _shares(stage: dict[str, Any]) -> tuple[float, float, float]:
    """Percent of the actors' time spent computing, converting and waiting."""
    compute, convert, wait = (
        stage.get(f"{name}_seconds", 0.0) for name in ("compute", "convert", "wait")
    )
    total = max(compute + convert + wait, 1e-9)
    return 100 * compute / total, 100 * convert / total, 100 * wait / total


def _table(stages: list[tuple[str, dict[str, Any]]]) -> Table:
    rows = []
    for label, stage in stages:
        images = stage.get("images", 0)
        actors = stage.get("actors", 0)
        compute, _, wait = _shares(stage)
        rows.append(
            (
                label,
                duration(stage["seconds"]),
                f"{images:,}" if images else "–",
                f"{stage.get('images_per_second', 0):,.0f}" if images else "–",
                f"{stage.get('images_per_second_per_actor', 0):,.0f}" if actors else "–",
                f"{actors}" if actors else "–",
                f"{compute:.0f} %" if actors else "–",
                f"{wait:.0f} %" if actors else "–",
            )
        )
    return Table(
        caption="Stages in the order of the build",
        head=(
            "Stage",
            "Time",
            "Images",
            "Images/s",
            "Images/s per actor, computing",
            "Actors",
            "Computing",
            "Waiting",
        ),
        rows=tuple(rows),
        numeric=frozenset(range(1, 8)),
    )
