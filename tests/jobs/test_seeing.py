"""What a person sees of a run: metrics, the dashboard made of them, and logs by identity."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BOARD = json.loads((ROOT / "deploy" / "grafana.json").read_text())
# What only a GPU, or the autoscaler of a cluster, sends.
ELSEWHERE = {
    "ray_node_gpus_utilization",
    "ray_node_gram_used",
    "autoscaler_active_nodes",
    "autoscaler_pending_nodes",
}


def expressions() -> list[str]:
    return [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]


def asked() -> set[str]:
    return set(re.findall(r"\b(?:ray|autoscaler)_\w+", " ".join(expressions())))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict, Path]]:
    """What the script prints, and the folder with the logs of its Ray."""
    work = tmp_path_factory.mktemp("seen")
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        done = subprocess.run(
            [sys.executable, "tests/jobs/seen_stage.py", str(work)],
            cwd=ROOT,
            env={**os.environ, "RAY_TMPDIR": folder, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        yield json.loads(done.stdout.splitlines()[-1]), Path(folder)


def sample(text: str, name: str, **labels: str) -> float:
    """The sum of a metric over all processes."""
    found = [
        float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if line.startswith(f"{name}{{")
        and all(f'{key}="{value}"' in line for key, value in labels.items())
    ]
    assert found, name
    return sum(found)


@pytest.mark.slow
def test_metrics_agree_with_the_manifest(seen: tuple[dict, Path]) -> None:
    told, _ = seen
    counts, text = told["counts"], told["metrics"]
    step = {"stage": "embed", "step": "adds"}
    assert sample(text, "ray_raypipe_expected", stage="embed") == 20
    assert sample(text, "ray_raypipe_rows_total", **step) == 20
    assert sample(text, "ray_raypipe_images_total", **step) == counts["images"]["total"] == 39
    assert sample(text, "ray_raypipe_made_total", **step) == counts["images"]["made"] == 19
    assert sample(text, "ray_raypipe_rejected_identities_total", **step) == 1
    assert sample(text, "ray_raypipe_rejected_images_total", **step) == 19
    assert sample(text, "ray_raypipe_rejected_total", reason="embed:failed", **step) == 1
    assert sample(text, "ray_raypipe_compute_seconds_total", **step) > 0
    assert sample(text, "ray_raypipe_train_loss") == 1.5


@pytest.mark.slow
def test_the_dashboard_asks_for_what_is_sent(seen: tuple[dict, Path]) -> None:
    told, _ = seen
    sent = set(re.findall(r"^(\w+)\{", told["metrics"], re.MULTILINE))
    assert asked() - sent == ELSEWHERE


@pytest.mark.slow
def test_logs_name_identities(seen: tuple[dict, Path]) -> None:
    _, folder = seen
    lines = [
        json.loads(line)
        for path in folder.glob("ray/session_2*/logs/worker-*.err")
        for line in path.read_text().splitlines()
        if line.startswith("{")
    ]
    named = [line for line in lines if "base/007" in line.get("identity_ids", [])]
    (rejected,) = [line for line in named if line["message"] == "row rejected"]
    assert rejected["reason"] == "embed:failed" and "no good" in rejected["error"]
    assert rejected["raypipe_job"] == "embed" and rejected["step"] == "adds"
    assert rejected["node_id"] and rejected["actor_id"]
    batches = [line for line in lines if line["message"] == "batch"]
    assert sorted(name for line in batches for name in line["identity_ids"]) == [
        f"base/{number:03d}" for number in range(20)
    ]


def test_the_dashboard_is_whole() -> None:
    panels = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    assert all(panel["targets"] and panel["description"] for panel in panels)
    names = {variable["name"] for variable in BOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(panels)))
    assert used - {"__rate_interval"} == names
    for text in expressions():
        assert text.count("(") == text.count(")") and text.count("{") == text.count("}"), text
