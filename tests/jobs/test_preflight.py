"""Every configuration passes the preflight on what every cluster file may grow to."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from jobs.cluster import growth, required
from jobs.plan import needs
from jobs.trainer import pool_of
from raypipe.config import Build, load

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
FILES = ["cluster.yaml", "deploy/gcp.yaml", "deploy/kuberay.yaml"]


def totals(file: str) -> dict[str, float]:
    """What a cluster of a cluster file may grow to, by Ray's names of resources."""
    first, *_ = yaml.safe_load_all((ROOT / file).read_text())
    if first.get("kind") == "RayCluster":
        first["metadata"]["namespace"] = "default"
        first = _derive_autoscaling_config_from_ray_cr(first)
    return growth(first)


def short(config: Build, file: str) -> dict[str, list[str]]:
    """Stages, each with the resources of which the cluster cannot have enough."""
    have = totals(file)
    need = needs(config)
    for name in ("cemiface", "generator", "diffusion"):
        need[name] = required([pool_of(getattr(config, name))])
    lacking = {
        stage: sorted(name for name, amount in of_stage.items() if amount > have.get(name, 0))
        for stage, of_stage in need.items()
    }
    return {stage: names for stage, names in lacking.items() if names}


def adapted(path: Path, file: str, *overrides: str) -> Build:
    """A configuration with what a user of a cluster file sets: Google Cloud has no L40S."""
    config = load(str(path), list(overrides))
    if file == "deploy/gcp.yaml" and config.seeds and config.seeds.pool.accelerator_type:
        return load(str(path), [*overrides, "seeds.pool.accelerator_type=A100"])
    return config


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_smallest_pools_of_every_stage_fit_together(path: Path, file: str) -> None:
    assert short(adapted(path, file), file) == {}


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("override", "lacking"),
    [
        ("seeds.pool.min=33", {"seed": ["GPU"]}),
        ("expand.pool.min=33", {"expand": ["GPU"]}),
        ("screen.pool.min=420", {"screen": ["CPU", "memory"]}),
        ("train.num_workers=33", {"train": ["GPU"]}),
        ("evaluate.pool.accelerator_type=B200", {"evaluate": ["accelerator_type:B200"]}),
    ],
)
def test_what_does_not_fit_is_named(
    override: str, lacking: dict[str, list[str]], file: str
) -> None:
    assert short(adapted(ROOT / "configs/hgf-10k.yaml", file, override), file) == lacking
