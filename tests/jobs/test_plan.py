"""`raypipe plan`, as a person sees it, and plan.json of a build."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from jobs.plan import too_small, write
from raypipe.config import load

ROOT = Path(__file__).parents[2]
DEMO, BEST = (str(ROOT / "configs" / name) for name in ("demo.yaml", "best.yaml"))
CLUSTER = str(ROOT / "cluster.yaml")
SIZES = [
    *("--set", "plan.sources.base={identities: 10000, images: 500000}"),
    *("--set", "plan.galleries.webface4m={identities: 50000, images: 1022444}"),
    *("--set", "plan.galleries.casia={identities: 10572, images: 490623}"),
    *("--set", "plan.galleries.lfw={identities: 5749, images: 13233}"),
]


@pytest.fixture
def raypipe(monkeypatch):
    monkeypatch.setattr("jobs.progress.console.width", 160)  # so that no row wraps
    runner = CliRunner()

    def run(*arguments):
        result = runner.invoke(app, ["plan", *arguments])
        return result.exit_code, result.output

    return run


def rows(output, first):
    """The cells of the lines that begin with a word."""
    return [line.split() for line in output.splitlines() if line.split()[:1] == [first]]


def test_the_demo_on_this_machine(raypipe, tmp_path):
    code, output = raypipe(DEMO, "--set", f"workspace={tmp_path}")
    assert code == 0, output
    (embed,) = (row for row in rows(output, "embed") if "303" in row)
    assert "3,618" in embed
    assert "rates: assumed" in output and "nothing leaves the machine" in output
    assert list(tmp_path.iterdir()) == []  # nothing is run, nothing is written


def test_a_real_configuration_is_planned_offline_with_prices(raypipe):
    prices = "plan.prices={nodes: {cpu: 1, L4: 1, L40S: 2, H100: 3, head: 0.5}, storage: 0.02}"
    code, output = raypipe(BEST, *SIZES, "--cluster", CLUSTER, "--set", prices)
    assert code == 0, output
    assert "with fewer nodes" in output and "bottleneck: " in output
    (h100,) = (row for row in rows(output, "gpu_h100"))
    hours, gpu_hours, dollars = map(float, h100[1:])
    assert gpu_hours == pytest.approx(8 * hours, abs=0.05)
    assert dollars == pytest.approx(3 * gpu_hours, abs=0.05)
    assert "vision model" in output and "26.07" in output
    assert "the workspace cannot be reached" in output


def test_a_missing_price_is_named(raypipe):
    code, output = raypipe(BEST, *SIZES, "--cluster", CLUSTER, "--nodes", "2")
    assert code == 0 and "no price of cpu, gpu_l4, gpu_l40s, gpu_h100, head" in output


def test_sizes_that_nobody_knows_are_asked_for(raypipe):
    code, output = raypipe(BEST, "--cluster", CLUSTER, "--set", "plan.sources={}")
    assert code == 2 and "plan.sources.base.identities" in output
    one = "plan.galleries={webface4m: {identities: 50000, images: 1022444}}"
    code, output = raypipe(BEST, "--cluster", CLUSTER, "--set", one)
    assert code == 2 and "plan.galleries.casia.identities" in output


def test_a_cluster_without_the_nodes_is_refused(raypipe):
    code, output = raypipe(
        BEST, *SIZES, "--cluster", CLUSTER, "--set", "embed.pool.accelerator_type=A100"
    )
    assert code == 2 and "embed.pool: no node has" in output


def test_gpus_need_a_cluster_file(raypipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, output = raypipe(BEST, *SIZES)
    assert code == 2 and "--cluster cluster.yaml" in output


def test_all_assumptions_can_be_seen(raypipe, tmp_path):
    _, output = raypipe(DEMO, "--set", f"workspace={tmp_path}", "--assumptions")
    assert "seed passed: 0.6: share of drawn pictures" in output


def test_pools_beyond_the_whole_cluster_are_warned_of(tmp_path):
    config = load(DEMO, ["embed.pool.min=40"])
    (line,) = too_small(config, small_cluster(tmp_path, most=2))
    assert line.startswith("embed: the smallest pools") and "42 CPU needed, 32 there" in line
    assert too_small(load(DEMO), CLUSTER) == []
    assert too_small(load(DEMO), str(ROOT / "deploy" / "kuberay.yaml")) == []


def small_cluster(tmp_path, most):
    kinds = {"cpu": {"resources": {"CPU": 16, "memory": 2**36}, "max_workers": most}}
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({"available_node_types": kinds, "max_workers": 8}))
    return str(path)


def test_a_build_notes_its_plan_once(tmp_path):
    config = load(DEMO, [f"workspace={tmp_path}"])
    write(config)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["jobs"]["ingest"]["images"] == 3618
    assert found["seconds"] == pytest.approx(
        sum(job["seconds"] for job in found["jobs"].values()), abs=1
    )
    before = (tmp_path / "plan.json").stat().st_mtime_ns
    write(load(DEMO, [f"workspace={tmp_path}", "sample.identities=40"]))
    assert (tmp_path / "plan.json").stat().st_mtime_ns == before


def test_a_build_goes_on_without_a_plan(tmp_path, capsys):
    sources = f"ingest.sources=[{{name: base, path: {tmp_path}/nowhere}}]"
    write(load(DEMO, [f"workspace={tmp_path}/work", "sample=null", sources]))
    assert "no plan yet: " in capsys.readouterr().err
    assert not (tmp_path / "work" / "plan.json").exists()
