"""The screening job, through Ray, on generated people whose relations are known."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from face_sets import finish_set
from jobs.screen import run
from raypipe import storage
from raypipe.config import Build, parse
from raypipe.config.embed import EmbedderConfig
from raypipe.config.sample import SampleConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.images import decode
from raypipe.manifest import (
    Manifest,
    read_manifest,
    read_started,
)
from raypipe.world import make_base

pytestmark = pytest.mark.slow

IN_GALLERY, OTHERS, FACES = range(10), range(10, 22), 8
LEAKS = (3, 7)


def build(folder: Path, *overrides: str) -> Build:
    values = {
        "workspace": str(folder / "work"),
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": str(folder / "unused")}]},
        "ray": {"rows_per_block": 5},
        "screen": {
            "false_match_rate": 1e-3,
            "galleries": [{"name": "known", "path": str(folder / "gallery")}],
        },
    }
    return parse(values, "test", list(overrides))


def write_clean(root: Path, people: dict[str, list[Path]]) -> None:
    """A cleaned set in two files; its last identity is rejected, and one image of another."""
    embedder = open_embedder(EmbedderConfig(kind="dlib"), None)
    rows = []
    for index, (name, paths) in enumerate(people.items()):
        data = [path.read_bytes() for path in paths]
        pixels = np.stack([decode(item, source=name) for item in data])
        images = [
            Image(image_id=path.name, data=item, source=str(path), embedding=vector)
            for path, item, vector in zip(paths, data, embedder.embed(pixels), strict=True)
        ]
        rows.append(Identity(identity_id=name, index=index, source="base", images=images))
    rows[-1].rejected = "clean:duplicate_identity"
    rows[2].images[1].rejected = "clean:other_person"
    for part in range(2):
        write_rows(str(root), f"{part}.parquet", rows[part::2])
    finish_set(str(root), job="clean")


@pytest.fixture(scope="module")
def screened(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> tuple[Path, Manifest]:
    """22 generated people: 10 in the gallery, 12 in the set, where 2 of the 10 leaked with other
    photographs and one person has two folders."""
    folder = tmp_path_factory.mktemp("screen")
    none = dict.fromkeys(["strangers", "near_duplicates", "corrupt", "truncated"], 0.0)
    sample = SampleConfig(identities=22, images=FACES, duplicates=0, too_few=0, leaks=0, **none)
    make_base(sample, 3, str(folder))
    photos = [sorted((folder / "base" / f"{i:06d}").iterdir()) for i in range(22)]
    for i in IN_GALLERY:
        (folder / "gallery" / f"person-{i}").mkdir(parents=True)
        for path in photos[i][:4]:
            shutil.copy(path, folder / "gallery" / f"person-{i}")
    people = {f"leak-{i}": photos[i][4:] for i in LEAKS} | {f"new-{i}": photos[i] for i in OTHERS}
    people["new-10"], people["again-10"] = photos[10][::2], photos[10][1::2]
    people["gone-11"] = photos[11]
    write_clean(folder / "work" / "clean", people)
    return folder, run(build(folder))


def test_leaks_and_the_repeated_person_are_refused_and_nobody_else(
    screened: tuple[Path, Manifest],
) -> None:
    folder, manifest = screened
    rows = {row.identity_id: row for row in FaceSet(str(folder / "work/screen")).iter_identities()}
    refused = {name: row.rejected for name, row in rows.items() if row.rejected}
    assert refused == {
        "leak-3": "screen:in_gallery",
        "leak-7": "screen:in_gallery",
        "again-10": "screen:not_unique",
        "gone-11": "clean:duplicate_identity",
    }
    assert len(rows) == 2 + len(OTHERS) + 2
    assert manifest.counts["identities"]["rejected"] == {
        "clean:duplicate_identity": 1,
        "screen:in_gallery": 2,
        "screen:not_unique": 1,
    }
    leak = rows["leak-3"].screen
    assert leak is not None
    assert leak.gallery == "known"
    assert leak.gallery_identity == "known/person-3"
    assert leak.gallery_similarity >= leak.gallery_threshold
    again = rows["again-10"].screen
    assert again is not None
    assert (again.nearest, again.nearest_similarity >= again.nearest_threshold) == ("new-10", True)
    assert rows["gone-11"].screen is None
    assert all(row.screen for name, row in rows.items() if name != "gone-11")


def test_leakage_json_tells_what_the_verdict_rests_on(screened: tuple[Path, Manifest]) -> None:
    folder, _ = screened
    found = storage.read_json(str(folder / "work/screen/leakage.json"))
    known = found["galleries"]["known"]
    assert (known["people"], known["faces"], known["impostor_pairs"]) == (10, 40, 360)
    assert (known["compared"], known["refused"]) == (15, 2)
    assert sum(known["nearest"]["counts"]) == 15
    assert sum(known["impostor"]["counts"]) == 360
    assert sum(known["genuine"]["counts"]) == 40
    assert known["recognised"] > 0.95
    assert (found["unique"]["compared"], found["unique"]["refused"]) == (13, 1)
    assert found["warnings"] == [w for w in found["warnings"] if "may refuse 4%" in w] != []
    stages = storage.read_json(str(folder / "work/screen/run.json"))["stages"]
    assert [stage["name"] for stage in stages] == ["search", "mark"]


def test_a_second_run_does_nothing_and_a_changed_one_says_what_changed(
    screened: tuple[Path, Manifest],
) -> None:
    folder, manifest = screened
    verdicts = folder / "work/screen/verdicts.parquet"
    before = verdicts.stat().st_mtime_ns
    assert run(build(folder)) == manifest
    assert verdicts.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"settings.false_match_rate 0.001 → 0.002"):
        run(build(folder, "screen.false_match_rate=0.002"))


def test_same_bytes_with_other_pools_and_after_a_run_that_was_cut_off(
    screened: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder, manifest = screened
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    screen = tmp_path / "work/screen"
    (screen / "manifest.json").unlink()
    (screen / "verdicts.parquet").unlink()
    shutil.rmtree(screen / "rows")
    again = run(
        build(
            tmp_path,
            f"screen.galleries=[{{name: known, path: {folder / 'gallery'}}}]",
            "screen.pool={min: 2, max: 2, batch_size: 1, num_cpus: 0.5}",
            "ray.rows_per_block=3",
        )
    )
    assert again.content_digest == manifest.content_digest
    assert (screen / "leakage.json").read_bytes() == (
        folder / "work/screen/leakage.json"
    ).read_bytes()


def test_an_unfinished_set_and_too_small_a_gallery_are_one_clear_error(
    tmp_path: Path, screened: tuple[Path, Manifest]
) -> None:
    with pytest.raises(UserError, match="clean is not a finished face set; run the job before it"):
        run(build(tmp_path))
    folder, _ = screened
    shutil.copytree(folder / "work/clean", tmp_path / "work/clean")
    shutil.copytree(folder / "work/screen/galleries", tmp_path / "work/screen/galleries")
    gallery = f"screen.galleries=[{{name: known, path: {folder / 'gallery'}}}]"
    with pytest.raises(UserError, match=r"gallery 'known' \(10 people, 40 faces\): 360 compar"):
        run(build(tmp_path, gallery, "screen.false_match_rate=1e-6"))
    assert read_manifest(str(tmp_path / "work/screen")) is None
    assert read_started(str(tmp_path / "work/screen")) is None  # another rate may be tried
