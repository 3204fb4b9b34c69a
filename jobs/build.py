"""All jobs of a configuration, in order; picks up where a run stopped, and says what came of it."""

import time

from rich.table import Table

from jobs.cli import run_job
from jobs.progress import console
from raypipe import storage
from raypipe.config import Build
from raypipe.manifest import Manifest, read_manifest

ORDER = ("ingest", "embed", "clean", "screen", "assemble", "train", "evaluate", "report")


def run(config: Build) -> Manifest:
    """Runs what is not done yet and prints the outcome; returns the report's manifest.

    Raises:
        UserError: from the job that found a mistake; everything before it is kept.
    """
    start = time.monotonic()
    names = ([] if config.sample is None else ["sample"]) + list(ORDER)
    manifests: dict[str, Manifest] = {}
    made = 0
    for name in names:
        before = read_manifest(storage.join(config.workspace, name)) is not None
        console.rule(f"[bold]{name}", align="left", style="dim")
        began = time.monotonic()
        manifests[name] = run_job(name, config)
        if before:
            console.print("done before", style="dim")
        else:
            made += 1
            console.print(f"{time.monotonic() - began:.0f} s", style="dim")
    console.rule(style="dim")
    console.print(outcome(config.workspace, manifests))
    if made:
        console.print(f"{made} of {len(names)} jobs run in {time.monotonic() - start:.0f} s")
    else:
        console.print("nothing to do: every job was done before with this configuration")
    report = storage.join(config.workspace, "report", "report.html")
    console.print(f"report: [bold]{report}[/]", soft_wrap=True)
    return manifests["report"]


def outcome(workspace: str, manifests: dict[str, Manifest]) -> Table:
    """What was kept, refused, made and reached, a line each."""
    table = Table("", "identities", "images", "", title="outcome", title_justify="left")
    ingest, clean, screen = (manifests[name].counts for name in ("ingest", "clean", "screen"))
    read = ingest["identities"]["total"]
    table.add_row("read", f"{read:,}", f"{ingest['images']['total']:,}", "")
    for name, counts, before in (
        ("unreadable", ingest, None),
        ("cleaned out", clean, ingest),
        ("screened out", screen, clean),
    ):
        people = _lost(counts, before, "identities")
        pictures = _lost(counts, before, "images")
        table.add_row(
            name,
            f"{sum(people.values()):,}",
            f"{sum(pictures.values()):,}",
            ", ".join(
                f"{reason} {number:,}" for reason, number in sorted((pictures | people).items())
            ),
        )
    table.add_row("training set", *_training_set(manifests["assemble"].counts["training_set"]))
    trained = storage.read_json(storage.join(workspace, "train", "history.json"))["epochs"]
    table.add_row("trained", "", "", f"{len(trained)} epochs, loss {trained[-1]['loss']:.2f}")
    reached = storage.read_json(storage.join(workspace, "evaluate", "results.json"))["sets"]
    for name, result in reached.items():
        table.add_row(
            f"reached on {name}",
            "",
            f"{2 * result['pairs']:,} in pairs",
            f"accuracy {100 * result['accuracy']:.2f} ± {100 * result['std']:.2f} %",
        )
    return table


def _training_set(counts: dict[str, int]) -> tuple[str, str, str]:
    return (
        f"{counts['identities']:,}",
        f"{counts['images']:,}",
        f"{counts['augmented']:,} made by augmentation, {counts['replaced']:,} identities replaced",
    )


def _lost(
    counts: dict[str, dict[str, dict[str, int]]],
    before: dict[str, dict[str, dict[str, int]]] | None,
    unit: str,
) -> dict[str, int]:
    """Rejections that a job added to those of the job before it, by reason."""
    earlier = before[unit]["rejected"] if before else {}
    found = {
        reason: number - earlier.get(reason, 0)
        for reason, number in counts[unit]["rejected"].items()
    }
    return {reason: number for reason, number in found.items() if number > 0}


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("build")
