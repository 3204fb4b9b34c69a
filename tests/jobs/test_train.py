"""Real training with Ray Train on a small set of coloured noise, 60 images of 6 identities."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from safetensors.torch import load_file

from jobs import train
from jobs.work import begin
from raypipe import storage
from raypipe.config import parse
from raypipe.errors import UserError
from raypipe.images import encode_jpeg
from raypipe.models.iresnet import iresnet
from raypipe.schedule import Steps, epoch_fingerprint
from raypipe.training_set import FLAT, to_parquet

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

IMAGES, CLASSES, SHARD = 60, 6, 25


def make_set(workspace, damaged=None):
    """An assembled set: the same identities in every run, in three shards."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (CLASSES, 8, 8, 3))
    rows = []
    for position, label in enumerate(rng.permutation(np.arange(IMAGES) % CLASSES).tolist()):
        small = np.clip(centres[label] + rng.normal(0, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
        data = encode_jpeg(np.kron(small, np.ones((14, 14, 1), np.uint8)))
        rows.append(
            {
                "key": f"{label:07d}_{position:04d}",
                "data": data[:300] if position == damaged else data,
                "label": label,
                "identity_id": f"base/{label}",
                "image_id": f"{position:04d}.jpg",
                "phase": label % 2,
                "position": position,
            }
        )
    table = pa.Table.from_pylist(rows, schema=FLAT)
    config = parse(CONFIG | {"workspace": str(workspace)}, "test")
    work = begin(config, job="assemble", settings={"damaged": damaged})
    for number, start in enumerate(range(0, IMAGES, SHARD)):
        path = work.path("parquet", f"shard-{number:06d}.parquet")
        storage.write_bytes(path, to_parquet(table.slice(start, SHARD)))
    work.finish({"images": IMAGES}, hashlib.sha256(str(damaged).encode()).hexdigest())


CONFIG = {
    "embedder": {"kind": "dlib"},
    "ingest": {"sources": [{"name": "base", "path": "{workspace}/base"}]},
    "train": {
        "depth": "10",
        "width": 4,
        "epochs": 3,
        "batch_size": 16,
        "lr": 0.05,
        "lr_batch": 16,
        "milestones": [2],
        "margin": 0.2,
    },
}


def expected_orders(config, workers=1, epochs=None):
    """What the trainer says before it trains, as fingerprints of the first epochs, or of all."""
    rows = train.find_set(config).rows
    schedule = train.make_schedule(config.train, rows, config.seed)
    steps = Steps.of(config.train.batch_size, config.train.micro_batch, workers)
    numbers = range(epochs or config.train.epochs)
    return [f"{epoch_fingerprint(schedule, steps, epoch):016x}" for epoch in numbers]


def configured(workspace, **changes):
    return parse(CONFIG | {"workspace": str(workspace), "train": CONFIG["train"] | changes}, "test")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, ray_cluster):
    """One run of three epochs that nobody disturbs."""
    workspace = tmp_path_factory.mktemp("undisturbed")
    make_set(workspace)
    manifest = train.run(configured(workspace))
    return workspace, manifest


def test_trains_in_the_order_of_the_set(undisturbed):
    workspace, manifest = undisturbed
    history = storage.read_json(str(workspace / "train/history.json"))["epochs"]
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]
    assert [epoch["order"] for epoch in history] == expected_orders(configured(workspace))
    assert len({epoch["order"] for epoch in history}) == 3
    assert {epoch["images"] for epoch in history} == {IMAGES}
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["accuracy"] > 0.5
    for epoch in history:
        assert 0 <= epoch["wait_seconds"] <= epoch["seconds"]
        assert epoch["images_per_second"] == pytest.approx(IMAGES / epoch["seconds"])
    assert manifest.counts == {"classes": CLASSES, "images": IMAGES, "epochs": 3}


def test_writes_weights_with_the_published_names(undisturbed):
    workspace, manifest = undisturbed
    path = workspace / "train/recognizer.safetensors"
    network = iresnet("10", width=4)
    network.load_state_dict(load_file(path))
    assert manifest.content_digest == storage.sha256_file(str(path))
    card = storage.read_json(str(workspace / "train/recognizer.json"))
    assert (card["depth"], card["width"], card["classes"]) == ("10", 4, CLASSES)
    assert not (workspace / "train/checkpoints").exists()


def test_decoding_on_the_device_trains_on_the_same_pixels(undisturbed, tmp_path):
    make_set(tmp_path)
    config = configured(tmp_path, decoder="nvimgcodec")
    assert train.run(config).content_digest == undisturbed[1].content_digest
    with pytest.raises(UserError, match="use_gpu"):
        train.run(configured(tmp_path, decoder="nvimgcodec", use_gpu=True))


def test_a_second_run_does_nothing(undisturbed):
    workspace, manifest = undisturbed
    before = {path: path.stat().st_mtime_ns for path in (workspace / "train").iterdir()}
    assert train.run(configured(workspace)) == manifest
    assert {path: path.stat().st_mtime_ns for path in (workspace / "train").iterdir()} == before


def test_other_settings_are_not_resumed_by_mistake(undisturbed):
    workspace, _ = undisturbed
    with pytest.raises(UserError, match=r"settings\.lr 0\.05 → 0\.01"):
        train.run(configured(workspace, lr=0.01))


def wait_for_a_checkpoint(workspace):
    while not list((workspace / "train/checkpoints").glob("run/checkpoint_*/state.pt")):
        time.sleep(0.02)


def test_a_killed_worker_is_replaced_and_goes_on(undisturbed, tmp_path):
    make_set(tmp_path)
    killed = []

    def kill_after_the_first_checkpoint():
        wait_for_a_checkpoint(tmp_path)
        for process in psutil.Process().children(recursive=True):  # of this cluster alone
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)

    thread = threading.Thread(target=kill_after_the_first_checkpoint, daemon=True)
    thread.start()
    manifest = train.run(configured(tmp_path))
    assert killed
    assert manifest.content_digest == undisturbed[1].content_digest
    history = storage.read_json(str(tmp_path / "train/history.json"))["epochs"]
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]


def start_driver(config, environment=None, before="", **streams):
    """The training in a process of its own, on the cluster of the tests or on another.

    Args:
        before: Python that the process runs first.
    """
    code = (
        f"{before}import sys; from jobs import train; from raypipe.config import Build;"
        "train.run(Build.model_validate_json(sys.argv[1]))"
    )
    if environment is None:
        environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-c", code, config.model_dump_json()]
    return subprocess.Popen(command, env=environment, **streams)


@pytest.mark.parametrize("schedule", ["sequential", "paced", "mixed"])
def test_two_workers_take_what_the_order_says_they_will(tmp_path, schedule):
    make_set(tmp_path)
    config = configured(
        tmp_path, num_workers=2, epochs=2, cpus_per_worker=0.5, milestones=[],
        curriculum={"schedule": schedule}, micro_batch=8, keep_every=1,
    )  # fmt: skip
    train.run(config)
    history = storage.read_json(str(tmp_path / "train/history.json"))["epochs"]
    assert [epoch["order"] for epoch in history] == expected_orders(config, workers=2)
    # The same images make the steps of one worker.
    assert expected_orders(config, workers=1) == expected_orders(config, workers=2)
    assert [epoch["workers"] for epoch in history] == [2, 2]
    printed = [[*train.order(config, 2, rank, 2)] for rank in (0, 1)]
    assert len(printed[0]) == len(printed[1])
    length = history[1]["images"]
    first = {position for rank in printed for position, _ in rank}
    assert len(first) == length == (IMAGES if schedule != "paced" else len(first))
    assert all(name.endswith(f"/{position:04d}.jpg") for position, name in printed[0])
    kept = [load_file(tmp_path / "train" / train.epoch_file(epoch)) for epoch in (1, 2)]
    final = load_file(tmp_path / "train/recognizer.safetensors")
    assert torch.equal(kept[1]["fc.weight"], final["fc.weight"])
    assert not torch.equal(kept[0]["fc.weight"], final["fc.weight"])


def test_a_loss_that_is_no_number_stops_all_workers_and_names_the_images(tmp_path):
    make_set(tmp_path)
    config = configured(tmp_path, num_workers=2, cpus_per_worker=0.5, lr=1e30, warmup_epochs=0)
    with pytest.raises(
        UserError, match=r"the loss is no number any more in epoch 1.*base/\d/\d{4}"
    ):
        train.run(config)
    found = storage.read_json(str(tmp_path / "train/diverged.json"))
    rows = train.find_set(config).rows
    whole = train.make_schedule(config.train, rows, config.seed).epoch(0)
    place = whole.tolist().index(found["positions"][0])
    assert place % 16 == 0
    assert found["positions"] == whole[place : place + 16].tolist()
    assert found["images"] == rows.names(np.array(found["positions"]))


def test_a_run_killed_inside_an_epoch_goes_on_with_other_workers(tmp_path):
    """Killed with one worker, it goes on with two: the rest of the epoch, and no image twice."""
    make_set(tmp_path)
    settings = {"checkpoint_steps": 1, "epochs": 2, "milestones": [], "micro_batch": 8}
    first = start_driver(configured(tmp_path, **settings))
    wait_for_a_checkpoint(tmp_path)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (tmp_path / "train/manifest.json").exists()
    config = configured(tmp_path, **settings, num_workers=2, cpus_per_worker=0.5)
    train.run(config)
    history = storage.read_json(str(tmp_path / "train/history.json"))["epochs"]
    assert [epoch["order"] for epoch in history] == expected_orders(config, workers=2)
    assert [epoch["images"] for epoch in history] == [IMAGES] * 2
    assert history[-1]["workers"] == 2


def test_trains_on_a_set_of_anyones(tmp_path, monkeypatch):
    make_set(tmp_path)
    monkeypatch.chdir(tmp_path)  # workers are elsewhere
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    paths = sorted((tmp_path / "assemble/parquet").iterdir())
    table = pa.concat_tables(pq.read_table(path) for path in paths)
    pq.write_table(table.select(["image", "label"]), folder / "train-00000-of-00001.parquet")
    config = configured(
        "run",
        set="set",
        epochs=1,
        milestones=[],
        ema=0.9,
        network="mobilefacenet",
    )
    manifest = train.run(config)
    assert manifest.counts == {"classes": CLASSES, "images": IMAGES, "epochs": 1}
    assert next(train.order(config, 1, 0, 1))[1].startswith("position ")
    (events,) = (tmp_path / "run/train/tensorboard").iterdir()
    assert b"epoch/accuracy" in events.read_bytes()
    with pytest.raises(UserError, match="holds no Parquet files; `raypipe convert"):
        train.run(configured(tmp_path / "other", set=str(tmp_path / "assemble/webdataset")))


def test_an_epoch_or_a_worker_that_is_not_there_is_refused(tmp_path):
    make_set(tmp_path)
    with pytest.raises(UserError, match="epoch 4 is not in 1 to 3"):
        next(train.order(configured(tmp_path), 4, 0, 1))
    with pytest.raises(UserError, match="rank 2 is not in 0 to 1"):
        next(train.order(configured(tmp_path), 1, 2, 2))


def test_an_undecodable_image_is_named(tmp_path):
    make_set(tmp_path, damaged=33)
    with pytest.raises(UserError, match="training set, position 33"):
        train.run(configured(tmp_path, max_failures=0))


def test_without_a_set_it_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="run `raypipe assemble`"):
        train.run(configured(tmp_path))


def test_workers_that_find_no_room_are_refused(tmp_path):
    make_set(tmp_path)
    # Eight CPUs hold six workers of 1.25 CPUs with what reads for them, and not seven.
    with pytest.raises(UserError, match=r"train: the cluster cannot hold .*: 8\.75 CPU needed, 8"):
        train.run(configured(tmp_path, num_workers=7))
