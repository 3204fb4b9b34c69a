import importlib
import pkgutil
from pathlib import Path

import pytest
from pydantic import BaseModel

import raypipe.config
from raypipe.config import load, parse
from raypipe.errors import UserError

CONFIGS = sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))
LEAST = {
    "workspace": "w",
    "embedder": {"kind": "dlib"},
    "ingest": {"sources": [{"name": "base", "path": "{workspace}/base"}]},
}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path):
    assert load(str(path)).workspace


def test_every_field_says_what_it_is():
    undocumented = []
    for module in pkgutil.iter_modules(raypipe.config.__path__):
        namespace = vars(importlib.import_module(f"raypipe.config.{module.name}"))
        for model in namespace.values():
            if isinstance(model, type) and issubclass(model, BaseModel):
                assert model.__doc__
                undocumented += [
                    f"{model.__name__}.{name}"
                    for name, field in model.model_fields.items()
                    if not field.description and not _is_part(field.annotation)
                ]
    assert not undocumented


def _is_part(annotation):
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_the_workspace_stands_in_for_its_name():
    assert parse(dict(LEAST), "x").ingest.sources[0].path == "w/base"
    moved = parse(dict(LEAST), "x", ["workspace=s3://bucket/run/"])
    assert moved.ingest.sources[0].path == "s3://bucket/run/base"


def test_overrides_are_yaml():
    config = parse(dict(LEAST), "x", ["clean.min_images=12", "embed.pool={min: 2, max: 3}"])
    assert config.clean.min_images == 12 and config.embed.pool.max == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clean.min_image=12", "unknown key 'clean.min_image'; did you mean 'min_images'"),
        ("embed.pool.gpus=1", "unknown key 'embed.pool.gpus'; did you mean 'num_gpus'"),
        ("zebra=1", "unknown key 'zebra'; known keys: workspace, seed"),
        ("clean.min_images=many", "clean.min_images: .*integer.*'many'"),
        ("ingest={sources: [{name: a}]}", "the key 'ingest.sources.0.path' is required"),
        ("clean", "expected KEY=VALUE"),
        ("workspace.x=1", "'workspace' holds a value"),
        ("embedder={kind: iresnet}", "needs weights"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(override, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(dict(LEAST), "demo.yaml", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1", "not valid YAML"), ("- 1", "expected keys and values"), (None, "no such file")],
)
def test_a_file_that_is_no_configuration(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"c.yaml: .*{message}"):
        load(str(path))
