"""Runs on a cluster, against a real `ray start --head` on loopback that asks for a token."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.inspection import print_verification
from jobs.submit import pack
from raypipe.config.sample import FAULTLESS, SampleConfig
from raypipe.errors import UserError
from raypipe.manifest import read_manifest
from raypipe.world import make_base

ROOT = Path(__file__).parents[2]
TOKEN = "1234567890abcdef" * 4
SECRET = "sk-of-nobody-else"


def free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


@dataclass(frozen=True)
class Head:
    """A cluster of one node, and how commands reach it."""

    port: int
    environment: dict[str, str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, *arguments: str, **changes: str | None) -> subprocess.Popen:
        """Starts `raypipe ARGUMENTS` in the project's folder; None takes a variable away."""
        environment = {**self.environment, "RAY_API_SERVER_ADDRESS": self.address, **changes}
        return subprocess.Popen(
            [sys.executable, "-m", "jobs.cli", *arguments],
            env={name: value for name, value in environment.items() if value is not None},
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, **changes: str | None) -> subprocess.CompletedProcess:
        process = self.start(*arguments, **changes)
        try:
            stdout, stderr = process.communicate(timeout=200)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)

    def info(self) -> list[dict]:
        """All that the job server tells of all runs."""
        told = self.python(
            "import json; from ray.job_submission import JobSubmissionClient;"
            "print(json.dumps([run.dict() for run in JobSubmissionClient().list_jobs()]))"
        )
        return json.loads(told)

    def python(self, code: str) -> str:
        """What a piece of Python prints that asks the job server."""
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**self.environment, "RAY_API_SERVER_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        ).stdout


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    port, dashboard, agent, client = free_ports(4)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_")
    } | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    ports = {
        "port": port,
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "ray-client-server-port": client,
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        log = Path(folder) / "head.log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                [
                    *("ray", "start", "--head", "--block", "--num-cpus=8"),
                    *("--include-dashboard=true", "--disable-usage-stats"),
                    *("--node-ip-address=127.0.0.1", f"--temp-dir={folder}/t"),
                    "--object-store-memory=200000000",
                    *(f"--{name}={value}" for name, value in ports.items()),
                ],
                env=environment,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        head = Head(dashboard, environment)
        try:
            until = time.monotonic() + 250
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            yield head
        finally:
            family = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGTERM)
            _, alive = psutil.wait_procs(family, timeout=10)
            for child in alive:
                child.kill()
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("people")
    make_base(SampleConfig(identities=120, images=6, **FAULTLESS), 0, str(root))
    return root / "base"


def write_config(path: Path, people: Path, **changes: object) -> str:
    values = {
        "workspace": str(path.with_suffix("")),
        "ray": {"rows_per_block": 3, "no_progress_seconds": 60},
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": str(people)}]},
        "embed": {"pool": {"batch_size": 2}},
    }
    path.write_text(yaml.safe_dump({**values, **changes}))
    return str(path)


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def ingested(
    head: Head, people: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess]:
    """A configuration whose people were ingested on the cluster, and what the command said."""
    config = tmp_path_factory.mktemp("submitted") / "My run.yaml"
    return config, head.run("submit", "ingest", write_config(config, people))


@pytest.mark.slow
def test_a_run_is_followed_and_equals_one_of_ray_job_submit(
    ingested: tuple[Path, subprocess.CompletedProcess], head: Head, people: Path, tmp_path: Path
) -> None:
    config, done = ingested
    assert done.returncode == 0, done.stderr
    assert "ingest: 120 of 120 identities and 720 of 720 images kept" in done.stdout
    assert re.search(
        r"sending \d+ files of .* MiB, configuration submitted/My run\.yaml", done.stderr
    )
    assert re.search(r"succeeded raypipe-ingest-my-run-[0-9a-f]{6} in 0:0", done.stderr)
    plain = write_config(tmp_path / "plain.yaml", people)
    line = ["ray", "job", "submit", "--address", head.address, "--working-dir", "."]
    done = subprocess.run(
        [*line, "--", "python", "-m", "jobs.ingest", plain],
        env=head.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    first = read_manifest(str(config.with_suffix("") / "ingest"))
    second = read_manifest(str(tmp_path / "plain" / "ingest"))
    assert first and second and first.content_digest == second.content_digest
    table = head.run("status").stderr
    assert table.split()[:6] == ["id", "state", "job", "config", "since", "for"]
    assert re.search(
        r"raypipe-ingest-my-run-\w{6} +succeeded +ingest +My run\.yaml +[-\d]+ [:\d]+ +0:\d\d:\d\d",
        table,
    )
    assert re.search(r"raysubmit_\w+ +succeeded +– +python -m jobs.ingest", table)


@pytest.mark.slow
def test_a_run_is_stopped_and_goes_on_when_it_is_submitted_again(
    ingested: tuple[Path, subprocess.CompletedProcess], head: Head
) -> None:
    config, workspace = str(ingested[0]), ingested[0].with_suffix("")
    first = head.run("submit", "embed", config, "--no-wait", "--id", "first")
    assert first.stdout == "first\n" and first.returncode == 0
    again = head.run("submit", "embed", config)
    assert again.returncode == 2
    assert "first is at work on" in again.stderr and again.stderr.count("\n") == 1
    wait_for((workspace / "embed" / "started.json").exists)
    shown = head.run("status", "first").stderr
    assert re.search(r"first +running", shown)
    assert re.search(r"embed +running .*last write \d+ s ago", shown)
    assert "0 of 1 jobs done; next: embed" in shown

    rows = workspace / "embed" / "rows"
    wait_for(lambda: list(rows.glob("*.parquet")))
    stopped = head.run("stop", "first")
    assert stopped.returncode == 0
    assert "first: stopped;" in stopped.stderr
    before = {path.name for path in rows.glob("*.parquet")}
    assert before and not (workspace / "embed" / "manifest.json").exists()
    assert re.search(r"embed +interrupted +\d+ written", head.run("status", "first").stderr)
    assert "first: stopped already" in head.run("stop", "first").stderr
    assert "embed     begun" in head.run("status", config).stderr
    assert head.run("status", "first", "--follow").returncode == 1

    resumed = head.run("submit", "embed", config)
    assert resumed.returncode == 0, resumed.stderr
    assert before <= {path.name for path in rows.glob("*.parquet")}
    assert print_verification(str(workspace / "embed"))


@pytest.mark.slow
def test_a_users_mistake_on_the_cluster_is_its_exit_status_and_no_secret_is_told(
    head: Head, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "c.yaml", tmp_path / "nobody")
    secrets = {"OPENAI_API_KEY": SECRET, "AWS_SECRET_ACCESS_KEY": SECRET}
    arguments = ("--env", "OMP_NUM_THREADS", "--id", "mistaken", "--set", "seed=7")
    done = head.run("submit", "ingest", config, *arguments, OMP_NUM_THREADS="3", **secrets)
    assert done.returncode == 2
    assert "nobody" in done.stdout and "Traceback" not in done.stdout + done.stderr
    assert "exit status 2" in done.stderr
    told = head.info()
    assert SECRET not in json.dumps(told)
    assert TOKEN not in json.dumps(told)
    run = next(run for run in told if run["submission_id"] == "mistaken")
    assert run["entrypoint"] == "python -m jobs.ingest submitted/c.yaml --set seed=7"
    assert run["runtime_env"]["env_vars"] == {"OMP_NUM_THREADS": "3"}
    assert run["metadata"] == {
        "raypipe": "0.1.0",
        "job": "ingest",
        "config": "c.yaml",
        "workspace": str(tmp_path / "c"),
        "jobs": "ingest",
    }
    again = head.run("submit", "ingest", config, "--id", "mistaken")
    assert again.returncode == 2
    assert "mistaken already exists" in again.stderr.splitlines()[-1]
    assert "exit code 2" in head.run("status", "mistaken").stderr
    unknown = head.run("status", "nothing")
    assert unknown.returncode == 2
    assert unknown.stderr == f"error {head.address}: Job nothing does not exist\n"


@pytest.mark.slow
def test_the_token_right_wrong_and_missing(head: Head, tmp_path: Path) -> None:
    advice = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file)"
    nowhere = {"RAY_AUTH_TOKEN": None, "HOME": str(tmp_path)}
    for changes, said in (
        ({"RAY_AUTH_TOKEN": "f" * 64}, "refuses the token"),
        (nowhere, "asks for a token"),
        ({**nowhere, "RAY_AUTH_MODE": None}, "asks for a token"),
        ({**nowhere, "RAY_AUTH_MODE": "disabled"}, "asks for a token"),
    ):
        done = head.run("status", **changes)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error {head.address}: the cluster {said}; {advice}")
        assert done.stderr.count("\n") == 1
    kept = tmp_path / "token"
    kept.write_text(TOKEN)
    for changes in (
        {"RAY_AUTH_TOKEN": None, "RAY_AUTH_TOKEN_PATH": str(kept)},
        {"RAY_AUTH_MODE": None},  # as `ray start` has it: a token that is there is used
    ):
        done = head.run("status", **changes)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("token") == 0


class Forwarder:
    """Forwards connections to a port, and can cut them off."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._server.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._target))
            self._open += [here, there]
            for source, target in ((here, there), (there, here)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Ends every connection, and refuses new ones."""
        self._server.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()


@pytest.mark.slow
def test_a_lost_connection_is_made_anew_and_no_line_is_shown_twice(head: Head) -> None:
    head.python(
        "from ray.job_submission import JobSubmissionClient; JobSubmissionClient().submit_job("
        "entrypoint='for i in $(seq 1 25); do echo line $i; sleep 0.4; done',"
        "submission_id='counting')"
    )
    way = Forwarder(head.port)
    address = f"http://127.0.0.1:{way.port}"
    process = head.start("status", "counting", "--follow", "--address", address)
    seen = []
    assert process.stdout is not None and process.stderr is not None
    for line in process.stdout:
        seen.append(line.strip())
        if line == "line 5\n":
            way.cut()
            threading.Timer(2, way.mend).start()
    assert process.wait(30) == 0
    assert [line for line in seen if line.startswith("line")] == [f"line {i}" for i in range(1, 26)]
    assert "connection lost; trying again" in process.stderr.read()


@pytest.mark.slow
def test_ctrl_c_leaves_the_run_alone_and_says_how_to_come_back(
    head: Head, people: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "c.yaml", people)
    process = head.start("submit", "build", config, "--id", "left")
    assert process.stdout is not None
    for line in process.stdout:
        if "Running entrypoint" in line:
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"raypipe status left --address {head.address} --follow" in stderr
    assert "Traceback" not in stderr
    run = next(run for run in head.info() if run["submission_id"] == "left")
    assert run["status"] == "RUNNING"
    assert head.run("stop", "left").returncode == 0


@pytest.mark.slow
def test_nobody_at_the_address_is_one_line_within_seconds(head: Head, people: Path, tmp_path: Path):
    (port,) = free_ports(1)
    config = write_config(tmp_path / "c.yaml", people)
    for arguments in (["status"], ["stop", "x"], ["submit", "build", config]):
        start = time.monotonic()
        done = head.run(*arguments, "--address", f"http://127.0.0.1:{port}")
        assert time.monotonic() - start < 40  # most of it is the import of Ray
        assert done.returncode == 2
        assert "no job server of Ray answers there" in done.stderr
        assert done.stderr.count("\n") == 1


def test_mistakes_are_found_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path / "c.yaml", tmp_path)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("PROXY", f"http://me:{SECRET}@proxy:3128")
    for arguments, said in (
        (["biuld", config], "there is no job 'biuld'"),
        (["build", str(tmp_path / "d.yaml")], "d.yaml: no such file"),
        (["build", config, "--set", "clean.rul=share"], "did you mean 'rule'?"),
        (["build", config, "--set", "workspace=runs/x"], "workspace 'runs/x' is relative"),
        (["build", config, "--set", f"workspace=s3://a:{SECRET}@b"], "holds a password"),
        (["build", config, "--env", "HF_TOKEN"], "--env HF_TOKEN: looks like a secret"),
        (["build", config, "--env", "PROXY"], "--env PROXY: looks like a secret"),
        (["build", config, "--env", "NOT_THERE"], "--env NOT_THERE: not set here"),
        (["build", config, "--id", "a/b"], "only letters"),
        (["build", config, "--address", "head:8265"], "expected a URL such as"),
    ):
        result = CliRunner().invoke(app, ["submit", *arguments])
        assert result.exit_code == 2
        assert said in result.stderr
        assert SECRET not in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with what belongs in a package and what does not."""
    root = tmp_path / "project"
    for name in (
        *("jobs/cli.py", "configs/c.yaml", "grammar/runs/kept.yaml"),
        *(".git/config", ".env", "runs/demo/rows", "build/x", "env/pyvenv.cfg", "env/lib/x"),
        *("jobs/__pycache__/cli.pyc", "raypipe.egg-info/PKG-INFO", "data/faces.rec", "out/rows/1"),
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (root / ".gitignore").write_text("/data/\n")
    (root / "loop").symlink_to(root)
    return root


def test_a_package_holds_what_a_run_needs_and_is_the_same_bytes_again(
    folder: Path, tmp_path: Path
) -> None:
    config = str(folder / "configs" / "c.yaml")
    first = pack(folder, config, str(folder / "out"), tmp_path / "1.zip")
    assert first.config == "configs/c.yaml"
    assert zipfile.ZipFile(first.path).namelist() == [
        "configs/c.yaml",
        "grammar/runs/kept.yaml",
        "jobs/cli.py",
    ]
    os.utime(folder / "jobs" / "cli.py", (1, 1))
    second = pack(folder, config, str(folder / "out"), tmp_path / "2.zip")
    assert first.path.read_bytes() == second.path.read_bytes()


def test_a_configuration_from_elsewhere_comes_along(folder: Path, tmp_path: Path) -> None:
    for place in (tmp_path / "mine.yaml", folder / "runs" / "mine.yaml"):
        place.write_text("x: 1")
        package = pack(folder, str(place), "s3://bucket/run", tmp_path / "p.zip")
        assert package.config == "submitted/mine.yaml"
        assert zipfile.ZipFile(package.path).read("submitted/mine.yaml") == b"x: 1"
    remote = pack(folder, "s3://bucket/c.yaml", "s3://bucket/run", tmp_path / "p.zip")
    assert remote.config == "s3://bucket/c.yaml"
    (folder / "jobs" / "cli.py").unlink()
    bare = pack(folder, "s3://bucket/c.yaml", "s3://bucket/run", tmp_path / "p.zip")
    assert "raypipe itself is the nodes' own" in bare.said


def test_a_package_too_large_is_refused_and_the_largest_file_named(
    folder: Path, tmp_path: Path
) -> None:
    with (folder / "large.bin").open("wb") as stream:
        stream.truncate(101 * 2**20)
    with pytest.raises(UserError, match=r"101\.0 MiB to send.*large\.bin \(101\.0 MiB\)"):
        pack(folder, str(folder / "configs" / "c.yaml"), "/w", tmp_path / "p.zip")
    assert not (tmp_path / "p.zip").exists()
