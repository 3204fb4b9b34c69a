"""Real training of a small CemiFace with Ray Train, for a handful of steps."""

import hashlib

import pytest

from jobs import train_cemiface
from jobs.work import begin
from raypipe import storage
from raypipe.config import parse
from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.images import decode
from raypipe.models.cemiface import CemiFace

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]


def configured(workspace, **changes):
    values = {"size": "small", "epochs": 2, "batch_size": 2, "grid": 1, "store": "float16"}
    return parse(
        {
            "workspace": str(workspace),
            "embedder": {"kind": "dlib"},
            "ingest": {"sources": [{"name": "base", "path": "{workspace}/base"}]},
            "cemiface": values | changes,
        },
        "test",
    )


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_trains_and_writes_weights_card_and_grids(place, cleaned, s3_bucket, tmp_path):
    workspace = tmp_path if place == "folder" else f"{s3_bucket}/cemiface 1"
    people = list(FaceSet(str(cleaned / "clean")).iter_identities())[:2]
    for person in people:
        person.images = person.images[:2]
    work = begin(configured(workspace), job="embed", settings={})
    write_rows(work.root, "part-0.parquet", people)
    work.finish({"images": 4}, hashlib.sha256(b"set").hexdigest())
    manifest = train_cemiface.run(configured(workspace))
    root = f"{workspace}/cemiface"
    history = storage.read_json(f"{root}/history.json")["periods"]
    assert [part["epoch"] for part in history] == [1, 2]
    assert [part["images"] for part in history] == [4, 4]
    card = storage.read_json(f"{root}/card.json")
    assert card["sha256"] == manifest.content_digest
    assert storage.sha256_file(f"{root}/cemiface.safetensors") == manifest.content_digest
    network = CemiFace.from_checkpoint(f"{root}/cemiface.safetensors")
    assert network.centre.abs().sum() > 0
    grid = decode(storage.read_bytes(f"{root}/grids/00002.png"), source="grid")
    assert grid.shape == (672, 112, 3)
    assert not storage.exists(f"{root}/checkpoints")
    assert train_cemiface.run(configured(workspace)).content_digest == manifest.content_digest


def test_a_set_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no finished face set; run `raypipe embed`"):
        train_cemiface.run(configured(tmp_path))
