"""What runs in every actor of a stage: maps rows with the step's own actor, measures it, and keeps
a row that breaks it from breaking the stage.

A row whose processing raises is found by mapping the rows of its batch one by one, and ends as
rejected, "job:failed". A row that takes the process with it (a crash in a decoder, an out-of-memory
kill) is found by restarts: Ray starts the actor anew and hands it the same batch; after three such
ends its rows go one by one, and one that the process dies of three times more ends as rejected,
"job:crashed". So many, because a lost node or a person's `kill` look the same from inside, and the
rows of a batch keep company as long as possible: rounding depends on it in a few networks. What
went wrong is written to `failures/` in the job's folder, a file for each row.
"""

import hashlib
import itertools
import logging
import os
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray.util import metrics

from raypipe import storage
from raypipe.errors import UserError
from raypipe.identities import Identity, from_table, to_table

FAILURES = "failures"
TAGS = ("stage", "step")  # of metrics; "job" is what Prometheus calls the place it scrapes
_TOGETHER = 3  # times a batch is begun by a restarted actor before its rows go one by one
_STARTS = 3  # times a restarted actor may die while it starts
_ALONE = 3  # times a row is begun alone before it counts as what kills the process

logger = logging.getLogger("raypipe.stage")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker is told.

    Attributes:
        job: name of the job.
        root: its folder.
        step: name of the step.
        actor: class built with `arguments`; an instance maps a list of identities to the same
            identities in the same order.
        failed_rows: rows that may fail before the stage ends with an error.
    """

    job: str
    root: str
    step: str
    actor: type
    arguments: dict[str, Any]
    failed_rows: int


class Worker:
    """Runs a step's actor on Arrow blocks."""

    def __init__(self, task: Task, ledger: Any) -> None:
        self._task = task
        self._ledger = ledger
        self._failed: UserError | None = None
        # Ray builds an actor in one thread and calls it in another. OpenMP would start its threads
        # for both, find more of them than CPUs, and let them sleep at every barrier: 3 % slower.
        self._thread = ThreadPoolExecutor(1)
        context = ray.get_runtime_context()
        self._id, self._node = context.get_actor_id(), context.get_node_id()
        self._restarted = bool(context.was_current_actor_reconstructed)
        try:
            self._start()
        except UserError as error:
            # Raised in a constructor it would reach the driver only as text of a dead actor.
            self._failed = error
        self._meters = _Meters(task)
        self._idle_since: float | None = None  # before the first rows an actor starts up

    def _start(self) -> None:
        """Makes the step's own actor.

        Raises:
            UserError: from the actor, or where the process died of it before, as Ray would start it
                anew for ever.
        """
        key = f"start\0{self._id}"
        if self._restarted and ray.get(self._ledger.begin.remote(key)) >= _STARTS:
            raise UserError(
                f"{self._task.job}: the process died {_STARTS} times while the step "
                f"{self._task.step} loaded its weights; is there too little memory "
                "(pool.memory reserves it)? Ray's logs of the node say how it died"
            )
        try:
            self._actor = self._thread.submit(self._task.actor, **self._task.arguments).result()
        except Exception as error:
            if not _of_torch(error, "OutOfMemoryError"):
                raise
            raise UserError(
                f"{self._task.job}: the GPU has too little memory for the weights of the step "
                f"{self._task.step}; give it a larger share (pool.num_gpus) or another type"
            ) from error
        if self._restarted:
            self._ledger.end.remote(key)

    def __call__(self, table: pa.Table) -> pa.Table:
        if self._failed:
            raise self._failed
        start = time.perf_counter()
        computing = time.perf_counter()
        identities = self._map(table)
        computed = time.perf_counter()
        sums = _compared(table, identities)
        result = to_table(identities)
        end = time.perf_counter()
        sums["wait_seconds"] = start - self._idle_since if self._idle_since else 0.0
        sums["compute_seconds"] = computed - computing
        sums["convert_seconds"] = end - start - (computed - computing)
        now = time.time()
        self._ledger.add.remote(
            self._task.step, self._id, self._node, dict(sums), now - (end - start), now
        )
        self._meters.add(sums)
        self._log("batch", identities, images=int(sums["images"]), seconds=round(end - start, 3))
        self._idle_since = end
        return result

    def _map(self, table: pa.Table) -> list[Identity]:
        """The mapped rows; a row that cannot be mapped is rejected."""
        key = ""
        if self._restarted:
            # By its rows: after a restart Ray may hand out other batches first.
            names = table["identity_id"].to_pylist()
            key = hashlib.sha256("\0".join([self._task.step, *names]).encode()).hexdigest()
        try:
            if self._restarted and ray.get(self._ledger.begin.remote(key)) >= _TOGETHER:
                return self._one_by_one(table)
            try:
                return self._act(table)
            except Exception as error:
                if _not_of_a_row(error):
                    raise
                return self._one_by_one(table)
        finally:
            if self._restarted:
                self._ledger.end.remote(key)

    def _one_by_one(self, table: pa.Table) -> list[Identity]:
        found: list[Identity] = []
        for number in range(table.num_rows):
            row = table.slice(number, 1)
            key = f"{self._task.step}\0{row['identity_id'][0]}"
            if self._restarted and ray.get(self._ledger.begin.remote(key)) >= _ALONE:
                said = f"the process died {_ALONE} times while this row was in work alone"
                found.append(self._reject(row, "crashed", said))
                continue
            try:
                found += self._act(row)
            except Exception as error:
                if _not_of_a_row(error):
                    raise
                if _of_torch(error, "OutOfMemoryError"):
                    raise UserError(
                        f"{self._task.job}: {row['identity_id'][0]} alone needs more memory than "
                        f"the GPU has for the step {self._task.step}; lower images_per_batch or "
                        "batch_size, or choose a GPU with more"
                    ) from error
                said = "".join(traceback.format_exception(error)).rstrip()
                found.append(self._reject(row, "failed", said))
            finally:
                if self._restarted:
                    self._ledger.end.remote(key)
        return found

    def _act(self, table: pa.Table) -> list[Identity]:
        # Made anew from the table: what failed before may have changed them.
        identities = from_table(table)
        try:
            return list(self._thread.submit(self._actor, identities).result())
        except Exception as error:
            if not _of_torch(error, "AcceleratorError"):
                raise
            # A fault on the GPU spoils the process's whole context: every later call would fail.
            logger.exception("fault on the GPU; the process ends and is started anew")
            os._exit(1)

    def _reject(self, row: pa.Table, reason: str, said: str) -> Identity:
        """The row as it came, rejected.

        Raises:
            UserError: where too many rows failed.
        """
        (identity,) = from_table(row)
        identity.rejected = f"{prefix(self._task.job)}:{reason}"
        name = hashlib.sha256(identity.identity_id.encode()).hexdigest()[:16]
        storage.write_json(
            storage.join(self._task.root, FAILURES, f"{name}.json"),
            {"identity_id": identity.identity_id, "step": self._task.step, "error": said},
        )
        self._log("row rejected", [identity], reason=identity.rejected, error=said)
        last = said.splitlines()[-1]
        if (failed := ray.get(self._ledger.fail.remote())) > self._task.failed_rows:
            raise UserError(
                f"{self._task.job}: {failed} identities failed in the step {self._task.step}, more "
                f"than ray.failed_rows allows ({self._task.failed_rows}); the last is "
                f"{identity.identity_id}: {last}; all are in "
                f"{storage.join(self._task.root, FAILURES)}"
            )
        return identity

    def _log(self, message: str, identities: Sequence[Identity], **more: Any) -> None:
        names = [identity.identity_id for identity in identities]
        facts = {"raypipe_job": self._task.job, "step": self._task.step, "identity_ids": names}
        logger.info(message, extra={**facts, **more})


def prefix(job: str) -> str:
    """What the reasons of a job begin with: "seed" for "seed/waves/000", "embed" for
    "screen/galleries/orl/embed"."""
    first, _, rest = job.partition("/")
    return rest.rpartition("/")[2] if first == "screen" and rest else first


def _not_of_a_row(error: Exception) -> bool:
    """Whether an error tells of the machine or the configuration, and another row would meet it."""
    return isinstance(error, UserError | OSError | MemoryError)


def _of_torch(error: Exception, kind: str) -> bool:
    """Whether an error is one of PyTorch's; an actor that does not use it need not import it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, getattr(torch, kind))


def _compared(table: pa.Table, identities: Sequence[Identity]) -> dict[str, float]:
    """Counts of what a step made of a batch.

    Raises:
        AssertionError: where it lost an identity or an image.
    """
    assert table["identity_id"].to_pylist() == [item.identity_id for item in identities], (
        "an identity was lost, or they came back in another order"
    )
    sums: dict[str, float] = defaultdict(float)
    for known, rejected, item in zip(
        _known_images(table), table["rejected"].to_pylist(), identities, strict=True
    ):
        assert known.keys() <= {image.image_id for image in item.images}, "an image was lost"
        if item.rejected and not rejected:
            sums[f"rejected:{item.rejected}"] += 1
            sums["rejected_identities"] += 1
        for image in item.images:
            if image.rejected and not known.get(image.image_id):
                sums[f"rejected:{image.rejected}"] += 1
                sums["rejected_images"] += 1
        sums["images"] += len(item.images)
        sums["made"] += len(item.images) - len(known)
        sums["bytes"] += sum(len(image.data) for image in item.images)
    sums["rows"] = len(identities)
    return sums


def _known_images(table: pa.Table) -> list[dict[str, str | None]]:
    """Of every row its image_ids and why they are rejected; no byte of an image is copied."""
    lists = table["images"].combine_chunks()
    images = lists.flatten()
    pairs = zip(
        images.field("image_id").to_pylist(), images.field("rejected").to_pylist(), strict=True
    )
    return [dict(itertools.islice(pairs, count)) for count in lists.value_lengths().to_pylist()]


class _Meters:
    """Ray's metrics of a step, for the dashboard (deploy/grafana.json)."""

    def __init__(self, task: Task) -> None:
        self._counters = {
            name: metrics.Counter(f"raypipe_{name}", text, tag_keys=TAGS)
            for name, text in (
                ("rows", "identities that left a step"),
                ("images", "images that left a step"),
                ("made", "images that a step added"),
                ("rejected_identities", "identities that a step rejected"),
                ("rejected_images", "images that a step rejected"),
                ("compute_seconds", "time inside a step's actor"),
                ("wait_seconds", "time an actor waited for rows"),
            )
        }
        self._rejected = metrics.Counter(
            "raypipe_rejected",
            "images and identities that a step rejected, by reason",
            tag_keys=(*TAGS, "reason"),
        )
        for counter in (*self._counters.values(), self._rejected):
            counter.set_default_tags({"stage": task.job, "step": task.step})

    def add(self, sums: dict[str, float]) -> None:
        for name, counter in self._counters.items():
            if sums[name] > 0:  # Ray refuses an increment by nothing
                counter.inc(sums[name])
        for name, number in sums.items():
            if name.startswith("rejected:"):
                self._rejected.inc(number, {"reason": name.removeprefix("rejected:")})
