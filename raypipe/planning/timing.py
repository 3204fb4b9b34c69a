"""Hours of machines: where each pool lands, how long each job takes there."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from raypipe.cluster_files import ACCELERATOR, NodeType
from raypipe.config import Build
from raypipe.config.base import Pool, Workers
from raypipe.errors import UserError
from raypipe.planning.assumptions import assumed
from raypipe.planning.jobs import Job, Part, Step
from raypipe.planning.rates import Rates

HERE = "this machine"
_SHARE = 0.001  # of the one that a node with an accelerator type offers, for each actor


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a build runs on.

    Attributes:
        nodes: the types of nodes that do work.
        head: the type that runs the driver and nothing else; None: a node of `nodes` does.
        cores: processors of this machine, where it is the cluster: logical CPUs may be more.
        most: nodes of a type at most; None: as many as the pools can use.
    """

    nodes: Sequence[NodeType]
    head: NodeType | None = None
    cores: int | None = None
    most: int | None = None


def this_machine(config: Build) -> Cluster:
    """The machine the plan is made on, with as many logical CPUs as the configuration says.

    Raises:
        UserError: where the configuration asks for GPUs: those of other machines are meant.
    """
    cores = os.cpu_count() or 1
    logical = config.ray.num_cpus or cores
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    node = NodeType(HERE, {"CPU": float(logical), "memory": float(memory)})
    return Cluster(nodes=[node], cores=cores)


def of_nodes(nodes: Sequence[NodeType], most: int | None = None) -> Cluster:
    """The cluster of a cluster file; a node type without CPUs is the head.

    Raises:
        UserError: where no node type has CPUs.
    """
    working = [node for node in nodes if node.resources.get("CPU", 0) > 0]
    if not working:
        raise UserError("plan: no node type of the cluster file has CPUs to work with")
    idle = [node for node in nodes if node not in working]
    return Cluster(nodes=working, head=idle[0] if idle else None, most=most)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a pool lands.

    Attributes:
        node: type of its nodes.
        actors, nodes: how many.
        accelerator: type of its GPU, None where it computes on cores.
    """

    node: NodeType
    actors: int
    nodes: int
    accelerator: str | None


def place(pool: Pool | Workers | None, cluster: Cluster, where: str) -> Place:
    """The node type, and how many actors on how many nodes.

    Nodes with a GPU are left to those who need one, where others will do.

    Args:
        pool: None: a task of one core.
        where: field of the configuration, for the error.

    Raises:
        UserError: where no node has what one actor reserves.
    """
    need, wanted = _reserved(pool)
    fitting = [node for node in cluster.nodes if node.holds(need)]
    if not fitting:
        raise UserError(f"{where}: no node has what one actor reserves")
    if not need.get("GPU"):
        fitting.sort(key=lambda node: node.resources.get("GPU", 0))  # stable: else in their order
    node = fitting[0]
    each = min(
        (
            math.floor(node.resources[name] / amount + 1e-9)
            for name, amount in need.items()
            if not name.startswith(ACCELERATOR)
        ),
        default=wanted,
    )
    nodes = math.ceil(wanted / each)
    if cluster.most is not None:
        nodes = min(nodes, cluster.most)
    if cluster.cores is not None:
        nodes = 1
    accelerator = None
    if need.get("GPU"):
        types = [name for name in node.resources if name.startswith(ACCELERATOR)]
        accelerator = types[0].removeprefix(ACCELERATOR) if types else "GPU"
    return Place(node=node, actors=min(wanted, nodes * each), nodes=nodes, accelerator=accelerator)


def _reserved(pool: Pool | Workers | None) -> tuple[dict[str, float], int]:
    """What one actor reserves, and how many there are at most."""
    if pool is None:
        return {"CPU": 1.0}, 1
    if isinstance(pool, Workers):
        need = {"CPU": pool.cpus_per_worker, "GPU": float(pool.use_gpu)}
        count = pool.num_workers
    else:
        need = {"CPU": pool.num_cpus, "GPU": pool.num_gpus, "memory": float(pool.memory or 0)}
        count = max(pool.min, pool.max)
    if pool.accelerator_type:
        need[ACCELERATOR + pool.accelerator_type] = _SHARE
    return {name: amount for name, amount in need.items() if amount}, count


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """What a step takes.

    Attributes:
        seconds: of its pool, for all its images.
        measured: whether its rate was measured.
    """

    step: Step
    place: Place
    seconds: float
    measured: bool


@dataclass(frozen=True, kw_only=True)
class JobTime:
    """What a job takes.

    Attributes:
        seconds: in all.
        work: of these, without starting and ending.
        node_hours: node type → hours, all nodes of it together.
        slowest: the step that takes longest; None for a job without one.
        measured: whether all rates were.
    """

    job: Job
    seconds: float
    work: float
    node_hours: dict[str, float]
    slowest: StepTime | None
    measured: bool
    steps: tuple[StepTime, ...] = field(default=(), repr=False)


def primitives(job: Job, rates: Rates) -> float:
    """Seconds that the parts of a job are assumed to take beside their work."""
    return sum(part.times * rates.overhead(part.kind) for part in job.parts)


def step_time(step: Step, cluster: Cluster, rates: Rates) -> StepTime:
    """A step on its pool."""
    found = place(step.pool, cluster, step.field or step.name)
    need, _ = _reserved(step.pool)
    cores = need.get("CPU", 1.0)
    if cluster.cores is not None:
        cores = min(cores, cluster.cores)
    each, measured = rates.seconds(
        step.name, step.operations, accelerator=found.accelerator, cores=cores
    )
    if found.accelerator and not measured:
        each /= min(1.0, need["GPU"])
    seconds = step.images * each / found.actors
    if cluster.cores is not None and not measured:
        # More actors than cores take turns.
        seconds *= max(1.0, found.actors * max(cores, 1) / cluster.cores)
    return StepTime(step=step, place=found, seconds=seconds, measured=measured)


def part_seconds(part: Part, times: Sequence[StepTime], cluster: Cluster) -> float:
    """Seconds of the work of a part: its slowest step, or what the cores need for all of them."""
    longest = max((time.seconds for time in times), default=0.0)
    if cluster.cores is not None:
        busy = sum(
            time.seconds * min(time.place.actors, cluster.cores) / cluster.cores
            for time in times
            if time.place.accelerator is None
        )
        longest = max(longest, busy)
    return max(longest, part.seconds)


def job_time(job: Job, cluster: Cluster, rates: Rates, warm: set[str]) -> JobTime:
    """A job on a cluster.

    Args:
        warm: node types that are up; those that the job uses are there afterwards.
    """
    work, hours, used = 0.0, dict.fromkeys((node.name for node in cluster.nodes), 0.0), set[str]()
    beside = primitives(job, rates)
    known = rates.overheads.get(job.name)
    if known is not None and known["primitives"]:
        beside *= known["seconds"] / known["primitives"]
    share = beside / max(len(job.parts), 1)
    steps: list[StepTime] = []
    for part in job.parts:
        times = [step_time(step, cluster, rates) for step in part.steps]
        seconds = part_seconds(part, times, cluster)
        work += seconds
        steps += times
        if part.kind in ("local", "start"):
            continue
        nodes: dict[str, int] = {}
        for found in [time.place for time in times] or [place(None, cluster, job.name)]:
            nodes[found.node.name] = max(nodes.get(found.node.name, 0), found.nodes)
        used |= nodes.keys()
        for name, count in nodes.items():
            hours[name] += count * (seconds + share) / 3600
    if cluster.cores is None:
        beside += assumed("node start") * bool(used - warm)
        warm.clear()
        warm |= used
    slowest = max(steps, key=lambda time: time.seconds, default=None)
    return JobTime(
        job=job,
        seconds=work + beside,
        work=work,
        node_hours=hours,
        slowest=slowest,
        measured=bool(steps) and all(time.measured for time in steps),
        steps=tuple(steps),
    )


def build_times(jobs: Sequence[Job], cluster: Cluster, rates: Rates) -> list[JobTime]:
    """All jobs, one after the other."""
    warm: set[str] = set()
    return [job_time(job, cluster, rates, warm) for job in jobs]
