"""How nodes learn that they are taken away; jobs/drain.py is tested in tests/jobs."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("file", "cloud"), [("cluster.yaml", "aws"), ("deploy/gcp.yaml", "gcp")])
def test_workers_are_watched_and_the_head_is_not(file: str, cloud: str) -> None:
    config = yaml.safe_load((ROOT / file).read_text())
    stop, start, watch = config["worker_start_ray_commands"]
    assert stop == "ray stop" and "ray start --address=$RAY_HEAD_IP:6379" in start
    assert f"python -m jobs.drain {cloud} $RAY_HEAD_IP:6379" in watch
    assert "head_start_ray_commands" not in config


def test_pods_live_longer_than_ray_drains() -> None:
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

    cluster, _ = yaml.safe_load_all((ROOT / "deploy/kuberay.yaml").read_text())
    for group in cluster["spec"]["workerGroupSpecs"]:
        life = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert life > RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
