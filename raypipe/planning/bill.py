"""Dollars for machines, disks and the bucket, with the prices that the configuration states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from raypipe import storage
from raypipe.cluster_files import ACCELERATOR, NodeType
from raypipe.config.plan import PlanConfig, PlanPricesConfig

HOURS = 730.0  # of a month
# What clouds call the size of a node's disk, in GB: AWS, Google Cloud.
_DISKS = {"VolumeSize", "diskSizeGb"}


@dataclass(frozen=True, kw_only=True)
class Bill:
    """Dollars; None where a price is missing.

    Attributes:
        machines: node type → dollars for its hours.
        bucket: for what the jobs leave, as long as it is kept.
        disks: of the nodes, while they run.
        missing: node types without a price.
    """

    machines: dict[str, float]
    bucket: float | None
    disks: float | None
    missing: list[str]

    @property
    def total(self) -> float | None:
        """Of all that has a price; None where machines run that have none."""
        if self.missing:
            return None
        return sum(self.machines.values()) + (self.bucket or 0.0) + (self.disks or 0.0)


def price(node: NodeType, prices: PlanPricesConfig) -> float | None:
    """Dollars an hour of one node: by its name, else by its accelerator and its number of GPUs."""
    if node.name in prices.nodes:
        return prices.nodes[node.name]
    for name in node.resources:
        accelerator = name.removeprefix(ACCELERATOR)
        if name.startswith(ACCELERATOR) and accelerator in prices.nodes:
            return prices.nodes[accelerator] * node.resources.get("GPU", 1)
    return None


def bill(
    nodes: Mapping[str, NodeType],
    hours: Mapping[str, float],
    disks: Mapping[str, float],
    kept_bytes: float,
    config: PlanConfig,
) -> Bill:
    """What a build costs.

    Args:
        nodes: by name.
        hours: node type → hours, all nodes of it together.
        disks: node type → GB of one node's disk.
        kept_bytes: that stay in the bucket.
    """
    prices = config.prices
    machines: dict[str, float] = {}
    missing = []
    for name, amount in hours.items():
        if not amount:
            continue
        found = price(nodes[name], prices)
        if found is None:
            missing.append(name)
        else:
            machines[name] = found * amount
    on_disks = sum(disks.get(name, 0.0) * amount / HOURS for name, amount in hours.items())
    return Bill(
        machines=machines,
        bucket=None
        if prices.storage is None
        else kept_bytes / 1e9 * config.months * prices.storage,
        disks=None if prices.disk is None else on_disks * prices.disk,
        missing=missing,
    )


def disk_sizes(path: str) -> dict[str, float]:
    """Node type → GB of a node's disk, as a cluster file of Ray's autoscaler states it."""
    found: dict[str, float] = {}
    for document in yaml.safe_load_all(storage.read_bytes(path)):
        for name, group in (document or {}).get("available_node_types", {}).items():
            found[name] = sum(_sizes(group.get("node_config", {})))
    return found


def _sizes(value: Any) -> list[float]:
    if isinstance(value, list):
        return [size for item in value for size in _sizes(item)]
    if not isinstance(value, dict):
        return []
    own = [float(item) for key, item in value.items() if key in _DISKS]
    return own + [size for item in value.values() for size in _sizes(item)]
