"""What the dataset card says of how a set was made, from the manifests of the jobs."""

import json
from pathlib import Path
from typing import Any

import pytest

from raypipe import storage
from raypipe.config import Build, parse
from raypipe.manifest import Manifest, Origin, write_manifest
from raypipe.provenance import write_card

GENERATOR = "9" * 64
VECTOR = {"vectors:no_picture": 5}
CLEAN = {"clean:other_person": 7}
REFUSED = {"expand:not_the_person": 11, "expand:in_gallery": 2}
BASE = {"identities": 30, "images": 300}


def job(
    root: Path,
    name: str,
    sources: dict[str, Any],
    rejected: dict[str, int],
    *,
    made: int = 0,
    settings: dict[str, Any] | None = None,
    models: dict[str, str] | None = None,
    inputs: dict[str, str] | None = None,
    **more: Any,
) -> None:
    origin = Origin(job=name, settings=settings or {}, inputs=inputs or {}, models=models or {})
    extra = more.pop("extra", {})
    counts = {
        "identities": {"rejected": {}},
        "images": {"rejected": rejected, "made": made},
        "sources": sources,
        **more,
    }
    manifest = Manifest(origin=origin, counts=counts, content_digest="", extra=extra)
    write_manifest(str(root / name), manifest)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    vec = {"identities": 5, "images": 5}
    job(tmp_path, "ingest", {"base": BASE}, {})
    job(tmp_path, "clean", {"base": BASE}, CLEAN)
    job(
        tmp_path,
        "vectors",
        {"vec": vec},
        VECTOR,
        made=5,
        settings={
            "law": "components",
            "source": "clean",
            "ceiling": 0.97,
            "away_from_source": True,
        },
        drawn={"total": 8, "accepted": 5, "refused": 3},
        extra={"law": {"digest": "1" * 64, "identities": 30, "note": None}},
    )
    job(tmp_path, "screen", {"base": BASE, "vec": vec}, CLEAN | VECTOR)
    job(
        tmp_path,
        "expand",
        {"base": BASE, "vec": {"identities": 5, "images": 68}},
        CLEAN | VECTOR | REFUSED,
        made=63,
        settings={"sources": ["vec"]},
        models={"small.safetensors": GENERATOR, "dlib_resnet_v1.safetensors": "8" * 64},
    )
    thresholds = {"own": 0.93, "other": 0.96, "galleries": {"orl": 0.97}}
    storage.write_json(str(tmp_path / "expand" / "thresholds.json"), {"thresholds": thresholds})
    return tmp_path


def build(workspace: Path, **more: Any) -> Build:
    values = {
        "workspace": str(workspace),
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": "a", "licence": "MIT"}]},
    }
    return parse({**values, **more}, "test")


def written(config: Build, generators: list[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
    """The card and the Croissant file of a set of 34 identities."""
    sources = {
        "base": {"identities": 30, "kept": 290, "augmented": 10},
        "vec": {"identities": 4, "kept": 40, "augmented": 0},
    }
    counts = {
        "identities": {"rejected": {}},
        "images": {"rejected": CLEAN | VECTOR | REFUSED},
        "training_set": {"identities": 34, "images": 340, "augmented": 10, "sources": sources},
    }
    write_card(config, counts, {}, "7" * 64, generators)
    root = Path(config.workspace) / "assemble"
    return (root / "README.md").read_text(), json.loads((root / "croissant.json").read_text())


def test_the_card_tells_who_was_drawn_painted_and_checked(workspace: Path) -> None:
    expand = {"weights": "x/small.safetensors", "licence": "CC0-1.0"}
    config = build(workspace, vectors={"count": 5}, expand=expand)
    card, croissant = written(config, [("vec2face", GENERATOR)])
    short = (
        "Vec2Face painted images of 4 identities, 4 of them sampled vectors; each of these images"
    )
    for part in (
        short,
        "5 identities began as vectors, drawn at random and spread as the 30 identities of `clean`",
        "Of 8 vectors drawn, 3 were refused for a similarity of 0.97 or more to another one or",
        f"Vec2Face (`small.safetensors`, SHA-256 `{GENERATOR}`) painted 63 images of identities of "
        "`vec`.",
        "the vector that it was made from (at least 0.930); to every other identity (less than "
        "0.960, and than to that vector); to every face of gallery `orl` (less than "
        "0.970). 50 passed.",
        "11 `expand:not_the_person`, 0 `expand:somebody_else`, 2 `expand:in_gallery`",
        "| base | 30 | 300 | 0 | 30 | 290 | 10 |",
        "| vec | 5 | 0 | 63 | 4 | 40 | 0 |",
        "| weights | small.safetensors | generator of new faces | CC0-1.0 |",
    ):
        assert part in card
    assert short in croissant["description"]
    assert "no_picture" not in card
    jobs = {line.split(" | ")[0]: line for line in card.splitlines() if line.startswith("| ")}
    assert "7 images clean:other_person" in jobs["| clean"]
    assert jobs["| screen"].endswith("|  |"), "what cleaning rejected is not told again"
    assert "11 images expand:not_the_person" in jobs["| expand"]


def test_the_card_names_every_generator_and_the_band(workspace: Path) -> None:
    mix = [{"kind": "cemiface", "weights": "x/cemi.safetensors", "share": 0.5}]
    config = build(workspace, vectors={"count": 5}, expand={"mix": mix, "band": [0.94, 0.97]})
    card, _ = written(config, [("vec2face", GENERATOR), ("cemiface", "8" * 64)])
    for part in (
        "Vec2Face and CemiFace painted images of 4 identities",
        f"Vec2Face and CemiFace (`dlib_resnet_v1.safetensors`, SHA-256 `{'8' * 64}`; "
        f"`small.safetensors`, SHA-256 `{GENERATOR}`) painted 63 images",
        "(at least 0.930, and from 0.94 to 0.97)",
        "2 `expand:in_gallery`, 0 `expand:out_of_band`",
    ):
        assert part in card


def test_a_job_that_the_configuration_leaves_out_is_no_part_of_the_set(workspace: Path) -> None:
    card, croissant = written(build(workspace), [])
    for word in ("Vec2Face", "made up", "expand", "vectors"):
        assert word not in card.replace("`", "").partition("## Licences")[0]
        assert word not in croissant["description"]
    assert "small.safetensors" not in card


def test_the_card_tells_who_was_drawn_from_prompts(workspace: Path) -> None:
    seed = {"identities": 6, "images": 9}
    job(
        workspace,
        "seed",
        {"seed": seed},
        {"seed:no_face": 3},
        made=9,
        settings={
            "diffusion": {"model": "sdxl"},
            "gates": {"min_size": 32.0},
            "seed": 0,
            "tries": 2,
        },
        inputs={"grammar": "a" * 64, "model": "b" * 64},
        seeds={"asked": 4, "drawn": 6, "pictures": 9, "accepted": 5, "waves": 2},
    )
    vec = {"identities": 5, "images": 5}
    kept = {"identities_kept": 4}
    job(workspace, "screen", {"base": BASE, "vec": vec, "seed": seed | kept}, CLEAN | VECTOR)
    config = build(workspace, vectors={"count": 5}, seeds={"number": 4})
    card, _ = written(config, [])
    for part in (
        "4 identities were to begin as a reference picture each, drawn by `sdxl`",
        "9 pictures of 6 identities were drawn, at most 2 of each. 5 identities passed the gates",
        "screening left 4 of them",
        "| weights | sdxl | diffusion model | **not stated** |",
        "3 images seed:no_face",
    ):
        assert part in card
