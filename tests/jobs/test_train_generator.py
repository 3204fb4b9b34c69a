"""Real training of a tiny Vec2Face with Ray Train, on faces of the DCGAN with their features."""

import hashlib

import pytest

from jobs import train_generator
from jobs.work import begin
from raypipe import storage
from raypipe.config import parse
from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.images import decode
from raypipe.models.vec2face import Vec2Face

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

PEOPLE, IMAGES = 12, 4
CONFIG = {
    "embedder": {"kind": "dlib"},
    "ingest": {"sources": [{"name": "base", "path": "{workspace}/base"}]},
    "generator": {
        "size": "small",
        "whiten": True,
        "dcgan_pictures": 100,
        "epochs": 2,
        "batch_size": 16,
        "base_lr": 0.002,
        "warmup_epochs": 0.5,
        "identity_every": 3,
        "shuffle": 20,
        "period": 2,
        "grid": 3,
        "store": "float16",
    },
}


def configured(workspace, **changes):
    values = CONFIG["generator"] | changes
    return parse(CONFIG | {"workspace": str(workspace), "generator": values}, "test")


@pytest.fixture(scope="module")
def people(cleaned):
    return list(FaceSet(str(cleaned / "clean")).iter_identities())[:PEOPLE]


def make_set(workspace, people, damaged=False):
    work = begin(configured(workspace), job="embed", settings={"damaged": damaged})
    half = len(people) // 2
    write_rows(work.root, "part-0.parquet", people[:half])
    write_rows(work.root, "part-1.parquet", people[half:])
    work.finish({"images": PEOPLE * IMAGES}, hashlib.sha256(str(damaged).encode()).hexdigest())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster, people):
    workspace = tmp_path_factory.mktemp("undisturbed")
    make_set(workspace, people)
    return workspace, train_generator.run(configured(workspace))


def test_trains_and_writes_weights_card_and_grids(undisturbed):
    workspace, manifest = undisturbed
    root = workspace / "generator"
    history = storage.read_json(str(root / "history.json"))["periods"]
    assert [part["epoch"] for part in history] == [1, 1, 2, 2]
    assert [part["images"] for part in history] == [32, 16, 32, 16]
    assert history[3]["pixels"] < history[0]["pixels"]
    card = storage.read_json(str(root / "card.json"))
    assert card["sha256"] == manifest.content_digest
    assert storage.sha256_file(str(root / "generator.safetensors")) == manifest.content_digest
    network = Vec2Face.from_checkpoint(str(root / "generator.safetensors"))
    assert list(network.sizes.levels) == card["sizes"]["levels"]
    for number in (1, 2, 3, 4):
        data = (root / f"grids/{number:05d}.png").read_bytes()
        assert decode(data, source="grid").shape == (5 * 112, 3 * 112, 3)
    assert not (root / "checkpoints").exists()


def test_a_second_run_does_nothing_and_other_settings_are_refused(undisturbed):
    workspace, manifest = undisturbed
    assert train_generator.run(configured(workspace)) == manifest
    with pytest.raises(UserError, match=r"settings\.clip 2\.0 → 1\.0"):
        train_generator.run(configured(workspace, clip=1.0))


def test_a_killed_run_goes_on_from_its_checkpoint(undisturbed, people, tmp_path, killed_once_saved):
    make_set(tmp_path, people)
    config = configured(tmp_path)
    killed_once_saved("train_generator", config, "generator/checkpoints/run/checkpoint_*/state.pt")
    assert train_generator.run(config).content_digest == undisturbed[1].content_digest


def test_two_workers_with_discriminator_and_accumulation(people, tmp_path):
    make_set(tmp_path, people)
    changes = {"num_workers": 2, "cpus_per_worker": 0.5, "accumulate": 2, "batch_size": 4}
    changes |= {"epochs": 1, "warmup_epochs": 0, "gan_from": 0}
    changes |= {"base_lr": 2e-4}
    manifest = train_generator.run(configured(tmp_path, **changes))
    history = storage.read_json(str(tmp_path / "generator/history.json"))["periods"]
    assert sum(part["images"] for part in history) == PEOPLE * IMAGES // 2
    assert all(0 < part["discriminator"] < 10 for part in history)
    assert manifest.counts == {"images": PEOPLE * IMAGES, "epochs": 1}


def test_without_features_it_says_what_to_run(tmp_path, people):
    with pytest.raises(UserError, match="run `raypipe embed`"):
        train_generator.run(configured(tmp_path))
    bare = [
        Identity(
            identity_id=person.identity_id,
            index=person.index,
            source=person.source,
            images=[Image(image_id="0", data=b"", source="")],
        )
        for person in people
    ]
    make_set(tmp_path, bare)
    with pytest.raises(UserError, match="needs features of one length, found none"):
        train_generator.run(configured(tmp_path))
