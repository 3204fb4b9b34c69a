"""Says before a run what it will take: images, bytes, hours of machines, questions, dollars."""

import os
from collections.abc import Set
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from jobs.plan_tables import (
    in_dollars,
    print_basis,
    print_jobs,
    print_machines,
    print_questions,
)
from jobs.progress import console
from raypipe import storage
from raypipe.cluster_files import lacking, offers
from raypipe.config import Build
from raypipe.config.base import Pool, Workers
from raypipe.errors import UserError
from raypipe.planning.assumptions import ASSUMED
from raypipe.planning.bill import disk_sizes
from raypipe.planning.plan import PLAN, Plan, make_plan
from raypipe.planning.timing import Cluster, of_nodes, this_machine
from raypipe.report.words import duration

CLUSTER_FILE = "cluster.yaml"
_NODES = (1, 2, 4, 8, 16)


def run(
    config: Build,
    *,
    cluster_file: str | None = None,
    nodes: int | None = None,
    assumptions: bool = False,
) -> Plan:
    """Prints the plan of a build; returns it.

    Args:
        cluster_file: of the cluster it is to run on; None: cluster.yaml of the working directory
            where the configuration asks for GPUs, else this machine.
        nodes: of a type at most; None: as many as the pools can use.
        assumptions: print all of them, with their reasons.

    Raises:
        UserError: where a set cannot be read and the configuration does not say how large it is,
            or the cluster has no node for a pool.
    """
    if cluster_file is None and _asks_for_gpus(config):
        cluster_file = CLUSTER_FILE
        if not os.path.exists(cluster_file):
            raise UserError(
                "plan: the configuration asks for GPUs; name the cluster it is to run on: "
                "--cluster cluster.yaml"
            )
    if cluster_file is None:
        cluster, disks = this_machine(config), {}
    else:
        found = offers(cluster_file)
        if missing := lacking(config, found):
            raise UserError("; ".join(f"{cluster_file}: {line}" for line in missing))
        cluster, disks = of_nodes(found, nodes), disk_sizes(cluster_file)
    plan = make_plan(config, cluster, disks=disks)
    print_jobs(plan)
    print_machines(plan, config)
    if cluster_file is not None:
        _print_scaling(config, cluster, nodes)
        for warning in too_small(config, cluster_file):
            console.print(f"[bold yellow]warning[/] {escape(warning)}", soft_wrap=True)
    print_questions(config, plan.questions)
    print_basis(plan)
    if assumptions:
        for name, (value, reason) in ASSUMED.items():
            console.print(f"{name}: {value:g}: {reason}", style="dim", soft_wrap=True)
    return plan


def write(config: Build) -> None:
    """Writes `{workspace}/plan.json`, which the report sets beside what it really took, unless it
    is there.

    Takes less than a second: no source is looked through, so there is no plan before the sizes of
    all sets are stated, or counted by a job. Never fails: a build does not depend on its plan.
    """
    path = storage.join(config.workspace, PLAN)
    try:
        if storage.exists(path):
            return
        file = CLUSTER_FILE if _asks_for_gpus(config) else None
        cluster = of_nodes(offers(file)) if file else this_machine(config)
        storage.write_json(path, make_plan(config, cluster, survey=False).to_json())
    except Exception as error:
        console.print(f"no plan yet: {escape(str(error))}", style="dim", soft_wrap=True)


def _asks_for_gpus(config: Build) -> bool:
    return any(
        pool.num_gpus > 0 if isinstance(pool, Pool) else pool.use_gpu
        for pool in _pools(config, {"cemiface", "diffusion", "generator", "estimator"})
    )


def _pools(part: Any, without: Set[str] = frozenset()) -> list[Pool | Workers]:
    """Every pool and training of a part of the configuration."""
    if isinstance(part, Pool):
        return [part]
    found: list[Pool | Workers] = [part] if isinstance(part, Workers) else []
    for name in getattr(type(part), "model_fields", {}):
        if name not in without:
            found += _pools(getattr(part, name))
    return found


def _print_scaling(config: Build, cluster: Cluster, given: int | None) -> None:
    table = Table(
        "nodes of a type at most", "time", "machines in dollars", "bottleneck",
        box=None,
        pad_edge=False,
        title="with fewer nodes", title_justify="left",
    )  # fmt: skip
    for most in _NODES if given is None else (given,):
        limited = Cluster(nodes=cluster.nodes, head=cluster.head, most=most)
        plan = make_plan(config, limited)
        dollars = None if plan.bill.missing else sum(plan.bill.machines.values())
        table.add_row(
            str(most), duration(plan.seconds), in_dollars(dollars), plan.bottleneck.job.name
        )
    console.print(table)


def too_small(config: Build, cluster_file: str) -> list[str]:
    """A line for each stage whose smallest pools and a read do not fit the whole cluster."""
    from jobs.cluster import growth  # imports Ray

    total = growth(_autoscaling(cluster_file))
    found = []
    for job, need in needs(config).items():
        short = [
            f"{amount:g} {name} needed, {total.get(name, 0):g} there"
            for name, amount in need.items()
            if amount > total.get(name, 0)
        ]
        if short:
            found.append(
                f"{job}: the smallest pools and a read do not fit {cluster_file}: "
                f"{'; '.join(short)}; lower min or raise max_workers"
            )
    return found


def needs(config: Build) -> dict[str, dict[str, float]]:
    """The least that every stage of a build needs of a cluster, as `jobs.cluster.required`."""
    from jobs import train  # imports Ray and PyTorch
    from jobs.cluster import required

    pools: dict[str, list[Pool]] = {
        "ingest": [config.ingest.pool] * (1 if config.ingest.aligner is None else 2),
        "embed": [config.embed.pool],
        "clean": [config.clean.pool],
        "screen": [config.screen.pool],
        "assemble": [config.assemble.pool],
        "evaluate": [config.evaluate.pool],
    }
    if config.judge:
        pools["judge"] = [config.judge.pool]
    if config.vectors:
        pools["vectors"] = [config.vectors.pool]
    if config.seeds:
        passes = 2 if config.seeds.diffusion.second_pass else 1
        pools["seed"] = passes * [config.seeds.pool, config.seeds.reference_pool]
    if config.expand:
        pools["expand"] = [config.expand.pool]
    found = {job: required(of_stage) for job, of_stage in pools.items()}
    return found | {"train": required(*train.least(config.train))}


def _autoscaling(cluster_file: str) -> dict[str, Any]:
    """Node types, what they have and how many there may be, as Ray's autoscaler writes it."""
    documents = [d for d in yaml.safe_load_all(storage.read_bytes(cluster_file)) if d]
    for document in documents:
        if "available_node_types" in document:
            kinds = document["available_node_types"]
            most = document.get("max_workers", 0)
            return {"available_node_types": kinds, "max_workers": most}
    spec = next(d["spec"] for d in documents if d.get("kind") == "RayCluster")
    replicas = {
        group["groupName"]: int(group.get("maxReplicas", group.get("replicas", 1)))
        for group in spec["workerGroupSpecs"]
    }
    kinds = {
        node.name: {"resources": node.resources, "max_workers": replicas.get(node.name, 1)}
        for node in offers(cluster_file)
    }
    return {"available_node_types": kinds, "max_workers": sum(replicas.values())}
