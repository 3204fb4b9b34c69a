"""The plan of a build: its jobs, their time, the questions to the vision model, and the bill."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raypipe.cluster_files import NodeType
from raypipe.config import Build
from raypipe.config.sample import FAULTLESS, SampleConfig
from raypipe.judging import planning as judging
from raypipe.planning import rates as rates_
from raypipe.planning.assumptions import assumed
from raypipe.planning.bill import Bill, bill
from raypipe.planning.facts import Facts, reachable
from raypipe.planning.rates import Rates
from raypipe.planning.recipes import recipes
from raypipe.planning.timing import Cluster, JobTime, build_times
from raypipe.planning.walk import walk

PLAN = "plan.json"  # in the workspace
_NOWHERE = "/nonexistent"  # a workspace in which nothing is done


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a build will take.

    Attributes:
        times: of the jobs, in order; each holds its job.
        hours: node type → hours, all nodes of it together, the head's among them.
        gpus: node type → GPUs of one.
        bill: what that costs.
        questions: to the vision model; None where none is asked.
        rates: by which the times were found.
        done: jobs that are finished.
        reached: whether the workspace could be looked into.
    """

    times: list[JobTime]
    hours: dict[str, float]
    gpus: dict[str, float]
    bill: Bill
    questions: judging.Plan | None
    rates: Rates
    done: frozenset[str]
    reached: bool

    @property
    def seconds(self) -> float:
        """From the beginning to the end, finished jobs too."""
        return sum(time.seconds for time in self.times)

    @property
    def bytes(self) -> float:
        """What all jobs leave."""
        return sum(time.job.bytes for time in self.times)

    @property
    def operations(self) -> float:
        """Floating point operations of all networks."""
        return sum(time.job.operations for time in self.times)

    @property
    def bottleneck(self) -> JobTime:
        """The job that takes longest."""
        return max(self.times, key=lambda time: time.seconds)

    def to_json(self) -> dict[str, Any]:
        """What a report sets beside what really was."""
        return {
            "rates": self.rates.where,
            "seconds": round(self.seconds, 1),
            "bytes": round(self.bytes),
            "jobs": {
                time.job.name: {
                    "identities": round(time.job.identities),
                    "images": round(time.job.images),
                    "bytes": round(time.job.bytes),
                    "operations": time.job.operations,
                    "seconds": round(time.seconds, 1),
                    "basis": time.job.basis,
                    "measured": time.measured,
                }
                for time in self.times
            },
            "hours": {name: round(hours, 4) for name, hours in self.hours.items()},
            "dollars": self.bill.total,
        }


def make_plan(
    config: Build,
    cluster: Cluster,
    *,
    disks: Mapping[str, float] | None = None,
    survey: bool = True,
) -> Plan:
    """The plan of a configuration on a cluster. Nothing is run, and no weights are opened.

    Args:
        disks: node type → GB of one node's disk.
        survey: whether sources may be looked through for their sizes, which can take minutes.

    Raises:
        UserError: where a set cannot be read and the configuration does not say how large it is,
            or a pool finds no node.
    """
    reached = reachable(config.workspace)
    found = rates_.load(config.workspace if reached else None, recipes(config))
    facts = Facts(config, found, reached=reached, survey=survey)
    questions = _questions(config, facts)
    jobs = walk(facts, _asked(config, questions))
    times = build_times(jobs, cluster, found)
    hours: dict[str, float] = {}
    for time in times:
        for name, amount in time.node_hours.items():
            hours[name] = hours.get(name, 0.0) + amount
    nodes: dict[str, NodeType] = {node.name: node for node in cluster.nodes}
    if cluster.head is not None:
        nodes[cluster.head.name] = cluster.head
        hours[cluster.head.name] = sum(time.seconds for time in times) / 3600
    return Plan(
        times=times,
        hours=hours,
        gpus={name: node.resources.get("GPU", 0.0) for name, node in nodes.items()},
        bill=bill(nodes, hours, disks or {}, sum(job.bytes for job in jobs), config.plan),
        questions=questions,
        rates=found,
        done=frozenset(facts.manifests),
        reached=reached,
    )


def _asked(config: Build, questions: judging.Plan | None) -> float:
    """Calls that are waited for; of whom clustering is unsure, nobody knows before it ran."""
    if questions is None:
        return 0.0
    share = 1.0
    if config.judge and config.judge.ask == "unsure" and not questions.exact:
        share = assumed("unsure people")
    return share * questions.calls


def _questions(config: Build, facts: Facts) -> judging.Plan | None:
    if config.judge is None or config.judge.kind == "none":
        return None
    if facts.manifests.keys() & {"ingest", "embed", "clean"}:
        return judging.plan(config)
    # The sizes that a plan knows are told as if the set were to be made, so that no source is read.
    sources, basis = facts.sources()
    people = round(sum(group.identities for group in sources.values()))
    images = round(sum(group.images for group in sources.values()) / people)
    made = SampleConfig(identities=max(people, 4), images=max(images, 2), **FAULTLESS)
    estimated = judging.plan(config.model_copy(update={"sample": made, "workspace": _NOWHERE}))
    assert estimated is not None
    return replace(estimated, basis=f"estimated from {basis}")
