"""Licences: stated ones count, known ones are known, and what nobody stated is visible."""

import hashlib

import pytest

from raypipe.config import load, parse
from raypipe.config.diffusion import DiffusionConfig
from raypipe.diffusion_files import digest
from raypipe.licences import NOT_STATED, consequences, uses, weights_use
from raypipe.manifest import Manifest, Origin
from raypipe.models.loading import shipped

CONFIG = {
    "workspace": "w",
    "embedder": {"kind": "insightface", "weights": "x/w600k_r50.onnx"},
    "ingest": {
        "sources": [
            {"name": "base", "path": "a", "licence": "CC-BY-4.0"},
            {"name": "new", "path": "b"},
        ],
        "aligner": {"kind": "insightface", "weights": "x/det.onnx", "licence": "bought"},
    },
    "screen": {"galleries": [{"name": "lfw", "path": "c", "licence": "research only"}]},
}


def manifest(**models: str) -> Manifest:
    names = {name.replace("__", "."): digest for name, digest in models.items()}
    origin = Origin(job="x", settings={}, inputs={}, models=names)
    return Manifest(origin=origin, counts={}, content_digest="")


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("dlib_resnet_v1", "CC0-1.0"),
        ("dcgan_digiface", "MIT"),
        ("vec2face_small", "MIT"),
        ("cemiface_small", "MIT"),
        ("face_attributes", "Apache-2.0"),
    ],
)
def test_shipped_weights_are_known_by_their_bytes(name, licence):
    with open(shipped(f"{name}.safetensors"), "rb") as stream:
        digest = hashlib.sha256(stream.read()).hexdigest()
    assert weights_use("renamed.safetensors", digest, "embedder").licence == licence
    assert weights_use(f"{name}.safetensors", "0" * 64, "embedder").licence == NOT_STATED


def test_model_packs_of_insightface_are_for_research():
    for name in ("w600k_r50.onnx", "det_10g.onnx", "glintr100.onnx", "scrfd_10g_bnkps.onnx"):
        known = weights_use(name, "0" * 64, "embedder")
        assert known.restricted
        assert "file name" in known.said_by
    assert not weights_use(
        "w600k_r50.onnx", "0" * 64, "embedder", "bought, see contract"
    ).restricted


def test_everything_that_was_used_is_listed_once():
    found = uses(
        parse(CONFIG, "test"),
        {
            "ingest": manifest(det__onnx="1"),
            "screen/galleries/lfw/ingest": manifest(),
            "embed": manifest(w600k_r50__onnx="2"),
            "screen/galleries/lfw/embed": manifest(w600k_r50__onnx="2"),
        },
        [("vec2face", "3")],
    )
    assert [(use.kind, use.name, use.licence) for use in found] == [
        ("source", "base", "CC-BY-4.0"),
        ("source", "new", NOT_STATED),
        ("gallery", "lfw", "research only"),
        ("weights", "det.onnx", "bought"),
        ("weights", "w600k_r50.onnx", "non-commercial research only (insightface's model packs)"),
        ("weights", "vec2face", NOT_STATED),
    ]
    first, second = consequences(found)
    assert "gallery `lfw`, weights `w600k_r50.onnx`" in first
    assert "source `new`, weights `vec2face`" in second


def test_the_files_of_the_expansion_have_a_role_each():
    expand = {"weights": "x/generator.pth", "licence": "ours"}
    found = uses(
        parse({**CONFIG, "expand": expand}, "test"),
        {
            "expand": manifest(
                w600k_r50__onnx="2", generator__pth="3", face_attributes__safetensors="4"
            )
        },
        [("vec2face", "3")],
    )
    assert [(use.name, use.role, use.licence) for use in found if use.kind == "weights"] == [
        ("face_attributes.safetensors", "estimator of attributes", NOT_STATED),
        ("generator.pth", "generator of new faces", "ours"),
        ("w600k_r50.onnx", "embedder", "non-commercial research only (insightface's model packs)"),
    ]
    embedder = {**CONFIG["embedder"], "licence": "bought"}
    stated = parse({**CONFIG, "embedder": embedder, "expand": expand}, "test")
    assert uses(stated, {"expand": manifest(w600k_r50__onnx="2")})[-1].licence == "bought"


def test_every_generator_of_a_mix_has_its_licence():
    mix = [{"kind": "cemiface", "weights": "x/cemi.safetensors", "licence": "mine", "share": 0.5}]
    found = uses(
        parse({**CONFIG, "expand": {"licence": "ours", "mix": mix}}, "test"),
        {"expand": manifest(vec2face_small__safetensors="2", cemi__safetensors="3")},
        [("vec2face", "2"), ("cemiface", "3")],
    )
    assert [(use.name, use.role, use.licence) for use in found if use.kind == "weights"] == [
        ("cemi.safetensors", "generator of new faces", "mine"),
        ("vec2face_small.safetensors", "generator of new faces", "ours"),
    ]


def test_the_files_of_the_seed_job_have_a_role_each():
    seeds = {"number": 3, "diffusion": {"model": "x/sdxl", "licence": "openrail++"}}
    seeds["aligner"] = {"kind": "insightface", "weights": "x/det.onnx", "licence": "bought"}
    origin = Origin(
        job="seed",
        settings={"diffusion": {"model": "sdxl"}},
        inputs={"model": "5"},
        models={"det.onnx": "1", "w600k_r50.onnx": "2"},
    )
    made = {"seed": Manifest(origin=origin, counts={}, content_digest="")}
    found = uses(parse({**CONFIG, "seeds": seeds}, "test"), made, [("diffusion", "5")])
    assert [(use.name, use.role, use.licence) for use in found if use.kind == "weights"] == [
        ("det.onnx", "aligner", "bought"),
        ("w600k_r50.onnx", "embedder", "non-commercial research only (insightface's model packs)"),
        ("sdxl", "diffusion model", "openrail++"),
    ]


def test_the_shipped_pipeline_is_known_by_its_files():
    known = weights_use("renamed", digest(DiffusionConfig()), "diffusion model")
    assert known.licence == "MIT"


@pytest.mark.parametrize(
    ("licence", "restricted"),
    [
        ("CC-BY-NC-SA-4.0", True),
        ("Non Commercial use", True),
        ("noncommercial", True),
        ("for research purposes only", True),
        ("research-only", True),
        ("MIT", False),
        ("CC-BY-4.0", False),
        ("NCSA", False),
    ],
)
def test_words_that_restrict(licence, restricted):
    assert weights_use("x", "0", "embedder", licence).restricted == restricted


def test_a_licence_is_no_part_of_what_a_job_depends_on():
    bare = parse({**CONFIG, "ingest": {"sources": [{"name": "base", "path": "a"}]}}, "test")
    stated = parse(
        {**CONFIG, "ingest": {"sources": [{"name": "base", "path": "a", "licence": "MIT"}]}}, "test"
    )
    assert stated.ingest.sources[0].licence == "MIT"
    assert stated.model_dump() == bare.model_dump()


def test_the_demo_states_its_licences():
    config = load("configs/demo.yaml")
    assert NOT_STATED not in [use.licence for use in uses(config, {})]
