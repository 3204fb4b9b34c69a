"""Dollars, by hand; disks as the cluster files state them."""

from pathlib import Path

import pytest

from raypipe.cluster_files import NodeType
from raypipe.config.plan import PlanConfig
from raypipe.planning.bill import bill, disk_sizes

ROOT = Path(__file__).parents[3]
CPU = NodeType("cpu", {"CPU": 16.0})
H100 = NodeType("h100", {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0})
NODES = {"cpu": CPU, "h100": H100}


def billed(prices, months=1.0, disks=None):
    config = PlanConfig(prices=prices, months=months)
    return bill(NODES, {"cpu": 10.0, "h100": 2.0}, disks or {}, 500e9, config)


def test_a_price_is_of_a_node_or_of_one_gpu():
    found = billed({"nodes": {"cpu": 0.8, "H100": 3.0}})
    assert found.machines == {"cpu": 8.0, "h100": 2 * 8 * 3.0}
    assert found.total == 56
    own = billed({"nodes": {"cpu": 0.8, "h100": 20.0, "H100": 3.0}})
    assert own.machines["h100"] == 40  # the node's own price comes first


def test_without_a_price_there_is_no_total():
    found = billed({"nodes": {"cpu": 0.8}, "storage": 0.02})
    assert found.missing == ["h100"] and found.total is None
    assert billed({}).missing == ["cpu", "h100"]


def test_storage_is_paid_by_gigabyte_and_month():
    prices = {"nodes": {"cpu": 1, "h100": 1}, "storage": 0.02, "disk": 0.073}
    found = billed(prices, months=3, disks={"cpu": 200.0, "h100": 700.0})
    assert found.bucket == pytest.approx(500 * 3 * 0.02)
    assert found.disks == pytest.approx((10 * 200 + 2 * 700) / 730 * 0.073)
    assert found.total == pytest.approx(12 + found.bucket + found.disks)


def test_disks_of_the_cluster_files():
    assert disk_sizes(str(ROOT / "cluster.yaml"))["gpu_h100"] == 700
    assert disk_sizes(str(ROOT / "deploy/gcp.yaml"))["cpu"] == 200
    assert disk_sizes(str(ROOT / "deploy/kuberay.yaml")) == {}
