"""Stages on clusters of several nodes: nodes that come, go, are announced to go, or die."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml

from actors.embed import EmbedActor
from face_sets import write_set
from jobs.inspection import print_verification
from local_cluster import LocalCluster, Node, local_cluster, start_head, wait_for
from paced_stage import number_images
from raypipe import storage
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg
from raypipe.manifest import read_manifest
from test_drain import Metadata

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS = 40
ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("paced_stage.py")


def people(rows: int = ROWS) -> list[Identity]:
    rng = np.random.default_rng(0)
    return [
        Identity(
            identity_id=f"base/{number:03d}",
            index=number,
            source="base",
            images=[
                Image(
                    image_id="0.jpg",
                    data=encode_jpeg(rng.integers(0, 255, (112, 112, 3), np.uint8)),
                    source="random",
                )
            ],
        )
        for number in range(rows)
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("nodes") / "source")
    write_set(root, people())
    return root


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    return done_here(str(tmp_path_factory.mktemp("expected")), people())


def done_here(root: str, rows: list[Identity]) -> str:
    """The digest of the same work done here, in one loop."""
    number_images(rows)
    return write_set(root, rows).content_digest


class Run:
    """A stage in a driver of its own."""

    def __init__(
        self, cluster: LocalCluster, source: str, workspace: Path, pools: dict[str, Any]
    ) -> None:
        self.workspace = workspace
        self._notes = workspace / "notes"
        self._notes.mkdir(parents=True, exist_ok=True)
        given = {"source": source, "workspace": str(workspace), "notes": str(self._notes)}
        self._log = workspace / "driver.log"
        with self._log.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(DRIVER), json.dumps({**given, "pools": pools})],
                env=cluster.environment,
                stdout=stream,
                stderr=stream,
            )

    def notes(self) -> list[dict[str, Any]]:
        """What the actors noted of their calls, in the order in which these ended."""
        found = [json.loads(path.read_text()) for path in self._notes.glob("*.json")]
        return sorted(found, key=lambda note: note["ended"])

    def wait_until(self, what: Callable[[], object]) -> None:
        """Waits until `what()` is true, while the driver runs."""

        def there() -> object:
            assert self.process.poll() is None, self._log.read_text()
            return what()

        wait_for(there, 200)

    def end(self) -> str:
        """Waits until it has ended well; the content digest."""
        try:
            assert self.process.wait(400) == 0, self._log.read_text()
        finally:
            self.process.kill()
        manifest = read_manifest(str(self.workspace / "embed"))
        assert manifest is not None and not manifest.counts["identities"]["rejected"]
        return manifest.content_digest

    def stages(self) -> dict[str, dict[str, Any]]:
        stages = storage.read_json(str(self.workspace / "embed" / "run.json"))["stages"]
        return {stage["name"]: stage for stage in stages}


# Calls that an actor had in its queue when its node was drained, and works on yet.
_QUEUED = 3


def pools(actors: int, pace: float = 0.1, **pool: Any) -> dict[str, Any]:
    """One pool, all of whose actors get something to do."""
    arguments = {"start": 0, "pace": pace, "gather": actors}
    return {"digest": (arguments, {"min": actors, "max": actors, **pool})}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as cluster:
        cluster.add(1, cpus=3)  # an actor, a read and a filter
        yield cluster


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_any_number_of_nodes_gives_the_same(
    nodes: int, cluster: LocalCluster, expected: str, source: str, tmp_path: Path
) -> None:
    grow(cluster, nodes)
    run = Run(cluster, source, tmp_path, pools(min(nodes, 3)))
    assert run.end() == expected
    used = {note["node"] for note in run.notes()}
    assert len(used) == run.stages()["digest"]["nodes"]
    assert (len(used) > 1) == (nodes > 1)


def test_a_node_that_dies_costs_what_it_had_in_hand(
    cluster: LocalCluster, expected: str, source: str, tmp_path: Path
) -> None:
    grow(cluster, 3)
    run = Run(cluster, source, tmp_path, pools(3, pace=1.0))
    run.wait_until(lambda: len(run.notes()) >= 3)
    victim = busiest(run, cluster)
    cluster.remove(victim)
    before = len(run.notes())
    assert run.end() == expected
    assert victim.ip not in {note["node"] for note in run.notes()[before:]}
    assert print_verification(str(tmp_path / "embed"))


def grow(cluster: LocalCluster, nodes: int) -> None:
    cluster.add(max(0, nodes - len(cluster.nodes)))


def busiest(run: Run, cluster: LocalCluster) -> Node:
    """A node with actors that is not the first, on which the reading is."""
    ips = {note["node"] for note in run.notes()}
    return next(node for node in cluster.nodes[1:] if node.ip in ips)


def pids(text: str) -> list[psutil.Process]:
    """Processes whose command has a text in it, without what starts them."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if text in " ".join(process.info["cmdline"] or []) and process.pid != os.getpid()
    ]


class Observer:
    """Waits, in a process of its own that has joined already, until a node is drained."""

    def __init__(self, cluster: LocalCluster, node: Node) -> None:
        code = (
            "import sys, time, ray; from ray._private.state import state;"
            "ray.init(log_to_driver=False); print('ready', flush=True)\n"
            "ids = {n['NodeID'] for n in ray.nodes() if n['NodeManagerAddress'] == sys.argv[1]}\n"
            "while not ids & set(state.get_draining_nodes()): time.sleep(0.1)\n"
            "print(time.time(), flush=True)"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, node.ip],
            env=cluster.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._process.stdout is not None
        assert "ready" in self._process.stdout.readline()

    def when(self) -> float:
        """When it was drained, in seconds since 1970."""
        return float(self._process.communicate(timeout=60)[0].splitlines()[0])

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def victim(cluster: LocalCluster) -> Node:
    """The last of three nodes."""
    grow(cluster, 3)
    return cluster.nodes[-1]


@pytest.fixture
def observer(cluster: LocalCluster, victim: Node) -> Iterator[Observer]:
    observer = Observer(cluster, victim)
    yield observer
    observer.stop()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata("")
    yield server
    server.shutdown()


def test_a_node_that_aws_takes_away_is_drained_first(
    cluster: LocalCluster,
    metadata: Metadata,
    victim: Node,
    observer: Observer,
    expected: str,
    source: str,
    tmp_path: Path,
) -> None:
    metadata.ip = victim.ip
    # The command of cluster.yaml, as it stands there.
    line = yaml.safe_load((ROOT / "cluster.yaml").read_text())["worker_start_ray_commands"][-1]
    environment = {
        **cluster.environment,
        "RAY_HEAD_IP": cluster.address.partition(":")[0],
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{metadata.host}",
    }
    line = line.replace(":6379", f":{cluster.address.partition(':')[2]}")
    subprocess.run(["bash", "-c", line], env=environment, cwd=ROOT, check=True)
    log = cluster.folder / "drain.log"
    watcher = f"jobs.drain aws {cluster.address}"
    try:
        wait_for(lambda: f"watching for the end of {victim.ip}" in log.read_text())
        run = Run(cluster, source, tmp_path, pools(3, pace=1.0))
        run.wait_until(lambda: victim.ip in {note["node"] for note in run.notes()})
        metadata.notice = time.time() + 120
        drained = observer.when()
        wait_for(lambda: not pids(watcher))
        cluster.remove(victim)
        assert run.end() == expected
    finally:
        for process in pids(watcher):
            process.kill()
    assert "drained" in log.read_text()
    spared(run, victim, drained)


def test_a_pod_that_is_told_to_end_drains_its_node(
    cluster: LocalCluster,
    victim: Node,
    observer: Observer,
    expected: str,
    source: str,
    tmp_path: Path,
) -> None:
    run = Run(cluster, source, tmp_path, pools(3, pace=1.0))
    run.wait_until(lambda: victim.ip in {note["node"] for note in run.notes()})
    victim.process.send_signal(signal.SIGTERM)
    drained = observer.when()
    assert run.end() == expected
    cluster.remove(victim)
    spared(run, victim, drained)


def spared(run: Run, victim: Node, drained: float) -> None:
    """Checks that a drained node got no new actor, and finished what was queued at most."""
    late = [note for note in run.notes() if note["node"] == victim.ip and note["begun"] > drained]
    assert len(late) <= _QUEUED and not [note for note in late if note["born"] > drained]


def test_pools_that_compete_start_nodes_and_share_them(tmp_path: Path) -> None:
    """From the head alone to as many nodes as there may be, and back.

    Both pools want all of them and have as much to do. What starts ten seconds later, each of its
    actors again, must not find everything taken.
    """
    rows = people(240)
    source = str(tmp_path / "source")
    write_set(source, rows)
    kind = {
        "resources": {"CPU": 2, "object_store_memory": 100 * 2**20},
        "node_config": {},
        "min_workers": 0,
        "max_workers": 4,
    }
    pace = {"pace": 1.0, "gather": 1}
    grows = {"min": 1, "max": 8}
    with local_cluster(
        max_workers=4, idle_timeout_minutes=0.2, available_node_types={"cpu": kind}
    ) as cluster:
        assert alive(cluster) == 1
        pools = {"early": ({"start": 0, **pace}, grows), "late": ({"start": 10, **pace}, grows)}
        run = Run(cluster, source, tmp_path / "work", pools)
        assert run.end() == done_here(str(tmp_path / "expected"), rows)
        actors = {name: stage["actors"] for name, stage in run.stages().items()}
        assert actors["late"] >= max(2, actors["early"])
        assert run.stages()["late"]["nodes"] > 1
        wait_for(lambda: alive(cluster) == 1)


def alive(cluster: LocalCluster) -> int:
    code = "import ray; ray.init(log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
    return int(cluster.python(code))


def test_a_run_whose_head_is_lost_goes_on_when_it_is_submitted_again(tmp_path: Path) -> None:
    workspace = tmp_path / "work"
    rows = people()
    write_set(str(workspace / "ingest"), rows)
    config = tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "workspace": str(workspace),
                "ray": {"rows_per_block": 2, "no_progress_seconds": 300},
                "embedder": {"kind": "dlib"},
                "ingest": {"sources": [{"name": "base", "path": "unused"}]},
                "embed": {"pool": {"batch_size": 1}},
            }
        )
    )
    with local_cluster(dashboard=True) as cluster:
        (node,) = cluster.add(1, cpus=3)
        assert submit(cluster, config, "--no-wait").returncode == 0
        written = workspace / "embed" / "rows"
        wait_for(lambda: list(written.glob("*.parquet")))
        assert cluster.head is not None
        cluster.head.kill()
        cluster.remove(node)  # which without a head would end itself after a minute
        before = {path.name for path in written.glob("*.parquet")}
        assert not (workspace / "embed" / "manifest.json").exists()
        start_head(cluster, dashboard=True)
        cluster.add(1, cpus=3)
        done = submit(cluster, config)
        assert done.returncode == 0, done.stdout + done.stderr
    assert before and before <= {path.name for path in written.glob("*.parquet")}
    made = read_manifest(str(workspace / "embed"))
    here = write_set(str(tmp_path / "expected"), EmbedActor({"kind": "dlib"})(rows))
    assert made is not None and made.content_digest == here.content_digest


def submit(
    cluster: LocalCluster, config: Path, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    address = ("--address", cluster.dashboard)
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "submit", "embed", str(config), *address, *arguments],
        env=cluster.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )
