"""What a build really took, and how far its plan was off."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raypipe import storage
from raypipe.manifest import Manifest, read_manifest

RUN = "run.json"
GALLERIES = "screen/galleries"
_ANSWERS = "answers"  # of the vision model, beside the job's folder


@dataclass(frozen=True, kw_only=True)
class Amount:
    """What a job takes, or took; None where nobody knows."""

    seconds: float | None
    bytes: float | None
    images: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A job: planned, actual.

    Attributes:
        resumed: whether it ended in a later sitting than it began in; then its time is that of the
            last sitting alone.
    """

    job: str
    planned: Amount
    actual: Amount
    resumed: bool


def compare(planned: dict[str, Any], root: str) -> list[Row]:
    """The finished jobs of a workspace beside its plan, in the order of the plan's build.

    Args:
        planned: the content of plan.json.
    """
    rows = []
    for job in _in_order(planned["jobs"]):
        manifest = read_manifest(storage.join(root, job))
        if manifest is None:
            continue
        expected = planned["jobs"][job]
        seconds, resumed = job_seconds(root, job)
        rows.append(
            Row(
                job=job,
                planned=Amount(
                    seconds=expected["seconds"],
                    bytes=expected["bytes"],
                    images=expected["images"] or None,
                ),
                actual=Amount(
                    seconds=seconds, bytes=job_bytes(root, job), images=_images(manifest)
                ),
                resumed=resumed,
            )
        )
    return rows


def _in_order(jobs: dict[str, Any]) -> list[str]:
    from raypipe.report.workspace import JOBS

    return [job for job in (*JOBS, "report") if job in jobs]


def job_seconds(root: str, job: str) -> tuple[float | None, bool]:
    """Seconds of a job's last sitting, and whether there were earlier ones; None: it noted none.

    The galleries are ingested and embedded by the first job that needs them, which is `seed` where
    there is one, and have notes of their own.
    """
    folders = [job]
    first = "seed" if read_manifest(storage.join(root, "seed")) else "screen"
    if job == first:
        folders += [
            f"{GALLERIES}/{gallery.name}/{part}"
            for gallery in storage.listdir(storage.join(root, GALLERIES))
            for part in ("ingest", "embed")
        ]
    runs = [
        storage.read_json(path)
        for folder in folders
        if storage.exists(path := storage.join(root, folder, RUN))
    ]
    if not runs:
        return None, False
    return sum(run["seconds"] for run in runs), any(run["resumed"] for run in runs)


def job_bytes(root: str, job: str) -> float:
    """Bytes of all files of a job."""
    folders = [job, _ANSWERS] if job == "judge" else [job]
    return float(
        sum(
            entry.size
            for folder in folders
            for entry in storage.listdir(storage.join(root, folder), recursive=True)
            if entry.is_file
        )
    )


def _images(manifest: Manifest) -> float | None:
    counts = manifest.counts
    if "training_set" in counts:
        return float(counts["training_set"]["images"])
    if isinstance(counts.get("images"), dict):
        return float(counts["images"]["total"])
    if "base" in counts:
        return float(counts["base"]["files"])
    return float(counts["images"]) if "images" in counts else None


def total(rows: list[Row], value: Callable[[Amount], float | None]) -> tuple[float, float]:
    """Planned and actual, summed over the jobs that have both."""
    both = [(value(row.planned), value(row.actual)) for row in rows]
    known = [(a, b) for a, b in both if a is not None and b is not None]
    return sum(a for a, _ in known), sum(b for _, b in known)
