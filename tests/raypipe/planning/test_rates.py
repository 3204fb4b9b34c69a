"""Rates: assumed for every step, and measured ones only for what they were measured on."""

import pytest

from raypipe import storage
from raypipe.config import load
from raypipe.errors import UserError
from raypipe.planning.rates import RATES, shipped
from raypipe.planning.rates import load as load_rates
from raypipe.planning.recipes import recipes

DEMO = "configs/demo.yaml"


def measured(root, settings):
    storage.write_json(
        storage.join(str(root), RATES),
        {
            "where": "2 cores, 2026-01-01",
            "measured": {"cpu embed": 0.01, "cpu read": 0.02},
            "overheads": {"embed": {"seconds": 5.0, "primitives": 10.0}},
            "factors": {"crop bytes": 1000.0},
            "settings": settings,
        },
    )


def test_nothing_is_measured_before_it_was(tmp_path):
    rates = load_rates(str(tmp_path), {})
    assert rates == shipped() and rates.where == ""
    assert load_rates(None, {}) == rates


def test_a_measurement_counts_for_what_it_was_made_with(tmp_path):
    now = recipes(load(DEMO))
    measured(tmp_path, now)
    rates = load_rates(str(tmp_path), now)
    assert rates.seconds("embed", 1e9, accelerator=None, cores=1) == (0.01, True)
    assert rates.seconds("embed", 1e9, accelerator="L4", cores=1)[1] is False
    assert rates.where == "2 cores, 2026-01-01"
    other = recipes(load(DEMO, ["embed.pool.num_cpus=2"]))
    changed = load_rates(str(tmp_path), other)
    assert changed.measured == {"cpu read": 0.02}


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("judge.kind=openai", set()),  # who is asked changes no actor's speed here
        ("seeds.diffusion.steps=7", {"diffuse"}),
        ("expand.mix=[]", {"expand"}),
        ("train.depth='18'", {"train", "evaluate"}),
        ("train.epochs=9", set()),
    ],
)
def test_what_a_step_depends_on(override, steps):
    before, after = recipes(load(DEMO)), recipes(load(DEMO, [override]))
    assert {name for name in before if before[name] != after[name]} == steps


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / RATES).write_text("{")
    with pytest.raises(UserError, match=r"rates\.json: not valid JSON"):
        load_rates(str(tmp_path), {})
