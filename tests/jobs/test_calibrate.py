"""Measuring: a miniature of a build, through Ray, and the plan that takes what it found."""

import json

import pytest

from jobs import calibrate
from raypipe.config import load
from raypipe.planning.plan import make_plan
from raypipe.planning.timing import this_machine

SMALL = [
    *("sample=null", "judge=null", "vectors=null", "seeds=null", "expand=null"),
    *("assemble.phases=[base]", "assemble.images_per_identity=4", "embed.pool={max: 1}"),
    *("train.width=4", "train.epochs=3", "evaluate.sets=[{name: a, path: nowhere.bin}]"),
    "plan.sources.base={identities: 100, images: 1200}",
    "plan.galleries.orl={identities: 40, images: 372}",
]
STEPS = {"photographs", "generate", "read", "embed", "clean", "mark", "refill", "train", "evaluate"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_miniature_is_measured_and_planned_by(ray_cluster, tmp_path):
    config = load("configs/demo.yaml", [f"workspace={tmp_path}", *SMALL])
    calibrate.run(config)
    found = json.loads((tmp_path / "rates.json").read_text())
    assert found["failed"] == []
    assert set(found["measured"]) == {f"cpu {step}" for step in STEPS}
    assert all(0 < seconds < 60 for seconds in found["measured"].values())
    jobs = ["ingest", "embed", "clean", "screen", "assemble", "train", "evaluate", "report"]
    assert list(found["overheads"]) == sorted(jobs)
    assert sum(part["seconds"] for part in found["overheads"].values()) > 5  # Ray starts actors
    # The miniature is gone, and nothing of the build was made.
    assert [path.name for path in tmp_path.iterdir()] == ["rates.json"]

    plan = make_plan(config, this_machine(config))
    assert plan.rates.where
    times = {time.job.name: time for time in plan.times}
    embed = times["embed"]
    assert embed.measured and times["train"].measured
    images = embed.job.makes["base"].images_kept
    assert embed.work == pytest.approx(images * found["measured"]["cpu embed"])
    assert embed.seconds == pytest.approx(embed.work + found["overheads"]["embed"]["seconds"])
