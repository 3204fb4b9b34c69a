"""What the nodes of a cluster file offer, and what a configuration asks for beyond it.

Works on files alone, without Ray and without a cloud: on cluster files of Ray's autoscaler and on
KubeRay's manifests. Whether all pools fit together, the preflight of a job says.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel

from raypipe import storage
from raypipe.config import Build
from raypipe.config.base import Pool, Workers
from raypipe.errors import UserError

ACCELERATOR = "accelerator_type:"
# An actor that names a type takes this much of the one that every node with the type has.
_SHARE = 0.001
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class NodeType:
    """A kind of node that a cluster has or may start.

    Attributes:
        name: what the cluster file calls it.
        resources: what one such node has, by Ray's names: CPU, GPU, memory in bytes,
            accelerator_type:L4.
    """

    name: str
    resources: dict[str, float]

    def holds(self, need: Mapping[str, float]) -> bool:
        """Whether one node has all of it."""
        return all(self.resources.get(name, 0) >= amount for name, amount in need.items())


def offers(path: str) -> list[NodeType]:
    """The node types of a cluster file, in its order.

    Args:
        path: a cluster file of Ray's autoscaler, or a manifest with one RayCluster of KubeRay.

    Raises:
        UserError: where the file is missing, not YAML, describes no nodes or states an amount that
            is none.
    """
    try:
        documents = list(yaml.safe_load_all(storage.read_bytes(path)))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    try:
        groups = next(filter(None, map(_groups, documents)), None)
        if groups is None:
            raise UserError(
                f"{path}: describes no cluster; expected available_node_types of Ray's autoscaler "
                "or a RayCluster of KubeRay"
            )
        return [
            NodeType(
                name,
                {
                    resource: _amount(amount, f"{path}: {name}.resources.{resource}")
                    for resource, amount in group.get("resources", {}).items()
                },
            )
            for name, group in groups.items()
        ]
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: node types are not written as Ray or KubeRay wants them ({error})"
        ) from error


def _groups(document: Any) -> dict[str, dict[str, Any]] | None:
    """Descriptions of node types by name; none where a document describes no cluster."""
    if not isinstance(document, dict):
        return None
    if "available_node_types" in document:
        return {
            name: group
            for name, group in document["available_node_types"].items()
            if name == document.get("head_node_type") or group.get("max_workers") != 0
        }
    if document.get("kind") == "RayCluster":
        spec = document["spec"]
        workers = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        return {"headgroup": spec["headGroupSpec"], **workers}
    return None


def _amount(value: Any, where: str) -> float:
    """A number, or a quantity as Kubernetes writes it: "8", "16Gi"."""
    text = str(value)
    number, unit = (text[:-2], _UNITS[text[-2:]]) if text[-2:] in _UNITS else (text, 1)
    try:
        return float(number) * unit
    except ValueError as error:
        raise UserError(f"{where}: {value!r} is no amount; expected 8 or 16Gi") from error


def lacking(config: Build, node_types: Sequence[NodeType]) -> list[str]:
    """What a configuration asks for on one node that none of the node types has.

    Looks at one actor of every pool and one worker of every training; a job that is left out asks
    for nothing.

    Returns:
        a line for each field whose actor would find no node, with what is offered.
    """
    offered = "; ".join(f"{node.name} has {_listed(node.resources)}" for node in node_types)
    return [
        f"{field}: no node has {_listed(need)} for one actor ({offered})"
        for field, need in _needs(config)
        if not any(node.holds(need) for node in node_types)
    ]


def _needs(part: Any, field: str = "") -> Iterator[tuple[str, dict[str, float]]]:
    """Every pool and every training in a part of the configuration: its name, what one actor of it
    reserves."""
    if isinstance(part, Pool):
        yield field, _reserved(part.num_cpus, part.num_gpus, part.memory, part.accelerator_type)
    elif isinstance(part, Workers):
        yield field, _reserved(part.cpus_per_worker, part.use_gpu, None, part.accelerator_type)
    if isinstance(part, BaseModel):
        for name in type(part).model_fields:
            yield from _needs(getattr(part, name), f"{field}.{name}".lstrip("."))
    elif isinstance(part, (list, tuple)):
        for position, item in enumerate(part):
            yield from _needs(item, f"{field}.{position}")


def _reserved(
    cpus: float, gpus: float, memory: int | None, accelerator_type: str | None
) -> dict[str, float]:
    need = {"CPU": cpus, "GPU": float(gpus), "memory": float(memory or 0)}
    if accelerator_type:
        need[ACCELERATOR + accelerator_type] = _SHARE
    return {name: amount for name, amount in need.items() if amount}


def _listed(resources: Mapping[str, float]) -> str:
    """As a person would write them: "8 CPU, 1 GPU, L4, 19 GiB memory"."""
    named = []
    for name, amount in resources.items():
        if name.startswith(ACCELERATOR):
            named.append(name.removeprefix(ACCELERATOR))
        elif name == "memory":
            named.append(f"{amount / 2**30:,.4g} GiB memory")
        elif name in ("CPU", "GPU") and amount:
            named.append(f"{amount:g} {name}")
    return ", ".join(named) or "nothing"
