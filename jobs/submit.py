"""Runs on a cluster, through the job server of its head: `raypipe submit` and `raypipe stop`.

Everything that the job server knows of a run, whoever may ask it learns: command, metadata and
environment. So secrets go none of these ways; they are on the nodes before a run is submitted.
"""

import asyncio
import logging
import os
import re
import secrets
import shlex
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import requests
from ray._private.authentication import authentication_token_setup
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
from ray.dashboard.modules import dashboard_sdk
from ray.dashboard.modules.job import sdk
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.markup import escape

import raypipe
from jobs.build import ORDER
from jobs.cli import JOBS
from jobs.progress import console
from raypipe import storage
from raypipe.config import Build, load
from raypipe.errors import UserError
from raypipe.scratch import scratch

for _module in (dashboard_sdk, sdk):  # they tell of every request and every connection
    _module.logger.setLevel(logging.WARNING)

# Seconds to connect and, once connected, to wait for an answer: an upload is answered when stored.
_TIMEOUTS = (10, 120)
# A log that says nothing for so long may be a connection that is gone; it is made anew.
_QUIET_SECONDS = 60
_TRIES = 8  # with pauses of 1, 2, 4, 8, 16, 30, 30 seconds
_STOP_SECONDS = 60

# Bytes of files in a package: what a job server takes, less the names and headers of the zip file.
_LARGEST = DASHBOARD_CLIENT_MAX_SIZE - 2**20

# Left out of the package wherever they lie, beside hidden files and what .gitignore names.
_GENERATED = re.compile(r"__pycache__|.*\.egg-info")
_RESULTS = ("runs", "build", "dist")  # left out at the top only

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"://[^/@\s]*:[^/@\s]*@")  # a URI with a password in it


class _Client(JobSubmissionClient):
    """Ray's client, which itself waits for an answer without end."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        return super()._do_request(method, endpoint, timeout=_TIMEOUTS, **options)


@contextmanager
def asking(address: str) -> Iterator[None]:
    """Turns what goes wrong between here and the job server into one line.

    Raises:
        UserError: what is wrong and what to do.
    """
    try:
        yield
    except AuthenticationError as error:
        known = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file)"
        wrong = "refuses the token" if "Forbidden" in str(error) else "asks for a token"
        raise UserError(
            f"{address}: the cluster {wrong}; {known} to what its head was started with"
        ) from None
    except (OSError, aiohttp.ClientError) as error:  # those of requests are among them
        answer = f" ({error})" if isinstance(error, requests.HTTPError) else ""
        raise UserError(
            f"{address}: no job server of Ray answers there{answer}; --address is the URL of the "
            "head's dashboard, as in http://HEAD:8265"
        ) from None
    except RuntimeError as error:  # what the server says: the last line of its traceback
        said = str(error).rstrip(".\n").splitlines()[-1]
        said = re.sub(r"^(Request failed with status code \d+|\w+Error): ", "", said)
        raise UserError(f"{address}: {said}") from None


def connect(address: str) -> JobSubmissionClient:
    """A client of the job server at an address.

    Raises:
        UserError: where none answers, or it refuses the token.
    """
    if not re.fullmatch(r"https?://[^/\s]+/?", address):
        raise UserError(f"--address {address}: expected a URL such as http://HEAD:8265")
    # Ray's client takes RAY_ADDRESS instead of its argument, and this before both.
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    with asking(address):
        try:
            return _Client(address)
        except AuthenticationError:
            # Where RAY_AUTH_MODE is not set, `ray start` asks for the token of the machine, and
            # the client does not send it.
            setup = authentication_token_setup
            logging.getLogger(setup.__name__).setLevel(logging.ERROR)
            if setup.AUTH_MODE_ENV_VAR in os.environ:
                raise
            if not setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
                raise
            return _Client(address)


def submit(
    job: str,
    path: str,
    overrides: list[str],
    address: str,
    *,
    submission_id: str | None = None,
    variables: list[str] | None = None,
) -> str:
    """Submits a job with the working directory, and says what is sent.

    Args:
        job: name of a job, "build" for all of them.
        path: the configuration; it need not lie in the working directory.
        overrides: "clean.min_images=12" and the like.
        address: URL of the job server.
        submission_id: what to call the run; none: job, configuration and six random digits.
        variables: names of environment variables that the run gets.

    Returns:
        The submission ID.

    Raises:
        UserError: for a mistake in any of them, before anything is sent.
    """
    config = _checked(job, path, overrides)
    environment = _environment(variables or [])
    name = re.sub(r"[^a-z0-9]+", "-", Path(path).stem.lower()).strip("-")[:30]
    submission_id = submission_id or f"raypipe-{job}-{name}-{secrets.token_hex(3)}"
    if not re.fullmatch(r"[\w.-]+", submission_id):
        raise UserError(f"--id {submission_id}: only letters, digits, '.', '_' and '-'")
    metadata = {
        "raypipe": raypipe.__version__,
        "job": job,
        "config": path.rsplit("/", 1)[-1],
        "workspace": config.workspace,
        "jobs": " ".join(_parts(job, config)),
    }
    client = connect(address)
    with asking(address):
        _refuse_second(client, metadata)
    with scratch() as folder:
        package = pack(Path.cwd(), path, config.workspace, Path(folder) / "package.zip")
        console.print(f"sending {package.said}", soft_wrap=True)
        command = ["python", "-m", f"jobs.{job}", package.config]
        for override in overrides:
            command += ["--set", override]
        with asking(address):
            client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=submission_id,
                runtime_env={"working_dir": str(package.path), "env_vars": environment},
                metadata=metadata,
            )
    return submission_id


def _checked(job: str, path: str, overrides: list[str]) -> Build:
    """The configuration, where a run on a cluster can do with it."""
    if job not in JOBS:
        raise UserError(f"submit: there is no job {job!r}; it is one of {', '.join(JOBS)}")
    config = load(path, overrides)
    workspace = config.workspace
    if not storage.is_uri(workspace) and not os.path.isabs(workspace.removeprefix("file://")):
        # The run's working directory is an unpacked copy that Ray deletes some time after it.
        raise UserError(
            f"{path}: workspace {workspace!r} is relative, and would be lost with the run's copy "
            "of the working directory; give a path that every node sees or a URI, as in "
            "--set workspace=s3://BUCKET/RUN"
        )
    for text in (workspace, *overrides):
        if _SECRET_VALUE.search(text):
            raise UserError(
                f"submit: {text.partition('=')[0] if '=' in text else 'workspace'} holds a "
                "password, which everybody would see who asks the job server for the run; give "
                "it to the nodes (see --env)"
            )
    return config


def _environment(names: list[str]) -> dict[str, str]:
    found = {}
    for name in names:
        if _SECRET_NAME.search(name) or _SECRET_VALUE.search(os.environ.get(name, "")):
            raise UserError(
                f"--env {name}: looks like a secret, and everybody who asks the job server for the "
                "run would see it; set it on the nodes before `ray start`, as a secret of "
                "Kubernetes or in a file such as judge.key_file names"
            )
        if name not in os.environ:
            raise UserError(f"--env {name}: not set here")
        found[name] = os.environ[name]
    return found


def _parts(job: str, config: Build) -> list[str]:
    """The jobs of the workspace that a run does, in order."""
    return [name for name in ORDER if name == job or (job == "build" and config.has(name))]


def _refuse_second(client: JobSubmissionClient, metadata: dict[str, str]) -> None:
    """Refuses a run beside another that writes the same folders."""
    for other in client.list_jobs():
        known = other.metadata or {}
        if not other.status.is_terminal() and all(
            known.get(key) == metadata[key] for key in ("job", "workspace")
        ):
            raise UserError(
                f"submit: {other.submission_id} is at work on {metadata['workspace']} already; "
                f"`raypipe status {other.submission_id} --follow` shows it"
            )


@dataclass(frozen=True, kw_only=True)
class Package:
    """What a run gets as its working directory.

    Attributes:
        path: the zip file.
        config: the configuration, as a path in it.
        said: what is in it, for a person.
    """

    path: Path
    config: str
    said: str


def pack(root: Path, config: str, workspace: str, target: Path) -> Package:
    """Zips a working directory; equal files give equal bytes, which Ray sends once.

    Left out are hidden files, what `.gitignore` and `.rayignore` name, virtual environments, `runs`
    and `workspace`, `build` and `dist`. A configuration that is not among the rest is added.

    Raises:
        UserError: where the package is larger than a job server takes.
    """
    files = {
        str(path.relative_to(root)): path for path in sorted(_files(root, Path(workspace), []))
    }
    inside = config
    if not storage.is_uri(config):
        place = Path(config.removeprefix("file://")).resolve()
        inside = next((name for name, path in files.items() if path.resolve() == place), "")
        if not inside:
            inside = f"submitted/{place.name}"
            files[inside] = place
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    if total > _LARGEST:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        named = ", ".join(f"{name} ({_mib(sizes[name])})" for name in largest)
        raise UserError(
            f"submit: {root} has {_mib(total)} to send, and the job server takes "
            f"{_mib(_LARGEST)}; the largest files are {named}; name in .rayignore "
            "what the run does not need"
        )
    with zipfile.ZipFile(target, "w") as package:
        for name, path in files.items():
            package.writestr(zipfile.ZipInfo(name), path.read_bytes())
    own = "" if "jobs/cli.py" in files else "; raypipe itself is the nodes' own"
    said = f"{len(files):,} files of {root}, {_mib(total)}, configuration {inside}{own}"
    return Package(path=target, config=inside, said=said)


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def _files(folder: Path, workspace: Path, ignored: list[Callable[[Path], bool]]) -> Iterator[Path]:
    top = not ignored
    quiet = logging.getLogger(__name__)
    ignored = [*ignored, *get_excludes_from_ignore_files(folder, True, quiet), lambda path: False]
    for path in folder.iterdir():
        if path.name.startswith(".") or _GENERATED.fullmatch(path.name):
            continue
        if (top and path.name in _RESULTS) or path == workspace:
            continue
        if any(ignores(path) for ignores in ignored):
            continue
        if path.is_file():
            yield path
        # Links to folders are not followed: they lead to data, or round in a circle.
        elif path.is_dir() and not path.is_symlink() and not (path / "pyvenv.cfg").exists():
            yield from _files(path, workspace, ignored)


class _Log:
    """Prints a log that is read from its beginning again and again, each part once."""

    def __init__(self) -> None:
        self._shown = 0

    def show(self, text: str, position: int = 0) -> int:
        """Prints what of a text at a position was not printed yet; returns where it ends."""
        fresh = text[max(0, self._shown - position) :]
        end = position + len(text)
        if fresh:
            sys.stdout.write(fresh)
            sys.stdout.flush()
            self._shown = end
        return end


async def _tail(client: JobSubmissionClient, submission_id: str, log: _Log) -> None:
    """Prints the log until it ends, the connection breaks or nothing comes for a while."""
    position = 0
    lines = client.tail_job_logs(submission_id)
    while True:
        try:
            text = await asyncio.wait_for(anext(lines), _QUIET_SECONDS)
        except (StopAsyncIteration, RuntimeError, OSError, TimeoutError, aiohttp.ClientError):
            return
        position = log.show(text, position)


def follow(client: JobSubmissionClient, address: str, submission_id: str) -> int:
    """Prints the log of a run as it comes, until the run ends; ctrl-C leaves the run alone.

    A lost connection is made anew, and the log goes on where it was.

    Returns:
        The exit status: that of the run, 1 for one that was stopped or had none, 130 for ctrl-C.

    Raises:
        UserError: where there is no such run, or no connection for a minute and a half.
    """
    log = _Log()
    where = f"{submission_id} --address {address}"
    failures = 0
    try:
        with asking(address):
            client.get_job_info(submission_id)
        while True:
            asyncio.run(_tail(client, submission_id, log))
            try:
                with asking(address):
                    info = client.get_job_info(submission_id)
                    text = client.get_job_logs(submission_id)
            except UserError as error:
                failures += 1
                if failures == _TRIES:
                    raise UserError(
                        f"{error} (asked {_TRIES} times; the run itself was left alone: "
                        f"`raypipe status {where} --follow` shows it once it can be reached)"
                    ) from None
                if failures == 1:
                    console.print("connection lost; trying again", style="dim")
                time.sleep(min(2 ** (failures - 1), 30))
                continue
            failures = 0
            log.show(text)
            if info.status.is_terminal():
                return _ended(info)
            time.sleep(1)
    except KeyboardInterrupt:
        console.print(
            f"left alone, and it goes on: [bold]raypipe status {where} --follow[/] shows it again, "
            f"[bold]raypipe stop {where}[/] ends it",
            soft_wrap=True,
        )
        return 130


def _ended(info: JobDetails) -> int:
    """Says how a run ended; returns its exit status."""
    took = duration(info)
    if info.status == JobStatus.SUCCEEDED:
        console.print(f"[bold green]succeeded[/] {info.submission_id} in {took}", soft_wrap=True)
        return 0
    if info.status == JobStatus.STOPPED:
        console.print(f"[bold]stopped[/] {info.submission_id} after {took}", soft_wrap=True)
        return 1
    status = info.driver_exit_code
    why = f"exit status {status}" if status is not None else (info.message or "no reason given")
    console.print(
        f"[bold red]failed[/] {info.submission_id} after {took}: {escape(why)}", soft_wrap=True
    )
    return status if status is not None and status > 0 else 1


def duration(info: JobDetails) -> str:
    """How long a run took, or has been there: "1:02:03"."""
    end = info.end_time / 1000 if info.end_time else time.time()
    seconds = max(0, round(end - (info.start_time or 0) / 1000))
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def stop(address: str, submission_id: str) -> None:
    """Stops a run and waits until it is stopped.

    Raises:
        UserError: where there is no such run, or it does not stop.
    """
    client = connect(address)
    with asking(address):
        running = client.stop_job(submission_id)
        until = time.monotonic() + _STOP_SECONDS
        while not (info := client.get_job_info(submission_id)).status.is_terminal():
            if time.monotonic() > until:
                raise UserError(
                    f"{submission_id}: still {info.status.lower()} {_STOP_SECONDS} s after it was "
                    "told to stop; try again"
                )
            time.sleep(0.5)
    if running and info.status == JobStatus.STOPPED:
        console.print(
            f"{submission_id}: stopped; submit the same again and it goes on where it was",
            soft_wrap=True,
        )
    else:
        console.print(f"{submission_id}: {info.status.lower()} already", soft_wrap=True)
