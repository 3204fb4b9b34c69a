"""Dataset card and Croissant metadata: true, complete, and read by the tools they are made for."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from raypipe.card import Column, SetFacts, Shard, card, table
from raypipe.croissant import croissant
from raypipe.formats import Record, open_reader, open_writer
from raypipe.images import encode_jpeg
from raypipe.licences import NOT_STATED, Use


def use(name: str, licence: str, said_by: str = "the configuration") -> Use:
    return Use(kind="source", name=name, role="images", licence=licence, said_by=said_by)


def shards(folder: str, ending: str) -> list[Shard]:
    return [
        Shard(path=f"{folder}/shard-{n:06d}.{ending}", size=1000 + n, sha256=f"{n:064x}")
        for n in range(3)
    ]


FACTS = SetFacts(
    name="faces-abc",
    about="A set.",
    identities=20,
    images=12_345,
    fewest=3,
    most=900,
    pattern="parquet/*.parquet",
    shards=shards("parquet", "parquet"),
    tars=shards("webdataset", "tar"),
    columns=[Column(name="label", kind="int64", about="class | number")],
    provenance="### Digest\n\nabc\n",
    uses=[use("base", "CC0-1.0")],
)


def head(text: str) -> dict:
    start, values, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(values)


def test_the_card_says_what_is_there():
    text = card(FACTS)
    assert head(text)["configs"][0]["data_files"] == [
        {"split": "train", "path": "parquet/*.parquet"}
    ]
    assert head(text)["size_categories"] == ["10K<n<100K"]
    for row in (
        "| identities | 20 |",
        "| images | 12,345 |",
        "| images per identity | 3 to 900 |",
        "| bytes as Parquet | 3,003 |",
        "| label | int64 | class \\| number |",
        "| source | base | images | CC0-1.0 | the configuration |  |",
        "For everything this set was made from",
        "shard-{000000..000002}.tar",
        "FROM 'PATH/parquet/*.parquet'",
        'load_dataset("PATH", split="train")',
    ):
        assert row in text
    assert card(FACTS) == text
    assert "webdataset" not in card(replace(FACTS, tars=[]))


def test_what_nobody_stated_and_what_is_restricted_stands_out():
    uses = [
        use("base", "CC-BY-NC-4.0"),
        use("new", NOT_STATED, "nobody"),
        use("third", "for non-commercial research purposes only"),
        use("fourth", "MIT"),
    ]
    text = card(replace(FACTS, uses=uses))
    assert "**not stated**" in text
    assert "**This set was made or cleaned with what is licensed for research or" in text
    assert "use only: source `base`, source `third`." in text
    assert "**Nobody stated the licence of source `new`." in text
    assert "For everything this set was made from" not in text


@pytest.mark.parametrize(
    ("images", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (10**6, "1M<n<10M"), (10**7, "10M<n<100M")],
)
def test_size_categories_are_those_of_hugging_face(images, category):
    assert head(card(replace(FACTS, images=images)))["size_categories"] == [category]


def test_a_cell_cannot_break_out_of_a_table():
    assert table(("a",), [("x | y\nz",)]) == "| a |\n| --- |\n| x \\| y z |\n"


def test_croissant_names_every_file_with_its_digest():
    found = croissant(FACTS)
    files = {f["contentUrl"]: f for f in found["distribution"] if f["@type"] == "cr:FileObject"}
    assert list(files) == [shard.path for shard in [*FACTS.shards, *FACTS.tars]]
    assert files["webdataset/shard-000001.tar"]["sha256"] == f"{1:064x}"
    assert found["license"] == ["CC0-1.0"]
    assert json.dumps(croissant(FACTS)) == json.dumps(found)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[Record]]:
    import numpy as np

    rng = np.random.default_rng(0)
    records = [
        Record(encode_jpeg(rng.integers(0, 256, (8, 9, 3), np.uint8)), n // 4, f"p{n // 4}", f"{n}")
        for n in range(12)
    ]
    with open_writer(str(tmp_path / "set"), "parquet") as writer:
        for record in records:
            writer.write(record)
    return tmp_path / "set", records


def test_a_converted_set_has_both_and_they_are_right(written):
    path, records = written
    text = (path / "README.md").read_text()
    assert "| identities | 3 |" in text
    assert "| images per identity | 4 |" in text
    assert "**not stated**" in text
    metadata = json.loads((path / "croissant.json").read_text())
    files = [f for f in metadata["distribution"] if f["@type"] == "cr:FileObject"]
    for file in files:
        data = (path / file["contentUrl"]).read_bytes()
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        assert file["contentSize"] == f"{len(data)} B"
    assert list(open_reader(str(path)).records()) == records


@pytest.mark.slow
def test_mlcroissant_takes_it_and_yields_the_records(written):
    import mlcroissant
    import PIL.Image

    path, records = written
    dataset = mlcroissant.Dataset(jsonld=str(path / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    found = list(dataset.records("faces"))
    assert len(found) == len(records)
    for row, record in zip(found, records, strict=True):
        assert row["faces/label"] == record.label
        assert row["faces/identity"] == record.identity.encode()
        picture = PIL.Image.open(io.BytesIO(record.image))
        assert row["faces/image"].tobytes() == picture.tobytes()
    mlcroissant.Dataset(jsonld=croissant(FACTS))
