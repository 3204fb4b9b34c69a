"""The ingest job, through Ray."""

import json
import os
import shutil
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from jobs.convert import convert
from jobs.ingest import ingest_sources, run, write_listing
from raypipe.config import Build, parse
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.formats import open_reader, open_writer
from raypipe.images import decode, encode_jpeg
from raypipe.manifest import read_manifest
from raypipe.orl import photographs


def jpeg(seed: int) -> bytes:
    return encode_jpeg(np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8))


def make_set(root: Path, people: int = 12, images: int = 3) -> Path:
    for i in range(people):
        (root / f"p{i}").mkdir(parents=True)
        for k in range(images):
            (root / f"p{i}" / f"{k}.jpg").write_bytes(jpeg(100 * i + k))
    return root


def build(tmp_path: Path, *overrides: str) -> Build:
    values = {
        "workspace": str(tmp_path / "work"),
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": str(tmp_path / "set")}]},
        "ray": {"rows_per_block": 4},
    }
    return parse(values, "test", list(overrides))


def test_a_listing_is_written_once_and_again_when_the_source_changes(tmp_path: Path) -> None:
    source = make_set(tmp_path / "set", people=3)

    def listed() -> tuple[str, int]:
        config = build(tmp_path, "ingest.max_bytes=9999")
        root = str(tmp_path / "listing")
        digest = write_listing(config, root, config.ingest.sources, job="ingest")
        return digest, (tmp_path / "listing" / "manifest.json").stat().st_mtime_ns

    first = listed()
    assert listed() == first
    found = list(FaceSet(str(tmp_path / "listing")).iter_identities())
    assert [identity.identity_id for identity in found] == ["base/p0", "base/p1", "base/p2"]
    assert {image.data for identity in found for image in identity.images} == {b""}
    counts = read_manifest(str(tmp_path / "listing")).counts
    assert counts["images"]["total"] == counts["images"]["read"] == 9

    (source / "p1" / "1.jpg").unlink()
    assert listed()[0] != first[0]
    assert read_manifest(str(tmp_path / "listing")).counts["images"]["total"] == 8


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_no_set_fails_before_anything_is_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(jpeg(0))
    (tmp_path / "empty").mkdir()
    config = build(tmp_path, f"ingest.sources=[{{name: base, path: {tmp_path / name}}}]")
    with pytest.raises(UserError, match=str(tmp_path / name)):
        run(config)
    assert not (tmp_path / "work").exists()


FILES = Path(__file__).parents[1] / "data" / "formats"
TRUTH = json.loads((FILES / "truth.json").read_text())


def wanted() -> dict[str, list[str]]:
    """Digests of the images of each person of the files that others wrote."""
    found: dict[str, list[str]] = {}
    for label, digest in zip(TRUTH["labels"], TRUTH["sha256"], strict=True):
        found.setdefault(str(label), []).append(digest)
    return found


@pytest.mark.slow
def test_every_format_is_ingested_alike(tmp_path: Path, ray_cluster: None) -> None:
    made = ["webdataset", "parquet", "im2rec", "insightface", "hsface", "folder", "lists"]
    for format in made:
        convert(str(FILES / "hsface.lmdb"), str(tmp_path / format), format)
    # One shard an image: parts that the workers list, and people whose images lie apart.
    shards = tmp_path / "apart"
    shards.mkdir()
    for number, record in enumerate(open_reader(str(FILES / "train.rec")).records()):
        with open_writer(str(tmp_path / "one"), "webdataset") as writer:
            writer.write(record)
        (tmp_path / "one" / "shard-000000.tar").rename(shards / f"{number:02d}.tar")
        shutil.rmtree(tmp_path / "one")
    places = {
        **{format: tmp_path / format for format in made},
        "lists": next((tmp_path / "lists").glob("*.lst")),
        "apart": shards,
        "rec": FILES / "train.rec",
        "lmdb": FILES / "hsface.lmdb",
        "cut": FILES / "truncated.rec",
    }
    np.save(tmp_path / "mask.npy", np.arange(4, 12))
    sources = [{"name": name, "path": str(path)} for name, path in places.items()]
    sources.append({**sources[-2], "name": "masked", "mask": str(tmp_path / "mask.npy")})
    config = build(tmp_path).model_dump()
    config["ingest"]["sources"] = sources
    manifest = run(Build(**config))

    found: dict[str, dict[str, list[str]]] = {}
    damaged = []
    for identity in FaceSet(str(tmp_path / "work" / "ingest")).iter_identities():
        digests = [sha256(image.data).hexdigest() for image in identity.kept]
        damaged += [image.source for image in identity.images if image.rejected]
        if digests:
            people = found.setdefault(identity.source, {})
            people[identity.identity_id.removeprefix(f"{identity.source}/")] = digests
    cut, masked = found.pop("cut"), found.pop("masked")
    for name, people in found.items():
        if name in ("folder", "lists"):  # their people are called by folders
            assert list(people.values()) == list(wanted().values()), name
        else:
            assert people == wanted(), name
    assert list(chain(*masked.values())) == TRUTH["sha256"][4:12]
    intact = list(chain(*cut.values()))
    assert intact == TRUTH["sha256"][: len(intact)]
    assert all(source.startswith("truncated.rec@") for source in damaged)
    assert manifest.counts["images"]["rejected"] == {"ingest:damaged": len(damaged)}
    assert len(damaged) >= 1


@pytest.fixture(scope="module")
def messy(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A set with one of everything that can be wrong, ingested into its `work` folder."""
    folder = tmp_path_factory.mktemp("messy")
    source = make_set(folder / "set")
    (source / "p2" / "1.jpg").write_bytes(jpeg(201)[:-100])
    (source / "p3" / "notes.txt").write_bytes(b"who took these")
    (source / "p4" / "0.jpg").write_bytes(jpeg(400) + bytes(200_000))
    (source / "p5" / "deep" / "deeper").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "readme.txt").write_bytes(b"twelve people")
    os.mkdir(os.fsencode(source) + b"/\xff")
    Path(os.fsdecode(os.fsencode(source) + b"/\xff/0.jpg")).write_bytes(jpeg(0))
    run(build(folder, "ingest.max_bytes=100000"))
    return folder


@pytest.mark.slow
def test_every_file_is_kept_or_counted(messy: Path) -> None:
    manifest = read_manifest(str(messy / "work" / "ingest"))
    assert manifest.counts["identities"] == {
        "total": 15,
        "kept": 12,
        "rejected": {"ingest:bad_name": 1, "ingest:empty": 1, "ingest:stray": 1},
    }
    assert manifest.counts["images"] == {
        "total": 40,
        "read": 40,
        "made": 0,
        "kept": 34,
        "rejected": {
            "ingest:bad_name": 1,
            "ingest:file_too_large": 1,
            "ingest:nested": 1,
            "ingest:not_an_image": 1,
            "ingest:stray": 1,
            "ingest:truncated": 1,
        },
    }
    rows = {i.identity_id: i for i in FaceSet(str(messy / "work" / "ingest")).iter_identities()}
    assert rows["base/p10"].index > rows["base/p9"].index
    assert [image.data for image in rows["base/p7"].images] == [jpeg(700 + k) for k in range(3)]
    assert rows["base/p2"].images[1].data == jpeg(201)[:-100]


@pytest.mark.slow
def test_another_place_and_other_pools_give_the_same_content(messy: Path) -> None:
    pool = "ingest.pool={min: 2, max: 2, batch_size: 1}"
    config = build(messy, "ingest.max_bytes=100000", pool, f"workspace={messy / 'elsewhere'}")
    job = "screen/galleries/g/ingest"
    manifest = ingest_sources(config, job=job, sources=config.ingest.sources)
    assert manifest == read_manifest(str(messy / "elsewhere" / "screen/galleries/g/ingest"))
    first = read_manifest(str(messy / "work" / "ingest"))
    assert manifest.content_digest == first.content_digest


@pytest.mark.slow
def test_a_second_run_does_nothing_and_a_changed_source_is_noticed(messy: Path) -> None:
    config = build(messy, "ingest.max_bytes=100000")
    files = [path for path in (messy / "work").rglob("*") if path.is_file()]
    times = [path.stat().st_mtime_ns for path in files]
    assert run(config) == read_manifest(str(messy / "work" / "ingest"))
    assert [path.stat().st_mtime_ns for path in files] == times

    os.utime(messy / "set" / "p1" / "1.jpg", ns=(0, 0))
    with pytest.raises(UserError, match=r"inputs\.files .* → "):
        run(config)


@pytest.mark.slow
def test_photographs_are_aligned_on_their_way_in(tmp_path: Path, ray_cluster: None) -> None:
    for photo in photographs():
        if photo.person in ("s01", "s02") and photo.number <= 3:
            folder = tmp_path / "set" / photo.person
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(photo.path, folder / f"{photo.number}.pgm")
    (tmp_path / "set" / "s02" / "wall.jpg").write_bytes(encode_jpeg(np.full((80, 80, 3), 90, "u1")))
    manifest = run(build(tmp_path, "ingest.aligner={kind: dlib}"))
    assert manifest.counts["images"] == {
        "total": 13,
        "read": 7,
        "made": 6,
        "kept": 6,
        "rejected": {"align:no_face": 1, "align:replaced_by_crop": 6},
    }
    for identity in FaceSet(str(tmp_path / "work" / "ingest")).iter_identities():
        assert len(identity.kept) == 3
        for image in identity.kept:
            assert decode(image.data, source="").shape == (112, 112, 3)
            assert image.parent in {f"{n}.pgm" for n in (1, 2, 3)}


def test_a_parquet_set_in_the_order_of_training_is_told_to_be_slow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for format, order in (("together", range(24)), ("strewn", range(0, 24 * 7, 7))):
        records = list(open_reader(str(FILES / "train.rec")).records())
        with open_writer(str(tmp_path / format), "parquet") as writer:
            for number in order:
                writer.write(records[number % 24])
        config = build(tmp_path, f"ingest.sources=[{{name: a, path: {tmp_path / format}}}]")
        write_listing(config, str(tmp_path / f"{format} listed"), config.ingest.sources, job="x")
        assert ("lie in many row groups" in capsys.readouterr().err) == (format == "strewn")
