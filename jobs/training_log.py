"""Losses of a running training, for TensorBoard and for the services that people watch."""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from ray.util.metrics import Gauge

from raypipe import storage
from raypipe.errors import UserError

FOLDER = "tensorboard"
# Runs of the services that a training goes on in when it goes on itself.
RUNS = "tracking.json"
_SECONDS, _REMOTE_SECONDS = 10, 60  # between what TensorBoard gets to see
_Write = Callable[[dict[str, float], int], Any]
_Close = Callable[[], Any]

logger = logging.getLogger("raypipe.train")


class Log:
    """Takes metrics on the first worker."""

    def __init__(self, names: Sequence[str], root: str, settings: dict[str, Any]) -> None:
        """Opens what is named: "tensorboard", "mlflow", "wandb"; Ray's metrics are sent always.

        MLflow and Weights & Biases are told where to send to by their own variables of the
        environment. A training that goes on stays one run there.

        Args:
            root: folder of the job; TensorBoard files go to `tensorboard` in it.
            settings: what the training is made with.

        Raises:
            UserError: where a package is not installed, or a service does not answer.
        """
        path = storage.join(root, RUNS)
        runs = storage.read_json(path) if storage.exists(path) else {}
        before = dict(runs)
        self._open = {"ray": _ray()}
        for name in names:
            try:
                self._open[name] = _OPEN[name](root, settings, runs)
            # Of any class, some of which do not travel from a worker to the driver.
            except Exception as error:
                raise UserError(f"train.log: {name}: {_line(error)}") from None
        if runs != before:
            storage.write_json(path, runs)

    def write(self, metrics: dict[str, float], images: int) -> None:
        """Sends metrics, with the number of images that they come after.

        What fails gets no more: days of training do not end for a curve.
        """
        for name, (write, _) in list(self._open.items()):
            try:
                write(metrics, images)
            except Exception as error:
                logger.warning("train: %s gets no more losses: %s", name, _line(error))
                del self._open[name]

    def close(self) -> None:
        """Waits until all is written: it is on the way in threads that end with the process."""
        for name, (_, close) in self._open.items():
            try:
                close()
            except Exception as error:
                logger.warning("train: %s was not closed: %s", name, _line(error))


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _ray() -> tuple[_Write, _Close]:
    """For the dashboard (deploy/grafana.json): raypipe_train_loss and so on."""
    gauges: dict[str, Gauge] = {}

    def write(metrics: dict[str, float], images: int) -> None:
        for name, value in metrics.items():
            if name not in gauges:
                gauges[name] = Gauge(f"raypipe_train_{name.replace('/', '_')}", "of the training")
            gauges[name].set(value)

    return write, lambda: None


def _tensorboard(
    root: str, settings: dict[str, Any], runs: dict[str, str]
) -> tuple[_Write, _Close]:
    from tensorboardX import SummaryWriter
    from tensorboardX.record_writer import register_writer_factory

    folder = storage.join(root, FOLDER)
    remote = storage.is_uri(folder)
    if remote:
        # In place of tensorboardX's own, which need packages that know nothing of our settings.
        register_writer_factory(folder.partition(":")[0], _Objects())
    writer = SummaryWriter(folder, flush_secs=_REMOTE_SECONDS if remote else _SECONDS)

    def write(metrics: dict[str, float], images: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, images)

    return write, writer.close


class _Objects:
    """Opens files of tensorboardX in an object store."""

    def directory_check(self, path: str) -> None:
        """There are no folders to make."""

    def open(self, path: str) -> "_Object":
        """A file to write."""
        return _Object(path)


class _Object:
    """A file whose bytes are in memory, and that is put whole, a few MB at most, at every flush."""

    def __init__(self, path: str) -> None:
        self._path, self._data = path, bytearray()

    def write(self, data: bytes) -> None:
        self._data += data

    def flush(self) -> None:
        storage.write_bytes(self._path, bytes(self._data))

    close = flush


def _mlflow(root: str, settings: dict[str, Any], runs: dict[str, str]) -> tuple[_Write, _Close]:
    from ray.air.integrations.mlflow import setup_mlflow

    # With MLflow's seven a server that is not there is waited for for four minutes; 14 s.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    if "mlflow" in runs:
        os.environ["MLFLOW_RUN_ID"] = runs["mlflow"]
    mlflow = setup_mlflow(
        config=settings,
        experiment_name="raypipe",
        run_name=root,
        create_experiment_if_not_exists=True,
    )
    runs["mlflow"] = mlflow.active_run().info.run_id
    return lambda metrics, images: mlflow.log_metrics(metrics, step=images), mlflow.end_run


def _wandb(root: str, settings: dict[str, Any], runs: dict[str, str]) -> tuple[_Write, _Close]:
    from ray.air.integrations.wandb import setup_wandb

    run = setup_wandb(
        config=settings,
        project="raypipe",
        trial_name=root,
        trial_id=runs.get("wandb"),
        rank_zero_only=False,
    )
    runs["wandb"] = run.id
    return lambda metrics, images: run.log(metrics, step=images), run.finish


_OPEN = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
