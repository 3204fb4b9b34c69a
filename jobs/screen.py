"""Nobody real gets in, and no two identities are one person.

1. The galleries are ingested and embedded like the base set (`screen/galleries/NAME/ingest`,
   `embed`).
2. Every gallery's threshold is measured; all identities are searched in parallel, each actor
   holding the galleries.
3. One task compares the identities with each other and decides (`verdicts.parquet`,
   `leakage.json`, and `separability.json` where people were drawn from prompts); only templates
   are in its memory.
4. The decisions stream into the rows.
"""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from actors.search import MarkActor
from jobs.cluster import connect
from jobs.galleries import Calibrated, Gallery, calibrated, embedded, search
from jobs.progress import console
from jobs.stage import Step, explain, finished, stream
from jobs.work import begin
from raypipe import storage
from raypipe.config import Build
from raypipe.config.screen import ScreenConfig
from raypipe.errors import UserError
from raypipe.manifest import STARTED, Manifest
from raypipe.screening import decide
from raypipe.separability import SEPARABILITY, measure

VERDICTS, LEAKAGE = "verdicts.parquet", "leakage.json"


def run(config: Build) -> Manifest:
    """Screens the cleaned base set, and `vectors` and `seed` where the configuration has them, into
    `{workspace}/screen`.

    Raises:
        UserError: where a set is unfinished, a gallery is missing or holds no face, or a
            gallery or the set is too small for the false match rate.
    """
    jobs = [config.cleaned, *(job for job in ("vectors", "seed") if config.has(job))]
    sources = [storage.join(config.workspace, job) for job in jobs]
    sets = {job: finished("screen", root) for job, root in zip(jobs, sources, strict=True)}
    galleries = embedded(config)
    settings: dict[str, Any] = {
        "false_match_rate": config.screen.false_match_rate,
        "first": config.ingest.sources[0].name,
    }
    inputs = {f"gallery {gallery.name}": gallery.digest for gallery in galleries}
    work = begin(
        config,
        job="screen",
        settings=settings,
        inputs={**{job: found.content_digest for job, found in sets.items()}, **inputs},
    )
    if work.manifest:
        return work.manifest
    if not storage.exists(work.path(VERDICTS)):
        try:
            with work.timed("search"):
                _decisions(config, sources, work.root, galleries)
        except UserError:  # nothing was decided: the settings may change
            storage.delete(work.path(STARTED))
            raise
    step = Step(
        name="mark",
        actor=MarkActor,
        arguments={"verdicts": work.path(VERDICTS)},
        pool=config.screen.pool,
    )
    return stream(config, work, sources=sources, steps=[step])


def _decisions(config: Build, sources: list[str], root: str, galleries: list[Gallery]) -> None:
    """Calibrates, searches and decides; the decisions are written last."""
    connect(config)
    screen = config.screen
    one = {
        "num_cpus": max(screen.pool.num_cpus, 1),
        "num_gpus": screen.pool.num_gpus or None,
        "memory": screen.pool.memory,  # it takes 5 GiB for 300,000 identities of 512 numbers
    }
    try:
        summaries = calibrated(config, galleries)
        searched = search(config, sources, galleries)
        deciding = ray.remote(**one)(_decide)
        warnings = ray.get(
            deciding.remote(searched, screen, config.ingest.sources[0].name, root, summaries)
        )
    except ray.exceptions.RayError as error:
        if mistake := explain("screen", error):
            raise mistake from None
        raise
    for warning in warnings:
        console.print(f"screen: {warning}", style="yellow")


def _decide(
    searched: list["ray.ObjectRef[pa.Table]"],
    screen: ScreenConfig,
    first: str,
    root: str,
    galleries: list[Calibrated],
) -> list[str]:
    """Writes the decisions and `leakage.json`; returns what a person should know."""
    table = pa.concat_tables(ray.get(searched))
    verdicts, summary = decide(
        table,
        {name: calibration for name, calibration, _ in galleries},
        rate=screen.false_match_rate,
        first=first,
    )
    for name, _, facts in galleries:
        summary["galleries"][name] |= facts
    summary["false_match_rate"] = screen.false_match_rate
    summary["warnings"] = warnings = _warnings(summary)
    storage.write_json(storage.join(root, LEAKAGE), summary)
    if summary["unique"] and pc.any(pc.equal(table["source"], "seed")).as_py():
        found = measure(table, "seed", summary["unique"])
        storage.write_json(storage.join(root, SEPARABILITY), found)
    buffer = pa.BufferOutputStream()
    pq.write_table(verdicts, buffer)
    storage.write_bytes(storage.join(root, VERDICTS), buffer.getvalue().to_pybytes())
    return warnings


def _warnings(summary: dict[str, Any]) -> list[str]:
    """What weakens the verdict."""
    rate = summary["false_match_rate"]
    found = []
    for name, facts in summary["galleries"].items():
        known, chance = facts["recognised"], rate * facts["faces"]
        if known is not None and known < 0.95:
            found.append(
                f"gallery {name!r}: at a false match rate of {rate:g} only {known:.0%} of its own "
                "faces are recognised and leaks may be missed; use a stronger embedder or a higher "
                "screen.false_match_rate"
            )
        if chance > 0.01:
            found.append(
                f"gallery {name!r}: {facts['faces']:,} comparisons an identity at a false match "
                f"rate of {rate:g} may refuse {min(chance, 1):.0%} of the identities by chance; "
                "lower screen.false_match_rate"
            )
        if facts["one_person"]:
            pairs = ", ".join(" and ".join(pair) for pair in facts["one_person"][:3])
            found.append(f"gallery {name!r} holds people under two names, such as {pairs}")
    return found


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("screen")
