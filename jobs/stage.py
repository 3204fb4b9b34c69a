"""The stage runner: identities stream from a face set through actor pools into a face set.

Ray Data reads, hands out, scales and writes; its row checkpoint (`ray.data.checkpoint`, keyed by
`identity_id`) is what a killed run resumes from. The commit unit is the written block, so rows are
cut into blocks of `ray.rows_per_block`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from ray.util import metrics

from jobs.cluster import beside_driver, connect, preflight
from jobs.ledger import Ledger
from jobs.progress import Bar
from jobs.work import Work, begin
from jobs.worker import FAILURES, Task, Worker
from raypipe import storage
from raypipe.config import Build
from raypipe.config.base import Pool
from raypipe.errors import UserError
from raypipe.faceset import ROWS
from raypipe.manifest import Counts, Manifest, read_manifest, summarise

CHECKPOINT = "checkpoint"
_READERS = 16  # files that are looked at together: an object store answers slowly


@dataclass(frozen=True, kw_only=True)
class Step:
    """One actor pool of a stage.

    Attributes:
        name: what to call it in progress and timings.
        actor: class built with `arguments` once per actor; an instance maps a list of identities to
            the same identities in the same order, with images added or marked.
        arguments: small and picklable.
    """

    name: str
    actor: type
    arguments: dict[str, Any]
    pool: Pool


def _pooled(pool: Pool) -> dict[str, Any]:
    """Arguments of `map_batches` for a pool."""
    return {
        "compute": ActorPoolStrategy(min_size=pool.min, max_size=max(pool.min, pool.max)),
        "num_cpus": pool.num_cpus,
        "num_gpus": pool.num_gpus or None,
        "memory": pool.memory,
        "accelerator_type": pool.accelerator_type,
    }


def explain(job: str, error: BaseException) -> UserError | None:
    """The user's mistake at the bottom of a Ray exception, if there is one."""
    current: BaseException | None = error
    while current is not None:
        # What an actor raised comes back as an exception of both its class and Ray's, whose text is
        # the whole traceback; the original is its cause.
        if type(current) is UserError:
            return UserError(str(current).partition("\n")[0])  # below it Ray tells of its retries
        if "No space left on device" in str(current):
            return UserError(
                f"{job}: the disk is full; free some space and run it again, it will resume"
            )
        if type(current).__name__ == "ExecutionTimeoutError":
            # Behind it Ray tells how to change its own settings.
            said = " ".join(str(current).partition("If this is expected")[0].split())
            return UserError(
                f"{job}: no row moved for too long and the stage was stopped "
                f"(ray.no_progress_seconds): {said}"
            )
        if type(current) in (OSError, MemoryError):
            said = str(current).partition("\n")[0] or "out of memory"
            return UserError(f"{job}: {said}; run it again, it will resume where it stopped")
        current = getattr(current, "cause", None) or current.__cause__
    return None


def run_task(job: str, function: Callable[..., None], *arguments: Any) -> None:
    """Runs a function that needs memory in a task, so that the driver does not need it.

    Raises:
        UserError: where it found a mistake of the user's.
    """
    try:
        ray.get(ray.remote(num_cpus=1)(function).remote(*arguments))
    except ray.exceptions.RayError as error:
        if mistake := explain(job, error):
            raise mistake from None
        raise


def count_rows(root: str) -> int:
    """Rows of a set, by the footers of its files."""
    import pyarrow.parquet as pq

    def rows(path: str) -> int:
        where, inner = storage.filesystem(path)
        try:
            with where.open_input_file(inner) as stream:
                return int(pq.read_metadata(stream).num_rows)
        except (pa.ArrowInvalid, OSError):
            return 0  # cut off by a kill: Ray's checkpoint removes it on resume

    with ThreadPoolExecutor(_READERS) as readers:
        return sum(readers.map(rows, [e.path for e in storage.listdir(storage.join(root, ROWS))]))


def describe(counts: Counts, sources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of a stage for its manifest, checked: kept + rejected = read + made.

    Args:
        sources: counts of the face sets that were read.

    Raises:
        AssertionError: where an identity or image was lost.
    """

    def read(unit: str) -> int:
        return sum(source[unit]["total"] for source in sources)

    assert counts.identities == read("identities"), "identities were lost"
    made = counts.images - read("images")
    assert made >= 0, "images were lost"
    return totals(counts, images_made=made)


def totals(counts: Counts, *, images_made: int) -> dict[str, Any]:
    """Counts of a face set as its manifest holds them."""
    return {
        "identities": {
            "total": counts.identities,
            "kept": counts.identities_kept,
            "rejected": dict(sorted(counts.rejected_identities.items())),
        },
        "images": {
            "total": counts.images,
            "read": counts.images - images_made,
            "made": images_made,
            "kept": counts.images_kept,
            "rejected": dict(sorted(counts.rejected_images.items())),
        },
        "sources": {name: dict(value) for name, value in sorted(counts.sources.items())},
        "bytes": counts.bytes,
    }


def run_stage(
    config: Build,
    *,
    job: str,
    source: str,
    steps: Sequence[Step],
    settings: dict[str, Any],
    inputs: dict[str, str] | None = None,
    models: Sequence[str] = (),
) -> Manifest:
    """Streams a face set through actor pools into `{workspace}/{job}`; resumes where it stopped.

    Args:
        source: root of the complete face set to read.
        settings: the part of the configuration that the result depends on.
        inputs: digests of what is read besides `source`.
        models: weight files that the actors load.

    Raises:
        UserError: where the source is missing or unfinished, the cluster too small, the settings
            changed since the run began, or an actor found a mistake of the user's.
    """
    origin = finished(job, source)
    work = begin(
        config,
        job=job,
        settings=settings,
        inputs={origin.origin.job: origin.content_digest, **(inputs or {})},
        models=models,
    )
    return work.manifest or stream(config, work, sources=[source], steps=steps)


def finished(job: str, source: str) -> Manifest:
    """The manifest of a face set that a job reads.

    Raises:
        UserError: where it is missing or unfinished.
    """
    manifest = read_manifest(source)
    if manifest is None:
        raise UserError(f"{job}: {source} is not a finished face set; run the job before it first")
    return manifest


def stream(
    config: Build,
    work: Work,
    *,
    sources: Sequence[str],
    steps: Sequence[Step],
    extra: Callable[[], dict[str, Any]] = dict,
) -> Manifest:
    """The stage itself, for a job that did something else first in the folder it has begun.

    Args:
        sources: roots of the face sets to read; no identity stands in two of them.
        extra: called when all rows are written, for `Manifest.extra`.

    Raises:
        UserError: as `run_stage`.
    """
    job = work.origin.job
    origins = [finished(job, source) for source in sources]
    connect(config)
    preflight(job, [step.pool for step in steps])
    checkpoint = work.path(CHECKPOINT)
    if not storage.exists(checkpoint):  # rows that no checkpoint knows are of no run
        storage.delete(work.path(ROWS))
    total = sum(origin.counts["identities"]["total"] for origin in origins)
    done = count_rows(work.root)
    failed = len(storage.listdir(work.path(FAILURES)))
    ledger = beside_driver(Ledger).remote(failed)

    expected = metrics.Gauge("raypipe_expected", "identities of a stage", tag_keys=("stage",))
    expected.set(total, {"stage": job})

    def poll() -> tuple[int, str]:
        try:
            sums = ray.get(ledger.read.remote(), timeout=5).get(steps[-1].name, {})
        except ray.exceptions.RayError:  # it is being restarted; the next poll will tell
            return done, ""
        rejected = int(sum(n for name, n in sums.items() if name.startswith("rejected:")))
        rate = sums["images"] / sums["span"] if sums else 0.0
        return done + int(sums.get("rows", 0)), f"{rate:,.0f} images/s, {rejected:,} rejected"

    try:
        with Bar(job, total, poll):
            _stream(config, work, sources, steps, checkpoint, ledger)
        sums = ray.get(ledger.read.remote())
    finally:
        ray.kill(ledger)
    for step in steps:
        part = sums.get(step.name, Counter())
        busy = part.get("compute_seconds", 0.0)
        work.timing(
            step.name,
            part.get("span", 0.0),
            rows=int(part.get("rows", 0)),
            images=int(part.get("images", 0)),
            bytes=int(part.get("bytes", 0)),
            actors=int(part.get("actors", 0)),
            nodes=int(part.get("nodes", 0)),
            images_per_second_per_actor=round(part.get("images", 0) / busy, 2) if busy else 0.0,
            compute_seconds=round(busy, 3),
            convert_seconds=round(part.get("convert_seconds", 0.0), 3),
            wait_seconds=round(part.get("wait_seconds", 0.0), 3),
            rejected={
                name.removeprefix("rejected:"): int(number)
                for name, number in sorted(part.items())
                if name.startswith("rejected:")
            },
        )
    counts, digest = ray.get(ray.remote(num_cpus=0)(summarise).remote(work.root))
    counted = describe(counts, [origin.counts for origin in origins])
    manifest = work.finish(counted, digest, extra())
    storage.delete(checkpoint)
    return manifest


def _stream(
    config: Build,
    work: Work,
    sources: Sequence[str],
    steps: Sequence[Step],
    checkpoint: str,
    ledger: Any,
) -> None:
    job, root = work.origin.job, work.root
    context = DataContext.get_current()
    places = [storage.filesystem(storage.join(source, ROWS)) for source in sources]
    out_where, out = storage.filesystem(storage.join(root, ROWS))
    # Kept until the manifest is written: without it a kill in between would write every row again.
    context.checkpoint_config = CheckpointConfig(
        id_column="identity_id",
        checkpoint_path=storage.filesystem(checkpoint)[1],
        override_filesystem=out_where,
        delete_checkpoint_on_success=False,
    )
    try:
        data = ray.data.read_parquet([rows for _, rows in places], filesystem=places[0][0])
        data = data.repartition(target_num_rows_per_block=config.ray.rows_per_block)
        for step in steps:
            task = Task(
                job=job,
                root=root,
                step=step.name,
                actor=step.actor,
                arguments=step.arguments,
                failed_rows=config.ray.failed_rows,
            )
            data = data.map_batches(
                # Named for the dashboard, for `ray list actors` and for errors of Ray.
                type(step.name, (Worker,), {}),
                fn_constructor_kwargs={"task": task, "ledger": ledger},
                batch_format="pyarrow",
                batch_size=step.pool.batch_size,
                **_pooled(step.pool),
            )
        data.write_parquet(out, filesystem=out_where)
    except Exception as error:
        if mistake := explain(job, error):
            raise mistake from None
        raise
    finally:
        context.checkpoint_config = None


class _Mapper:
    """Runs an actor on a table of paths, or of rows, and gives small tables back."""

    def __init__(self, actor: type, arguments: dict[str, Any]) -> None:
        self._actor = actor(**arguments)

    def __call__(self, batch: pa.Table) -> pa.Table:
        if batch.column_names == ["path"]:
            return pa.concat_tables([self._actor(path) for path in batch["path"].to_pylist()])
        return self._actor(batch)


def map_files(
    config: Build,
    files: Sequence[str],
    actor: type,
    arguments: dict[str, Any],
    pool: Pool,
) -> list["ray.ObjectRef[pa.Table]"]:
    """Maps each file of a face set to a small table, for a global pass over embeddings.

    Args:
        actor: class built with `arguments`; an instance maps a path to a `pa.Table`.

    Returns:
        References to the tables, in no particular order and perhaps several files to one: sort by a
        column. They stay in the object store; read them in a task, not on the driver.
    """
    connect(config)
    data = ray.data.from_arrow(pa.table({"path": list(files)}))
    data = data.repartition(target_num_rows_per_block=1)
    return _mapped(data, 1, actor, arguments, pool)


def map_rows(
    config: Build,
    tables: Sequence["ray.ObjectRef[pa.Table]"],
    actor: type,
    arguments: dict[str, Any],
    pool: Pool,
) -> list["ray.ObjectRef[pa.Table]"]:
    """Maps tables of rows, such as `map_files` gives, to small tables; returns as `map_files`.

    Args:
        actor: class built with `arguments`; an instance maps a `pa.Table` of at most
            `pool.batch_size` rows to a `pa.Table`.
    """
    connect(config)
    return _mapped(ray.data.from_arrow_refs(list(tables)), pool.batch_size, actor, arguments, pool)


def _mapped(
    data: "ray.data.Dataset",
    batch_size: int,
    actor: type,
    arguments: dict[str, Any],
    pool: Pool,
) -> list["ray.ObjectRef[pa.Table]"]:
    preflight(actor.__name__, [pool])
    data = data.map_batches(
        _Mapper,
        fn_constructor_kwargs={"actor": actor, "arguments": arguments},
        batch_format="pyarrow",
        batch_size=batch_size,
        **_pooled(pool),
    )
    try:
        return data.to_arrow_refs()
    except Exception as error:
        if mistake := explain(actor.__name__, error):
            raise mistake from None
        raise
