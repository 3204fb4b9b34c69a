"""From a cleaned set to references of new people, through Ray, with the shipped model."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import screen, seed
from raypipe import storage
from raypipe.config import Build, parse
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import Identity
from raypipe.images import decode
from raypipe.manifest import Manifest
from raypipe.prompts import PORTRAITS, draw, load_grammar
from raypipe.reasons import explain
from raypipe.verifying import Verification

pytestmark = pytest.mark.slow

PEOPLE, NEW, TRIES = 30, 6, 2


def values(workspace: Path) -> dict:
    return {
        "workspace": str(workspace),
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": str(workspace / "unused")}]},
        "ray": {"num_cpus": 6, "rows_per_block": 2, "object_store_memory": 100 * 2**20},
        "seeds": {
            "number": NEW,
            "tries": TRIES,
            "prompts": {"grammar": PORTRAITS},
            "diffusion": {"steps": 6, "guidance": 2.0, "batch_size": 2},
            "pool": {"batch_size": 2},
            "reference_pool": {"batch_size": 2},
        },
        "screen": {"false_match_rate": 1e-2},
    }


def build(workspace: Path, *overrides: str) -> Build:
    return parse(values(workspace), "test", list(overrides))


def copied(cleaned: Path, target: Path) -> Path:
    shutil.copytree(cleaned / "clean", target / "clean")
    return target


def people(root: Path) -> list[Identity]:
    rows = FaceSet(str(root)).iter_identities()
    return sorted((row for row in rows if row.source == "seed"), key=lambda row: row.index)


@pytest.fixture(scope="module")
def seeded(
    cleaned: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None
) -> tuple[Path, Manifest]:
    work = copied(cleaned, tmp_path_factory.mktemp("seeded"))
    return work, seed.run(build(work))


def test_as_many_as_asked_for_pass_the_screening(seeded: tuple[Path, Manifest]) -> None:
    work, manifest = seeded
    screen.run(build(work))
    found = people(work / "screen")
    assert sum(row.rejected is None for row in found) == NEW
    compared = [row.rejected for row in found if row.screen]
    assert compared[-1] is None  # nobody after the last one needed
    assert "screen:not_unique" in compared
    counts = manifest.counts["seeds"]
    assert counts["asked"] == NEW
    assert counts["drawn"] == len(found)
    curves = storage.read_json(str(work / "screen/separability.json"))
    assert curves["drawn"][-1] == len(compared)


def test_every_picture_is_kept_and_counted(seeded: tuple[Path, Manifest]) -> None:
    work, manifest = seeded
    grammar = load_grammar(PORTRAITS)
    found = people(work / "seed")
    assert [row.index for row in found] == list(range(PEOPLE, PEOPLE + len(found)))
    for position, row in enumerate(found):
        prompt = draw(grammar, 0, position)
        assert row.identity_id == f"seed/{position:07d}"
        assert (row.seed.prompt, row.seed.attributes) == (prompt.prompt, prompt.attributes)
        assert [image.image_id for image in row.images] == [
            f"seed-{number:02d}" for number in range(len(row.seed.tries))
        ]
        assert [image.rejected for image in row.images] == [one.rejected for one in row.seed.tries]
        for image in row.images[:-1]:
            assert image.rejected
        last = row.images[-1]
        for image in row.images:
            assert image.rejected is None or explain(image.rejected)
            assert image.weights == manifest.origin.inputs["model"]
        assert len({image.seed for image in row.images}) == len(row.images)
        if last.rejected is None:
            assert decode(last.data, source="").shape == (112, 112, 3)
            assert last.embedding.shape == (128,)
            assert row.rejected in (None, "seed:surplus")
        else:
            over = len(row.images) == TRIES
            assert row.rejected == ("seed:tries_used_up" if over else "seed:surplus")
    counts = manifest.counts
    assert counts["images"]["made"] == counts["images"]["total"] == counts["seeds"]["pictures"]
    assert counts["seeds"]["pictures"] > len(found)  # somebody was drawn again
    assert counts["seeds"]["waves"] > 1
    assert Verification(str(work / "seed"), manifest).run() == []
    assert sorted(os.listdir(work / "seed")) == ["manifest.json", "rows", "run.json"]


def test_a_killed_run_goes_on_and_more_actors_make_the_same(
    cleaned: Path,
    seeded: tuple[Path, Manifest],
    killed_once_saved: Callable[[str, Build, str], None],
    tmp_path: Path,
) -> None:
    work = copied(cleaned, tmp_path)
    two = ("pool.min=2", "pool.max=2", "reference_pool.min=2", "reference_pool.max=2")
    config = build(work, *(f"seeds.{name}" for name in (*two, "reference_pool.batch_size=1")))
    killed_once_saved("seed", config, "seed/waves/000/rows/*.parquet")
    assert not (work / "seed/waves/000/manifest.json").exists()
    assert seed.run(config).content_digest == seeded[1].content_digest


def test_larger_batches_admit_the_same_people(
    cleaned: Path, seeded: tuple[Path, Manifest], tmp_path: Path
) -> None:
    work = copied(cleaned, tmp_path)
    seed.run(build(work, "seeds.diffusion.batch_size=8", "seeds.pool.batch_size=8"))
    pairs = zip(people(work / "seed"), people(seeded[0] / "seed"), strict=True)
    for row, other in pairs:
        assert row.rejected == other.rejected
        for image, before in zip(row.images, other.images, strict=True):
            assert image.rejected == before.rejected
            if row.kept:
                continue
            rgb, known = (decode(found.data, source="").astype(int) for found in (image, before))
            assert abs(rgb - known).max() <= 1


def test_too_many_for_the_model_is_said(cleaned: Path, ray_cluster: None, tmp_path: Path) -> None:
    work = copied(cleaned, tmp_path)
    with pytest.raises(UserError, match=r"seeds: .* people were drawn and .* ask for fewer"):
        seed.run(build(work, "seeds.number=20", "seeds.limit=1", "seeds.tries=1"))


def test_without_its_part_of_the_configuration_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part 'seeds'"):
        seed.run(build(tmp_path, "seeds=null"))
