"""All jobs of a configuration, in order; picks up where a run stopped, and says what came of it."""

import time
from collections import Counter
from typing import Any

from rich.table import Table

from jobs.cli import run_job
from jobs.plan import write as write_plan
from jobs.progress import console
from raypipe import storage
from raypipe.config import Build
from raypipe.manifest import Manifest, read_manifest

ORDER = (
    *("sample", "ingest", "embed", "clean", "judge", "vectors", "seed", "screen", "expand"),
    *("assemble", "train", "evaluate", "report"),
)
# Before the first job there is a plan where the sizes of all sets are stated; else as soon as the
# base set is ingested, or the galleries are.
_PLANNED = ("sample", "ingest", "embed", "assemble")
_OPTIONAL = ("sample", "judge", "vectors", "seed", "expand")


def run(config: Build) -> Manifest:
    """Runs what is not done yet and prints the outcome; returns the report's manifest.

    Raises:
        UserError: from the job that found a mistake; everything before it is kept.
    """
    start = time.monotonic()
    names = [name for name in ORDER if name not in _OPTIONAL or config.has(name)]
    manifests: dict[str, Manifest] = {}
    made = 0
    for name in names:
        before = read_manifest(storage.join(config.workspace, name)) is not None
        if name in _PLANNED:
            write_plan(config)
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
    counts = {name: manifest.counts for name, manifest in manifests.items()}
    ingest, clean, screen = (counts[name] for name in ("ingest", "clean", "screen"))
    read = ingest["identities"]["total"]
    table.add_row("read", f"{read:,}", f"{ingest['images']['total']:,}", "")
    table.add_row("unreadable", *_lost(ingest))
    table.add_row("cleaned out", *_lost(clean, ingest))
    if "judge" in counts:
        table.add_row("judged out", *_lost(counts["judge"], clean))
        clean = counts["judge"]
    new = [counts[job] for job in ("vectors", "seed") if job in counts]
    if "vectors" in counts:
        drawn = counts["vectors"]["drawn"]
        table.add_row(
            "sampled vectors", f"{drawn['accepted']:,}", "", f"of {drawn['total']:,} drawn"
        )
    if "seed" in counts:
        drawn = counts["seed"]["seeds"]
        table.add_row(
            "drawn from prompts",
            f"{drawn['accepted']:,}",
            f"{drawn['pictures']:,}",
            f"{drawn['asked']:,} asked for",
        )
    table.add_row("screened out", *_lost(screen, clean, *new))
    if "expand" in counts:
        expand = counts["expand"]
        table.add_row("made of them", "", f"{expand['images']['made']:,}", "")
        table.add_row("of these refused", *_lost(expand, screen))
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


def _lost(after: dict[str, Any], *before: dict[str, Any]) -> tuple[str, str, str]:
    """Identities and images that a job rejected, in all and by reason, given the counts of what it
    made and of what it read."""

    def lost(unit: str) -> Counter[str]:
        earlier: Counter[str] = Counter()
        for counts in before:
            earlier.update(counts[unit]["rejected"])
        return Counter(after[unit]["rejected"]) - earlier

    people, pictures = lost("identities"), lost("images")
    reasons = {**pictures, **people}  # of an identity's images nothing else is said
    said = ", ".join(f"{name} {number:,}" for name, number in sorted(reasons.items()))
    return f"{people.total():,}", f"{pictures.total():,}", said


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("build")
