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
import pytest
import ray
from safetensors.torch import load_file

from jobs import train
from jobs.work import begin
from raypipe import storage
from raypipe.config import parse
from raypipe.errors import UserError
from raypipe.images import encode_jpeg
from raypipe.models.iresnet import iresnet
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
        "milestones": [2],
        "margin": 0.2,
    },
}


def configured(workspace, **changes):
    return parse(CONFIG | {"workspace": str(workspace), "train": CONFIG["train"] | changes}, "test")


def order_of_the_set():
    return hashlib.sha256(np.arange(IMAGES, dtype="<i8").tobytes()).hexdigest()


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
    assert {epoch["order"] for epoch in history} == {order_of_the_set()}
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
        for process in psutil.process_iter(["name", "cmdline"]):
            if "RayTrainWorker" in " ".join(process.info["cmdline"] or []):
                process.kill()
                killed.append(process.pid)

    thread = threading.Thread(target=kill_after_the_first_checkpoint, daemon=True)
    thread.start()
    manifest = train.run(configured(tmp_path))
    assert killed
    assert manifest.content_digest == undisturbed[1].content_digest
    history = storage.read_json(str(tmp_path / "train/history.json"))["epochs"]
    assert [epoch["epoch"] for epoch in history] == [1, 2, 3]


def test_a_killed_driver_resumes_from_its_checkpoint(undisturbed, tmp_path):
    make_set(tmp_path)
    config = configured(tmp_path)
    code = (
        "import sys; from jobs import train; from raypipe.config import Build;"
        "train.run(Build.model_validate_json(sys.argv[1]))"
    )
    address = ray.get_runtime_context().gcs_address
    first = subprocess.Popen(
        [sys.executable, "-c", code, config.model_dump_json()],
        env={**os.environ, "RAY_ADDRESS": address},
    )
    wait_for_a_checkpoint(tmp_path)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert not (tmp_path / "train/manifest.json").exists()
    assert train.run(config).content_digest == undisturbed[1].content_digest


def test_two_workers_share_the_set_and_stop_together_when_the_loss_is_no_number(tmp_path):
    make_set(tmp_path)
    manifest = train.run(configured(tmp_path, num_workers=2, epochs=1, cpus_per_worker=0.5))
    (epoch,) = storage.read_json(str(tmp_path / "train/history.json"))["epochs"]
    assert (epoch["images"], epoch["images_here"]) == (IMAGES, IMAGES // 2)
    assert manifest.counts["images"] == IMAGES
    storage.delete(str(tmp_path / "train"))
    with pytest.raises(UserError, match="the loss is no number any more in epoch 1"):
        train.run(configured(tmp_path, num_workers=2, lr=1e30, warmup_epochs=0))


def test_an_undecodable_image_is_named(tmp_path):
    make_set(tmp_path, damaged=33)
    with pytest.raises(UserError, match="training set, position 33"):
        train.run(configured(tmp_path, max_failures=0))


def test_without_a_set_it_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="run `raypipe assemble`"):
        train.run(configured(tmp_path))


def test_workers_that_find_no_room_are_refused(tmp_path):
    make_set(tmp_path)
    with pytest.raises(UserError, match="train: the cluster cannot hold"):
        train.run(configured(tmp_path, num_workers=20))
