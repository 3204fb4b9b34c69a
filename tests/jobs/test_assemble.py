"""The assemble job, through Ray."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from face_sets import finish_set
from jobs.assemble import run
from raypipe.config import Build, parse
from raypipe.config.assemble import AssembleConfig
from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg
from raypipe.manifest import Manifest
from raypipe.similarity import similarities
from raypipe.verifying import verify_files

IMAGES = 12
MIN_IMAGES = 6


def person(number: int, source: str, kept: int) -> Identity:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (kept + 1, 24, 24, 3), np.uint8)
    return Identity(
        identity_id=f"{source}/{number:03d}",
        index=number,
        source=source,
        images=[
            Image(
                image_id=f"{k}.jpg",
                data=encode_jpeg(rgb),
                source=f"in/{number}/{k}.jpg",
                rejected=None if k else "clean:other_person",
            )
            for k, rgb in enumerate(pixels)
        ],
        rejected="screen:in_gallery" if number == 7 else None,
    )


# Identity 7 was screened out; 0, 6, 12, ... have fewer images than the minimum.
PEOPLE = [person(n, "base", 5 + n % 6 * 2) for n in range(30)] + [
    person(n, "new", 15 if n % 2 else 3) for n in range(30, 50)
]
LOST = 1 + sum(n % 6 == 0 for n in range(30))


def screened(workspace: Path, files: int = 5, people: Sequence[Identity] = PEOPLE) -> Path:
    root = str(workspace / "screen")
    for number in range(files):
        write_rows(root, f"{number}.parquet", people[number::files])
    finish_set(root, job="screen")
    return workspace


def build(workspace: Path, **values: object) -> Build:
    return parse(
        {
            "workspace": str(workspace),
            "seed": 5,
            "embedder": {"kind": "dlib"},
            "ingest": {"sources": [{"name": "base", "path": "unused"}]},
            "ray": {"rows_per_block": 8, "address": values.pop("address", None)},
            "assemble": {
                "images_per_identity": IMAGES,
                "min_images": MIN_IMAGES,
                "shard_size": 40,
                "pool": {"batch_size": 3, **values},
            },
        },
        "test",
    )


def files_of(workspace: Path) -> dict[str, str]:
    """Digest of every file that training reads."""
    root = workspace / "assemble"
    paths = [path for part in ("parquet", "webdataset") for path in (root / part).iterdir()]
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    }


@pytest.fixture(scope="module")
def assembled(ray_cluster, tmp_path_factory) -> tuple[Path, Manifest]:
    workspace = screened(tmp_path_factory.mktemp("assemble"))
    return workspace, run(build(workspace))


@pytest.mark.slow
def test_the_set_is_complete_in_order_and_adds_up(assembled):
    workspace, manifest = assembled
    table = pa.concat_tables(
        [pq.read_table(path) for path in sorted((workspace / "assemble/parquet").iterdir())]
    )
    stay = 30 - LOST
    assert table["position"].to_pylist() == list(range((stay + LOST) * IMAGES))
    label, source = np.array(table["label"]), table["source"].to_pylist()
    assert (np.bincount(label) == IMAGES).all()
    # Synthetic people first, and as many as were lost; no identity in one piece.
    assert source == ["new"] * LOST * IMAGES + ["base"] * stay * IMAGES
    assert (np.diff(label) == 0).mean() < 0.3

    counts = manifest.counts["training_set"]
    generators = Counter(table["generator"].to_pylist())
    assert counts["images"] == len(table) == counts["kept"] + counts["augmented"]
    assert counts["augmented"] == generators["augment"] > 0
    assert counts["sources"]["new"]["surplus"] == LOST * 3
    assert counts["replaced"] == LOST
    assert counts["shards"] == len(list((workspace / "assemble/webdataset").glob("*.tar"))) == 9

    face_set = FaceSet(str(workspace / "assemble/identities"))
    people = {item.identity_id: item for item in face_set.iter_identities()}
    assert people.keys() == {item.identity_id for item in PEOPLE}
    reasons = Counter(item.rejected for item in people.values())
    assert reasons == {
        None: 30,
        "screen:in_gallery": 1,
        "assemble:too_few": LOST - 1 + 10,
        "assemble:spare": 10 - LOST,
    }
    totals = manifest.counts["images"]
    assert totals["read"] == sum(len(item.images) for item in PEOPLE)
    assert totals["made"] == counts["augmented"]
    assert totals["kept"] + sum(totals["rejected"].values()) == totals["read"] + totals["made"]
    assert totals["kept"] == len(table)
    for row in table.slice(0, 50).to_pylist():
        images = {image.image_id: image for image in people[row["identity_id"]].images}
        assert images[row["image_id"]].data == row["image"]["bytes"]
        assert row["parent"] is None or row["parent"] in images
    assert not (workspace / "assemble/exchange").exists()
    assert verify_files(str(workspace / "assemble"), manifest) == []
    named = {name: digest for name, digest in files_of(workspace).items() if "index" not in name}
    assert manifest.extra["files"] == named


@pytest.mark.slow
def test_a_card_lies_beside_the_shards_and_follows_the_configuration(assembled):
    import mlcroissant

    workspace, manifest = assembled
    root = workspace / "assemble"
    text, counts = (root / "README.md").read_text(), manifest.counts["training_set"]
    assert f"| images | {counts['images']:,} |" in text
    assert "| source | base | images of the set | **not stated** | nobody |  |" in text
    assert "compared with no gallery" in text
    assert manifest.content_digest in text
    assert "| assemble | " in text
    assert "| screen |  | 1 identity screen:in_gallery, " in text
    assert str(workspace) not in text
    dataset = mlcroissant.Dataset(jsonld=str(root / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    rows = list(dataset.records("faces"))
    assert [row["faces/position"] for row in rows] == list(range(counts["images"]))
    files = json.loads((root / "croissant.json").read_text())["distribution"]
    assert {f["contentUrl"]: f["sha256"] for f in files[:-1]} == manifest.extra["files"]

    config = build(workspace)
    source = config.ingest.sources[0].model_copy(update={"licence": "CC0-1.0"})
    ingest = config.ingest.model_copy(update={"sources": [source]})
    assert run(config.model_copy(update={"ingest": ingest})) == manifest
    changed = (root / "README.md").read_text()
    assert "| source | base | images of the set | CC0-1.0 | the configuration |  |" in changed
    assert run(config) == manifest
    assert (root / "README.md").read_text() == text


@pytest.mark.slow
def test_a_second_run_does_nothing(assembled):
    workspace, manifest = assembled
    start = time.perf_counter()
    assert run(build(workspace)) == manifest
    assert time.perf_counter() - start < 1
    config = build(workspace)
    quality = config.assemble.model_copy(update={"jpeg_quality": 90})
    with pytest.raises(UserError, match=r"settings\.jpeg_quality 95 → 90"):
        run(config.model_copy(update={"assemble": quality}))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_bytes(assembled, tmp_path):
    """Other files, more workers, a kill -9 as soon as a shard is written, and a new driver."""
    before, manifest = assembled
    screened(tmp_path, files=3)
    address = ray.get_runtime_context().gcs_address
    child = (
        f"from pathlib import Path; import {Path(__file__).stem} as test; "
        f"test.run(test.build(Path({str(tmp_path)!r}), address={address!r}))"
    )
    first = tmp_path / "assemble/webdataset/shard-000000.tar"
    with subprocess.Popen([sys.executable, "-c", child]) as process:
        while not first.exists():
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "assemble/manifest.json").exists()
    made = first.stat().st_mtime_ns
    again = run(build(tmp_path, min=2, max=3))
    assert first.stat().st_mtime_ns == made
    assert again.content_digest == manifest.content_digest
    assert again.counts["training_set"] == manifest.counts["training_set"]
    assert files_of(tmp_path) == files_of(before)


BAND = (0.55, 0.95)


def embedded(person: Identity) -> Identity:
    """With embeddings around one of the person's own."""
    rng = np.random.default_rng(person.index)
    own = rng.normal(size=16)
    vectors = own + rng.uniform(0.2, 1.5, (len(person.images), 1)) * rng.normal(
        size=(len(person.images), 16)
    )
    images = [
        replace(image, embedding=vector.astype(np.float32))
        for image, vector in zip(person.images, vectors, strict=True)
    ]
    return replace(person, images=images)


@pytest.mark.slow
def test_a_set_filtered_chosen_and_ordered_by_similarity(ray_cluster, tmp_path):
    people = [embedded(one) for one in PEOPLE]
    dials = {
        "similarity": {"lowest": BAND[0], "highest": BAND[1]},
        "choose": "stratified",
        "order": "similar_first",
        "levels": 4,
    }
    manifests = []
    for name, files, pool in (("a", 5, {}), ("b", 3, {"min": 2, "max": 2})):
        workspace = screened(tmp_path / name, files, people)
        config = build(workspace, **pool)
        changed = AssembleConfig(**config.assemble.model_dump() | dials)
        manifests.append(run(config.model_copy(update={"assemble": changed})))
    assert manifests[0].content_digest == manifests[1].content_digest
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert not (tmp_path / "a/assemble/positions.npy").exists()

    counts = manifests[0].counts
    images = counts["images"]
    assert images["kept"] + sum(images["rejected"].values()) == images["read"] + images["made"]
    outside = sum(
        image.rejected is None and not BAND[0] <= value <= BAND[1]
        for one in people
        if one.rejected is None
        for image, value in zip(one.images, similarities(one), strict=True)
    )
    assert images["rejected"]["assemble:out_of_band"] == outside > 0
    # Who has too few left is replaced like anybody else who is lost.
    assert counts["identities"]["rejected"]["assemble:too_few"] > LOST - 1 + 10

    shards = sorted((tmp_path / "a/assemble/parquet").iterdir())
    table = pa.concat_tables([pq.read_table(path) for path in shards])
    measured, phase = table["similarity"].to_numpy(), np.array(table["phase"])
    assert (measured >= np.float32(BAND[0])).all()
    assert (measured <= np.float32(BAND[1])).all()
    for number in np.unique(phase):
        levels = np.array_split(measured[phase == number], 4)
        assert all(one.min() >= then.max() for one, then in pairwise(levels))
    rows = table.drop_columns(["image"]).to_pylist()
    values = {(row["identity_id"], row["image_id"]): row["similarity"] for row in rows}
    made = [row for row in rows if row["generator"]]
    assert made
    assert all(row["similarity"] == values[row["identity_id"], row["parent"]] for row in made)


@pytest.mark.slow
def test_an_order_by_similarity_needs_embeddings(ray_cluster, tmp_path):
    config = build(screened(tmp_path))
    ordered = config.assemble.model_copy(update={"order": "dissimilar_first"})
    with pytest.raises(UserError, match="has no embedding.*run `raypipe embed`"):
        run(config.model_copy(update={"assemble": ordered}))


def test_without_a_screened_set_it_says_so(tmp_path):
    with pytest.raises(UserError, match="run screen first"):
        run(build(tmp_path))


@pytest.mark.slow
def test_a_source_without_a_phase_is_the_users_mistake(ray_cluster, tmp_path):
    config = build(screened(tmp_path))
    only = config.assemble.model_copy(update={"phases": ["new"]})
    with pytest.raises(UserError, match=r"assemble\.phases.*'base'"):
        run(config.model_copy(update={"assemble": only}))
