"""Real labels and a short training on a few faces of the DCGAN."""

import hashlib

import pytest

from jobs import train_estimator
from jobs.work import begin
from raypipe import storage
from raypipe.config import parse
from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.models.face_attributes import FaceAttributes

pytestmark = pytest.mark.slow

PEOPLE, IMAGES, FILES = 24, 2, 3
CONFIG = {
    "embedder": {"kind": "dlib"},
    "ingest": {"sources": [{"name": "base", "path": "{workspace}/base"}]},
    "estimator": {"people": 20, "held_out": 0.2, "epochs": 3, "batch_size": 8},
}


def configured(workspace, **changes):
    values = CONFIG["estimator"] | changes
    return parse(CONFIG | {"workspace": str(workspace), "estimator": values}, "test")


@pytest.fixture(scope="module")
def people(cleaned):
    found = list(FaceSet(str(cleaned / "clean")).iter_identities())[:PEOPLE]
    for person in found:
        person.images = person.images[:IMAGES]
    return found


def make_set(workspace, people):
    work = begin(configured(workspace), job="ingest", settings={})
    for k in range(FILES):  # the order of the people is not that of the files
        write_rows(work.root, f"part-{k}.parquet", people[FILES - 1 - k :: FILES])
    work.finish({"images": PEOPLE * IMAGES}, hashlib.sha256(b"").hexdigest())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, people):
    workspace = tmp_path_factory.mktemp("undisturbed")
    make_set(workspace, people)
    return workspace, train_estimator.run(configured(workspace))


def test_writes_weights_and_what_they_are_worth(undisturbed):
    workspace, manifest = undisturbed
    card = storage.read_json(str(workspace / "estimator/card.json"))
    assert card["sha256"] == manifest.content_digest
    assert manifest.counts["trained"] + manifest.counts["held_out"] == 20 * IMAGES
    assert manifest.counts["held_out"] == card["measured"]["quality"]["images"] > 0
    assert card["losses"][-1] < card["losses"][0]
    FaceAttributes.from_checkpoint(str(workspace / "estimator/face_attributes.safetensors"))
    with pytest.raises(UserError, match=r"settings\.epochs 3 → 4"):
        train_estimator.run(configured(workspace, epochs=4))


def test_a_killed_run_keeps_its_labels_and_ends_the_same(
    undisturbed, people, tmp_path, killed_once_saved
):
    make_set(tmp_path, people)
    config = configured(tmp_path)
    killed_once_saved("train_estimator", config, "estimator/labels/*.json")
    labels = tmp_path / "estimator/labels"
    kept = {path: path.stat().st_mtime_ns for path in labels.glob("*.json")}
    assert len(kept) < FILES
    assert train_estimator.run(config).content_digest == undisturbed[1].content_digest
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_too_few_people_are_an_error(people, tmp_path):
    make_set(tmp_path, people[:2])
    with pytest.raises(UserError, match="take a set of more people"):
        train_estimator.run(configured(tmp_path, held_out=0.99))
