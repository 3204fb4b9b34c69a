"""The configurations for real runs do what their headers say."""

import re
from pathlib import Path

import pytest
import yaml

from raypipe.config import load
from raypipe.judging.planning import plan
from raypipe.licences import NOT_STATED, weights_use

ROOT = Path(__file__).parents[1]
REAL = ["hgf-10k", "hgf-100k", "vec2face-300k", "cemiface-10k", "best"]
# What the header says that is trained on; what else differs from it.
RECIPES = {
    "hgf-10k": ("datacv", {}),
    "hgf-100k": ("datacv", {}),
    "vec2face-300k": ("hsface10k", {"micro_batch": 64}),
    "cemiface-10k": ("cemiface", {}),
}
# Of a training that is the same on other machines.
SPEED = {
    *("set", "num_workers", "cpus_per_worker", "use_gpu", "accelerator_type"),
    *("checkpoint_steps",),
}


def path(name):
    return str(ROOT / "configs" / f"{name}.yaml")


def header(name):
    """The comment at the beginning, as one line."""
    lines = (ROOT / "configs" / f"{name}.yaml").read_text().partition("\n\nworkspace")[0]
    return " ".join(line.removeprefix("#").strip() for line in lines.splitlines())


def number(text):
    return int(text.replace(",", ""))


def identities(config):
    """Identities of the training set, if none is lost that nobody stands in for."""
    (base,) = config.ingest.sources
    thousands = re.search(r"hsface(\d+)k", base.path)
    made = {
        "base": 1000 * int(thousands[1]),
        "vec": config.vectors.count if config.vectors else 0,
        "seed": config.seeds.number if config.seeds else 0,
    }
    phases = config.assemble.phases
    return sum(made[source] for source in phases if source != config.assemble.replacement)


@pytest.mark.parametrize("name", REAL)
def test_the_header_states_the_size_of_the_set_and_of_the_training(name):
    config = load(path(name))
    said = re.search(
        r"([\d,]+) identities × (\d+) images = ([\d,]+) images; (\d+) epochs", header(name)
    )
    people, each, images, epochs = map(number, said.groups())
    assert people == identities(config)
    assert each == config.assemble.images_per_identity == config.expand.images
    assert images == people * each
    assert epochs == config.train.epochs


@pytest.mark.parametrize("name", REAL)
def test_the_header_states_what_the_vision_model_costs(name):
    judge = load(path(name)).judge
    said = re.search(r"at most ([\d,]+) calls, (\d+) dollars", header(name))
    if judge is None:
        assert said is None
        return
    base = re.search(r"hsface(\d+)k", load(path(name)).ingest.sources[0].path)[1]
    like = [f"sample={{identities: {base}000, images: 50}}", "workspace=/nowhere"]
    found = plan(load(path(name), like))
    price = found.batch_dollars if judge.mode == "batch" else found.dollars
    calls, dollars = map(number, said.groups())
    assert calls == found.calls
    assert dollars - 1 < price < dollars + 1
    assert price < judge.budget


@pytest.mark.parametrize("name", REAL)
def test_no_job_refuses_the_parts_together(name):
    config = load(path(name))
    made = {"vec": config.vectors, "seed": config.seeds}
    sources = [item.name for item in config.ingest.sources]
    sources += [source for source, part in made.items() if part]
    assert sorted(sources) == sorted(config.assemble.phases)
    assert set(config.expand.sources) <= set(sources) - {"base"}
    if config.judge and config.judge.ask == "unsure":
        assert config.clean.rule == "calibrated"


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_recognizer_is_trained_by_the_recipe_that_is_named(name):
    recipe, other = RECIPES[name]
    assert f"configs/recipes/{recipe}.yaml" in Path(path(name)).read_text()
    ours = load(path(name)).train.model_dump(exclude=SPEED)
    published = load(str(ROOT / "configs" / "recipes" / f"{recipe}.yaml")).train
    assert ours == published.model_dump(exclude=SPEED) | other


@pytest.mark.parametrize(
    ("name", "row"), [("vec2face-300k", "HSFace300K"), ("cemiface-10k", "CemiFace")]
)
def test_published_accuracies_are_those_of_the_report(name, row):
    rows = yaml.safe_load((ROOT / "raypipe" / "published.yaml").read_text())["rows"]
    (published,) = (item for item in rows if item["name"] == row)
    said = re.search(r"Published: (LFW [^%]*) %", header(name))[1]
    found = {key: float(value) for key, value in re.findall(r"([\w-]+) ([\d.]+)", said)}
    for key, value in (("AgeDB-30", found.pop("AgeDB")), ("average", found.pop("mean"))):
        found[key] = value
    assert found == {key: published[key] for key in found} and len(found) == 6


@pytest.mark.parametrize("name", REAL)
def test_the_licence_of_every_weight_file_is_known(name):
    config = load(path(name))
    files = [(config.embedder.weights, config.embedder.licence)]
    files += [(painter.weights, painter.licence) for painter in config.expand.painters]
    if config.seeds:
        files += [(config.seeds.diffusion.model, config.seeds.diffusion.licence)]
        files += [(config.seeds.aligner.weights, config.seeds.aligner.licence)]
    for file, stated in files:
        use = weights_use(file.rpartition("/")[2], "", "", stated)
        assert use.licence != NOT_STATED, file
        # Of SDXL alone use is not limited to research, and every header says so.
        assert use.restricted == ("stable-diffusion" not in file), file
    assert "for non-commercial research only" in header(name)


def test_the_sets_of_the_challenge_keep_to_its_scales():
    for name, most in (("hgf-10k", 500_000), ("hgf-100k", 5_000_000)):
        config = load(path(name))
        assert identities(config) * config.assemble.images_per_identity <= most
