"""Training that begins with fewer workers than wanted, and grows when the cluster does."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from local_cluster import ROOT, local_cluster, wait_for
from raypipe import training
from test_train import IMAGES, configured, expected_orders, make_set, start_driver

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def history(workspace: Path) -> list[dict[str, Any]]:
    """Its epochs up to the newest checkpoint."""
    for path in sorted(workspace.glob("train/checkpoints/run/checkpoint_*/state.pt"), reverse=True):
        try:
            return training.read_state(path.read_bytes())["history"]
        except (FileNotFoundError, RuntimeError):  # half written, or taken away: the next was whole
            continue
    return []


# Ray asks every minute whether more workers fit; here every five seconds, to save the minute.
OFTEN = (
    "from functools import partial; from ray import train;"
    "train.ScalingConfig = partial(train.ScalingConfig, elastic_resize_monitor_interval_s=5.0);"
)


def test_a_node_that_comes_later_gets_a_worker(tmp_path: Path) -> None:
    make_set(tmp_path)
    config = configured(
        tmp_path, num_workers=2, min_workers=1, cpus_per_worker=4, micro_batch=8,
        epochs=100, milestones=[], max_failures=0,
    )  # fmt: skip
    log = tmp_path / "driver.log"
    with local_cluster() as cluster, log.open("wb") as stream:
        cluster.add(1, cpus=7)
        driver = start_driver(
            config, cluster.environment, OFTEN, cwd=ROOT, stdout=stream, stderr=stream
        )

        def workers() -> int:
            assert driver.poll() is None, log.read_text()
            epochs = history(tmp_path)
            return epochs[-1]["workers"] if epochs else 0

        try:
            wait_for(lambda: workers() == 1)
            cluster.add(1, cpus=7)
            wait_for(lambda: workers() == 2, 400)
        finally:
            driver.kill()
            driver.wait()
    epochs = history(tmp_path)
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, len(epochs) + 1))
    counts = [epoch["workers"] for epoch in epochs]
    assert all(before <= after for before, after in pairwise(counts))
    assert {epoch["images"] for epoch in epochs} == {IMAGES}
    assert [epoch["order"] for epoch in epochs] == expected_orders(config, 2, len(epochs))
