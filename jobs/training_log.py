"""Losses of a running training, for TensorBoard and for the services that people watch."""

from collections.abc import Callable, Sequence
from typing import Any

from raypipe import storage
from raypipe.errors import UserError

FOLDER = "tensorboard"
_Write = Callable[[dict[str, float], int], Any]
_Close = Callable[[], Any]


class Log:
    """Takes metrics on the first worker."""

    def __init__(self, names: Sequence[str], root: str, settings: dict[str, Any]) -> None:
        """Opens what is named: "tensorboard", "mlflow", "wandb".

        MLflow and Weights & Biases are told where to send to by their own variables of the
        environment.

        Args:
            root: folder of the job; TensorBoard files go to `tensorboard` in it.
            settings: what the training is made with.

        Raises:
            UserError: where a package is not installed.
        """
        self._open = [_OPEN[name](root, settings) for name in names]

    def write(self, metrics: dict[str, float], images: int) -> None:
        """Sends metrics, with the number of images that they come after."""
        for write, _ in self._open:
            write(metrics, images)

    def close(self) -> None:
        """Waits until all is written: it is on the way in threads that end with the process."""
        for _, close in self._open:
            close()


def _tensorboard(root: str, settings: dict[str, Any]) -> tuple[_Write, _Close]:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(storage.join(root, FOLDER), flush_secs=10)

    def write(metrics: dict[str, float], images: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, images)

    return write, writer.close


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
