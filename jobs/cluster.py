"""The cluster under a run: joining or starting Ray, and checking that it can hold the pools."""

import logging
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import yaml
from ray import LoggingConfig
from ray._private.state import state as cluster_state
from ray.autoscaler._private.kuberay.autoscaling_config import AutoscalingConfigProducer
from ray.data import DataContext
from ray.job_config import JobConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raypipe.config import Build, RayConfig
from raypipe.config.base import Pool
from raypipe.errors import UserError

# A stage also reads (one CPU; the write shares it), and a resumed one filters out the rows that are
# done with an actor of its own (one CPU, one GiB). Ray Data hangs where they find no room.
_READ_AND_FILTER = {"CPU": 2.0, "memory": 2.0**30}

# The cluster file of a head that `ray up` started.
_CLUSTER_FILE = "~/ray_bootstrap_config.yaml"


def connect(config: Build) -> None:
    """Joins the configured cluster, or starts one on this machine. Doing it twice is fine."""
    join(config.ray)


def join(options: RayConfig) -> None:
    """What `connect` does, for commands that need no configuration of a build."""
    if not ray.is_initialized():
        address = options.address or os.environ.get("RAY_ADDRESS")
        logs = JobConfig()  # of the workers: as an argument of `ray.init` it is the driver's, too
        logs.set_py_logging_config(LoggingConfig(encoding="JSON"))
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "job_config": logs}
        with _silent_core():
            if address:
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    address="local",
                    num_cpus=options.num_cpus,
                    object_store_memory=options.object_store_memory,
                    include_dashboard=False,
                    **quiet,
                )
    context = DataContext.get_current()
    context.enable_progress_bars = False  # `jobs.progress` shows rows and images instead
    # The new Parquet reader starts a pool of actors for every read. Ten identities through one
    # embedding actor, on two cores, Ray running: 7 to 10 s with it, 3.4 to 4 s without.
    context.use_datasource_v2 = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = options.no_progress_seconds
    warnings.filterwarnings("ignore", module="ray.data")
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors are raised as well


@contextmanager
def _silent_core() -> Iterator[None]:
    """Drops what Ray's core writes to the process's stderr; its errors come as exceptions."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def beside_driver(kind: type) -> Any:
    """A class of actors that run on the driver's node: with it the run would go anyway."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    # Where the node goes and the driver stays, callers wait until it is started anew elsewhere.
    lasting = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(num_cpus=0, scheduling_strategy=here, **lasting)(kind)


def required(
    pools: Sequence[Pool], beside: dict[str, float] = _READ_AND_FILTER
) -> dict[str, float]:
    """The least that a stage needs of a cluster: its smallest pools, and what works beside them."""
    need: dict[str, float] = defaultdict(float, beside)
    for pool in pools:
        need["CPU"] += pool.min * pool.num_cpus
        need["memory"] += pool.min * (pool.memory or 0)
        if pool.num_gpus:
            need["GPU"] += pool.min * pool.num_gpus
        if pool.accelerator_type:
            # A node with the accelerator offers a whole 1 of it, and an actor takes 0.001.
            need[f"accelerator_type:{pool.accelerator_type}"] += pool.min * 0.001
    return dict(need)


def offered() -> dict[str, float]:
    """What the cluster has, or may grow to where an autoscaler works for it."""
    have = dict(ray.cluster_resources())
    # Who manages the cluster may tell it; no autoscaler that comes with Ray 2.60 does (ray#52033).
    limits = cluster_state.get_max_resources_from_cluster_config() or growth(_autoscaling())
    return {
        name: max(have.get(name, 0), limits.get(name, 0)) for name in have.keys() | limits.keys()
    }


def _autoscaling() -> dict[str, Any]:
    """The configuration of the autoscaler that runs beside this driver; empty without one."""
    path = os.path.expanduser(_CLUSTER_FILE)
    if os.path.exists(path):
        with open(path) as stream:
            return dict(yaml.safe_load(stream))
    # Set in deploy/kuberay.yaml, for the head only; the name KubeRay gives to every pod. The head
    # may read its RayCluster, for its autoscaler does.
    if namespace := os.environ.get("RAY_CLUSTER_NAMESPACE"):
        return dict(AutoscalingConfigProducer(os.environ["RAY_CLUSTER_NAME"], namespace)())
    return {}


def growth(autoscaling: dict[str, Any]) -> dict[str, float]:
    """The most that an autoscaler starts, were all of it of one node type or another.

    Args:
        autoscaling: a configuration of Ray's autoscaler.
    """
    total: dict[str, float] = defaultdict(float)
    for kind in autoscaling.get("available_node_types", {}).values():
        most = autoscaling["max_workers"]
        for name, amount in kind["resources"].items():
            total[name] += min(kind.get("max_workers", most), most) * amount
    return dict(total)


def preflight(job: str, pools: Sequence[Pool], beside: dict[str, float] = _READ_AND_FILTER) -> None:
    """Refuses a stage that the cluster cannot hold; Ray itself would wait without a word.

    Args:
        beside: as for `required`.

    Raises:
        UserError: which resource is short, how much is needed and there.
    """
    need, have = required(pools, beside), offered()
    short = [
        f"{_amount(name, need[name])} needed, {_amount(name, have.get(name, 0))} there"
        for name in sorted(need)
        if need[name] > have.get(name, 0)
    ]
    if short:
        raise UserError(
            f"{job}: the cluster cannot hold the pools and still read: {'; '.join(short)}. "
            "Lower min or num_cpus of the pools, or add nodes "
            "(on one machine ray.num_cpus may exceed the cores)"
        )


def _amount(name: str, value: float) -> str:
    return f"{value / 2**30:.1f} GiB memory" if name == "memory" else f"{value:g} {name}"
