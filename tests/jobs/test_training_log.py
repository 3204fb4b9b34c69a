"""Losses in the real clients of MLflow and Weights & Biases, both without a server."""

import re
import shutil
import socket

import pytest

from jobs.training_log import RUNS, Log
from raypipe import storage
from raypipe.errors import UserError

SETTINGS = {"lr": 0.1, "curriculum": {"schedule": "paced"}}


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """MLflow that writes to a folder."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlruns")
    return mlflow


def write(name, root, *losses, images=10):
    log = Log([name], root, SETTINGS)
    for loss in losses:
        log.write({"loss": loss}, images)
        images += 10
    log.close()


def test_a_training_that_goes_on_stays_one_run_of_mlflow(mlflow, tmp_path):
    root = str(tmp_path / "train")
    write("mlflow", root, 9.0, 8.0)
    write("mlflow", root, 7.0, images=30)
    (run,) = mlflow.search_runs(experiment_names=["raypipe"], output_format="list")
    assert run.info.run_id == storage.read_json(f"{root}/{RUNS}")["mlflow"]
    assert (run.info.run_name, run.info.status) == (root, "FINISHED")
    assert run.data.params == {"lr": "0.1", "curriculum/schedule": "paced"}
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(10, 9.0), (20, 8.0), (30, 7.0)]
    other = str(tmp_path / "other")
    write("mlflow", other, 9.0)
    assert len(mlflow.search_runs(experiment_names=["raypipe"], output_format="list")) == 2


def test_a_service_that_goes_away_stops_no_training(mlflow, tmp_path, caplog):
    root = str(tmp_path / "train")
    log = Log(["mlflow", "tensorboard"], root, SETTINGS)
    shutil.rmtree(tmp_path / "mlruns")
    log.write({"loss": 9.0}, 10)
    log.write({"loss": 8.0}, 20)
    log.close()
    assert caplog.text.count("train: mlflow gets no more losses") == 1
    (events,) = (tmp_path / "train/tensorboard").iterdir()
    assert events.read_bytes().count(b"loss") == 2


def test_a_service_that_does_not_answer_is_named(tmp_path, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        with pytest.raises(UserError, match=r"^train\.log: mlflow: .*refused.*$"):
            Log(["mlflow"], str(tmp_path), SETTINGS)


@pytest.mark.slow
def test_a_training_that_goes_on_stays_one_run_of_wandb(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    root = str(tmp_path / "train")
    write("wandb", root, 9.0, 8.0)
    write("wandb", root, 7.0, images=30)
    run = storage.read_json(f"{root}/{RUNS}")["wandb"]
    files = sorted(tmp_path.glob(f"wandb/offline-run-*-{run}/run-{run}.wandb"))
    # Protocol buffers: key and value as text.
    losses = [re.findall(rb"\x12\x04loss\x82\x01\x01(\d)", file.read_bytes()) for file in files]
    assert [set(of_file) for of_file in losses] == [{b"9", b"8"}, {b"7"}]
