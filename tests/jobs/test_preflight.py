"""Every configuration passes the preflight on what every cluster file may grow to."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from jobs.cluster import growth, required
from jobs.feed import READER_CPUS
from jobs.trainer import pool_of
from raypipe.config import Build, load
from raypipe.config.base import Pool

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


def stages(config: Build) -> dict[str, list[Pool]]:
    """The pools of every stage, as its job hands them to `preflight`."""
    parts: list[tuple[str, Any]] = [
        (name, getattr(config, name))
        for name in ("ingest", "embed", "clean", "screen", "assemble", "evaluate")
    ]
    parts += [(name, getattr(config, name)) for name in ("judge", "vectors", "expand")]
    found = {name: [part.pool] for name, part in parts if part is not None}
    if config.seeds:
        passes = 2 if config.seeds.diffusion.second_pass else 1
        found["seed"] = passes * [config.seeds.pool, config.seeds.reference_pool]
    workers = config.train.min_workers or config.train.num_workers
    reading = Pool(min=workers, max=workers, num_cpus=READER_CPUS)
    found["train"] = [pool_of(config.train).model_copy(update={"min": workers}), reading]
    for name in ("cemiface", "generator", "diffusion"):
        found[name] = [pool_of(getattr(config, name))]
    return found


def short(config: Build, file: str) -> dict[str, list[str]]:
    """Stages, each with the resources of which the cluster cannot have enough."""
    have = totals(file)
    lacking = {
        stage: sorted(n for n, amount in required(pools).items() if amount > have.get(n, 0))
        for stage, pools in stages(config).items()
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
