"""How far runs are: `raypipe status`, of a cluster, of one run on it, or of a workspace."""

import textwrap
import time
from datetime import datetime
from typing import Any

from ray.job_submission import JobDetails, JobStatus, JobType
from rich.markup import escape
from rich.table import Table

from jobs.build import ORDER
from jobs.progress import console
from jobs.submit import asking, connect, duration, follow
from jobs.work import RUN
from raypipe import storage
from raypipe.config import Build
from raypipe.errors import UserError
from raypipe.manifest import STARTED, read_manifest

_LOG_LINES = 10


def print_runs(address: str) -> None:
    """Prints what was submitted to a cluster, a line each, the latest last.

    Raises:
        UserError: where no job server answers.
    """
    client = connect(address)
    with asking(address):
        runs = [run for run in client.list_jobs() if run.type == JobType.SUBMISSION]
    if not runs:
        console.print(f"{address}: nothing was submitted yet")
        return
    table = Table("id", "state", "job", "config", "since", "for", box=None, pad_edge=False)
    for run in sorted(runs, key=lambda run: run.start_time or 0):
        known = run.metadata or {}
        since = datetime.fromtimestamp((run.start_time or 0) / 1000)
        table.add_row(
            run.submission_id,
            run.status.lower(),
            known.get("job", "–"),
            escape(known.get("config", textwrap.shorten(run.entrypoint, 40))),
            f"{since:%Y-%m-%d %H:%M}",
            duration(run),
        )
    # As wide as it is: an ID that was cut off could not be copied.
    options = console.options.update(max_width=1000)
    console.width = max(console.width, console.measure(table, options=options).maximum)
    console.print(table)


def print_run(address: str, submission_id: str, follow_log: bool) -> int:
    """Prints state, message and log of a run and, where its workspace can be read from here, how
    far its jobs are.

    Args:
        follow_log: print the whole log and go on until the run ends.

    Returns:
        The exit status: 0 or, after following, that of the run.

    Raises:
        UserError: where there is no such run.
    """
    client = connect(address)
    if follow_log:
        return follow(client, address, submission_id)
    with asking(address):
        run = client.get_job_info(submission_id)
        log = client.get_job_logs(run.submission_id) if run.submission_id else ""
    console.print(f"[bold]{submission_id}[/]  {run.status.lower()}, {duration(run)}")
    if run.status != JobStatus.SUCCEEDED and run.message:
        console.print(escape(run.message.strip().splitlines()[0]), soft_wrap=True)
    for line in log.splitlines()[-_LOG_LINES:]:
        console.print(escape(line), style="dim", soft_wrap=True)
    _print_jobs_of(run)
    return 0


def _print_jobs_of(run: JobDetails) -> None:
    known = run.metadata or {}
    workspace, names = known.get("workspace"), known.get("jobs", "").split()
    if not workspace or not names:
        return
    try:
        if storage.exists(workspace):
            print_jobs(workspace, names, running=run.status == JobStatus.RUNNING)
        else:
            console.print(f"workspace {workspace}: not to be seen from here, or not begun")
    except (OSError, UserError) as error:
        console.print(f"workspace {workspace}: not to be read from here ({escape(str(error))})")


def print_workspace(config: Build) -> None:
    """Prints how far the jobs of a configuration are, by what lies in its workspace.

    Raises:
        UserError: where the workspace cannot be read.
    """
    try:
        print_jobs(config.workspace, [name for name in ORDER if config.has(name)])
    except OSError as error:
        raise UserError(f"{config.workspace}: cannot be read ({error})") from error


def print_jobs(workspace: str, names: list[str], running: bool | None = None) -> None:
    """Prints how far jobs of a workspace are, and which is next.

    Args:
        running: whether a run is at work there; None: nobody knows.
    """
    table = Table("job", "state", "identities", "images", "", box=None, pad_edge=False)
    left = []
    for name in names:
        root = storage.join(workspace, name)
        manifest = read_manifest(root)
        if manifest:
            kept = [_kept(manifest.counts, unit) for unit in ("identities", "images")]
            table.add_row(name, "done", *kept, _took(root))
            continue
        left.append(name)
        if storage.exists(storage.join(root, STARTED)):
            state = {True: "running", False: "interrupted", None: "begun"}[running]
            table.add_row(name, state, *_written(root))
        else:
            table.add_row(name, "not begun", "", "", "")
    console.print(f"[bold]{workspace}[/]", soft_wrap=True)
    console.print(table)
    if left:
        console.print(f"{len(names) - len(left)} of {len(names)} jobs done; next: {left[0]}")
    else:
        console.print(f"all {len(names)} jobs done")


def _kept(counts: dict[str, Any], unit: str) -> str:
    numbers = counts.get(unit)
    if not isinstance(numbers, dict) or "kept" not in numbers:
        return ""
    return f"{numbers['kept']:,} of {numbers['total']:,}"


def _took(root: str) -> str:
    path = storage.join(root, RUN)
    return f"{storage.read_json(path)['seconds']:.0f} s" if storage.exists(path) else ""


def _written(root: str) -> tuple[str, str, str]:
    """Identities that an unfinished job wrote so far, and when it last wrote anything."""
    from jobs.stage import count_rows  # imports all of Ray Data

    entries = storage.listdir(root, recursive=True)
    # A job may make a face set in a folder of its own on the way.
    begun = [entry.path.removesuffix(STARTED) for entry in entries if entry.name == STARTED]
    rows = sum(count_rows(folder) for folder in begun)
    ago = time.time() - max(entry.mtime_ns for entry in entries) / 1e9
    return f"{rows:,} written" if rows else "", "", f"last write {max(0.0, ago):.0f} s ago"
