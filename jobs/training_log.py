"""Losses of a running training, for TensorBoard and for the services that people watch."""

from collections.abc import Callable, Sequence
from typing import Any

from raypipe import storage
from raypipe.errors import UserError

FOLDER = "tensorboard"
_Write = Callable[[dict[str, float], int], Any]


def open_log(names: Sequence[str], root: str, settings: dict[str, Any]) -> _Write:
    """What takes metrics and the number of images they come after; on the first worker.

    MLflow and Weights & Biases are told where to send to by their own variables of the environment.

    Args:
        names: "tensorboard", "mlflow", "wandb".
        root: folder of the job; TensorBoard files go to `tensorboard` in it.
        settings: what the training is made with.

    Raises:
        UserError: where a package is not installed.
    """
    writers = [_OPEN[name](root, settings) for name in names]

    def write(metrics: dict[str, float], images: int) -> None:
        for writer in writers:
            writer(metrics, images)

    return write


def _tensorboard(root: str, settings: dict[str, Any]) -> _Write:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(storage.join(root, FOLDER), flush_secs=10)

    def write(metrics: dict[str, float], images: int) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, images)
        writer.flush()

    return write


def _mlflow(root: str, settings: dict[str, Any]) -> _Write:
    from ray.air.integrations.mlflow import setup_mlflow

    try:
        mlflow = setup_mlflow(
            config=settings, experiment_name="raypipe", create_experiment_if_not_exists=True
        )
    except RuntimeError as error:
        raise UserError(f"train.log: mlflow: {error}") from None
    return lambda metrics, images: mlflow.log_metrics(metrics, step=images)


def _wandb(root: str, settings: dict[str, Any]) -> _Write:
    from ray.air.integrations.wandb import setup_wandb

    try:
        run = setup_wandb(config=settings, project="raypipe", rank_zero_only=False)
    except RuntimeError as error:
        raise UserError(f"train.log: wandb: {error}") from None
    return lambda metrics, images: run.log(metrics, step=images)


_OPEN = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb}
