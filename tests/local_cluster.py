"""Ray clusters of several nodes on this machine, for tests and benchmarks: real processes of
`ray start`, each node at a loopback address of its own.

`ray.cluster_utils` is not used: its Cluster runs inside the calling process and writes the address
for the whole machine; its AutoscalingCluster starts and ends with `ray stop --force`, which ends
what others run here, and reads a file that the wheel does not have.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TOKEN = "fedcba9876543210" * 4
_HEAD = "127.0.1.0"  # not 127.0.0.1, which Ray replaces by the machine's own address
_COMMANDS = (
    *("initialization", "setup", "head_setup", "head_start_ray"),
    *("worker_setup", "worker_start_ray"),
)
_OBJECT_STORE = 100 * 2**20


def free_port() -> int:
    """A port that was free on every loopback address a moment ago."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def wait_for(what: Callable[[], object], seconds: float = 120) -> None:
    """Waits until `what()` is true.

    Raises:
        AssertionError: where it is not in time.
    """
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.1)


@dataclass
class Node:
    """A node of a cluster: `ray start --block` and all that it started."""

    ip: str
    process: subprocess.Popen[bytes]
    log: Path

    def family(self) -> list[psutil.Process]:
        """Its processes; workers leave the group that they were started in."""
        try:
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kill -9 of all of it at once, as where a machine is taken away."""
        family = self.family()
        for process in family:
            process.suspend()  # or what still lives would tell the others
        for process in family:
            process.kill()
        self.process.wait()
        psutil.wait_procs(family, timeout=20)


@dataclass
class LocalCluster:
    """A head that takes no work, and nodes that do.

    Attributes:
        address: of the head, for RAY_ADDRESS.
        environment: what drivers and commands need: address, token, no other RAY_ variable.
        dashboard: URL of the head's job server; empty where it has none.
        nodes: those that `add` started and nobody took away, in order.
    """

    address: str
    environment: dict[str, str]
    folder: Path
    dashboard: str = ""
    head: Node | None = None
    nodes: list[Node] = field(default_factory=list)
    _started: list[Node] = field(default_factory=list)

    def start(self, ip: str, *arguments: str, **variables: str) -> Node:
        """Starts `ray start --block ARGUMENTS` at an address; does not wait for it."""
        log = self.folder / f"{len(self._started)}-{ip}.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [
                    *(str(BIN / "ray"), "start", "--block", "--disable-usage-stats"),
                    *(f"--node-ip-address={ip}", "--min-worker-port=0", "--max-worker-port=0"),
                    # In one folder, nodes that start together would choose the same socket.
                    *(f"--temp-dir={self.folder}/{len(self._started)}", *arguments),
                    f"--object-store-memory={_OBJECT_STORE}",
                    "--dashboard-agent-listen-port=0",
                ],
                env={**self.environment, **variables},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        node = Node(ip, process, log)
        self._started.append(node)
        return node

    def wait(self, node: Node) -> Node:
        """Waits until a node has joined."""

        def runs() -> bool:
            assert node.process.poll() is None, node.log.read_text()
            return "Ray runtime started" in node.log.read_text()

        wait_for(runs, 200)
        return node

    def add(self, number: int, cpus: int = 1) -> list[Node]:
        """Starts nodes, all at the same time, and waits for them.

        Now and then a raylet does not register with the head, above all where other Rays start on
        this machine at the same moment; another node is started in its place then.
        """

        def start() -> Node:
            ip = f"127.0.1.{len(self._started)}"
            return self.start(ip, f"--address={self.address}", f"--num-cpus={cpus}")

        fresh = [start() for _ in range(number)]
        for place, node in enumerate(fresh):
            try:
                self.wait(node)
            except AssertionError:
                node.kill()
                fresh[place] = self.wait(start())
        self.nodes += fresh
        return fresh

    def remove(self, node: Node) -> None:
        """Kill -9 of a node."""
        self.nodes.remove(node)
        node.kill()

    def python(self, code: str) -> str:
        """What a piece of Python prints, run as a driver of this cluster."""
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self) -> None:
        """Ends all that was started here, whatever state it is in."""
        families = [process for node in self._started for process in node.family()]
        # Those of nodes whose `ray start` was killed alone, and of the fake provider's nodes.
        families += [p for p in psutil.process_iter() if str(self.folder) in _command(p)]
        for process in set(families):
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        for node in self._started:
            node.process.wait()
        psutil.wait_procs(families, timeout=20)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return ""


@contextmanager
def local_cluster(*, dashboard: bool = False, **autoscaling: Any) -> Iterator[LocalCluster]:
    """A head that takes no work; nodes come with `add`, or from the autoscaler.

    Args:
        dashboard: whether the head has a job server.
        autoscaling: for Ray's fake multi-node provider, as in a cluster file: `max_workers`,
            `idle_timeout_minutes`, `available_node_types` of the workers. The file lies where
            `ray up` puts it, in the home of head and drivers.
    """
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        port = free_port()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        cluster = LocalCluster(
            address=f"{_HEAD}:{port}",
            folder=folder,
            environment={
                **environment,
                "HOME": name,
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "RAY_ADDRESS": f"{_HEAD}:{port}",
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN": TOKEN,
                # By default 30 seconds, too few on a busy machine.
                "RAY_raylet_start_wait_time_s": "150",
                "RAY_agent_register_timeout_ms": "150000",
            },
        )
        try:
            start_head(cluster, dashboard=dashboard, **autoscaling)
            yield cluster
        finally:
            cluster.stop()


def start_head(cluster: LocalCluster, *, dashboard: bool = False, **autoscaling: Any) -> None:
    """Starts a head at the cluster's address, where there is none or none any more."""
    arguments = [
        *("--head", "--num-cpus=0", f"--port={cluster.address.partition(':')[2]}"),
        *(f"--ray-client-server-port={free_port()}", f"--include-dashboard={dashboard}"),
    ]
    variables = {}
    if dashboard:
        http = free_port()
        arguments += [f"--dashboard-host={_HEAD}", f"--dashboard-port={http}"]
        cluster.dashboard = f"http://{_HEAD}:{http}"
    if autoscaling:
        config = cluster.folder / "ray_bootstrap_config.yaml"
        config.write_text(yaml.safe_dump(_fake(cluster.address, **autoscaling)))
        arguments.append(f"--autoscaling-config={config}")
        variables = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    cluster.head = cluster.wait(cluster.start(_HEAD, *arguments, **variables))


def _fake(address: str, available_node_types: dict[str, Any], **limits: Any) -> dict[str, Any]:
    """A cluster file whose nodes are processes on this machine."""
    head = "ray.head.default"  # the name that the provider gives it
    return {
        "cluster_name": "local",
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,  # they all have the same
        },
        "head_node_type": head,
        "available_node_types": {
            head: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            **available_node_types,
        },
        # `ray up` fills these in.
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{f"{key}_commands": [] for key in _COMMANDS},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "upscaling_speed": 1.0,
        **limits,
    }
