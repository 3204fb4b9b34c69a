"""Losses of a running training, for TensorBoard and for the services that people watch."""

from collections.abc import Callable, Sequence
from typing import Any

from ray.util.metrics import Gauge

from raypipe import storage
from raypipe.errors import UserError

FOLDER = "tensorboard"
_SECONDS, _REMOTE_SECONDS = 10, 60  # between what TensorBoard gets to see
_Write = Callable[[dict[str, float], int], Any]
_Close = Callable[[], Any]


class Log:
    """Takes metrics on the first worker."""

    def __init__(self, names: Sequence[str], root: str, settings: dict[str, Any]) -> None:
        """Opens what is named: "tensorboard", "mlflow", "wandb"; Ray's metrics are sent always.

        MLflow and Weights & Biases are told where to send to by their own variables of the
        environment.

        Args:
            root: folder of the job; TensorBoard files go to `tensorboard` in it.
            settings: what the training is made with.

        Raises:
            UserError: where a package is not installed.
        """
        self._open = [_ray(), *(_OPEN[name](root, settings) for name in names)]

    def write(self, metrics: dict[str, float], images: int) -> None:
        """Sends metrics, with the number of images that they come after."""
        for write, _ in self._open:
            write(metrics, images)

    def close(self) -> None:
        """Waits until all is written: it is on the way in threads that end with the process."""
        for _, close in self._open:
            close()


def _ray() -> tuple[_Write, _Close]:
    """For the dashboard (deploy/grafana.json): raypipe_train_loss and so on."""
    gauges: dict[str, Gauge] = {}

    def write(metrics: dict[str, float], images: int) -> None:
        for name, value in metrics.items():
            if name not in gauges:
                gauges[name] = Gauge(f"raypipe_train_{name.replace('/', '_')}", "of the training")
            gauges[name].set(value)

    return write, lambda: None


def _tensorboard(root: str, settings: dict[str, Any]) -> tuple[_Write, _Close]:
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


def _mlflow(root: str, settings: dict[str, Any]) -> tuple[_Write, _Close]:
    from ray.air.integrations.mlflow import setup_mlflow

    try:
        mlflow = setup_mlflow(
            config=settings, experiment_name="raypipe", create_experiment_if_not_exists=True
        )
    except RuntimeError as error:
        raise UserError(f"train.log: mlflow: {error}") from None
    return lambda metrics, images: mlflow.log_metrics(metrics, step=images), mlflow.end_run


def _wandb(root: str, settings: dict[str, Any]) -> tuple[_Write, _Close]:
    from ray.air.integrations.wandb import setup_wandb

    try:
        run = setup_wandb(config=settings, project="raypipe", rank_zero_only=False)
    except RuntimeError as error:
        raise UserError(f"train.log: wandb: {error}") from None
    return lambda metrics, images: run.log(metrics, step=images), run.finish


_OPEN = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
