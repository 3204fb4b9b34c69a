"""Embeds the images of verification sets on actors, with any recognizer."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import ray

from actors.verify import FlipEmbed
from jobs.progress import console
from jobs.stage import explain
from jobs.trainer import IN_ORDER
from raypipe.config.base import Pool
from raypipe.recognizer import SIDE


def embedded(
    weights: str, pool: Pool, actor: type[FlipEmbed], groups: pa.Table
) -> Iterator[tuple[np.ndarray, int]]:
    """Embeddings of groups of images in their order, float32 (n, D) each time, and how many had to
    be resized.

    Args:
        weights: file of a recognizer (`raypipe.recognizer.open_recognizer`).
        groups: what the actor takes, a row a model batch.

    Raises:
        UserError: where the recognizer cannot be opened, or an image not be read.
    """
    starts = range(0, len(groups), pool.batch_size)
    vectors = ray.data.from_arrow([groups.slice(i, pool.batch_size) for i in starts]).map_batches(
        actor,
        fn_constructor_kwargs={
            "weights": weights,
            "gpu": pool.num_gpus > 0,
            "threads": max(1, int(pool.num_cpus)),
        },
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=pool.min, max_size=max(pool.min, pool.max)),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
        memory=pool.memory,
        accelerator_type=pool.accelerator_type,
    )
    vectors.context.execution_options = IN_ORDER
    try:
        for table in vectors.iter_batches(batch_size=None, batch_format="pyarrow"):
            for group, resized in zip(table["embeddings"], table["resized"], strict=True):
                block = group.values
                yield block.flatten().to_numpy().reshape(len(block), -1), resized.as_py()
    except Exception as error:
        if mistake := explain("evaluate", error):
            raise mistake from None
        raise


def warn_of_resized(name: str, resized: int, images: int) -> None:
    """Says so, if images of a set were not of the size that the recognizer takes."""
    if resized:
        console.print(
            f"evaluate: {name}: {resized:,} of {images:,} images are not {SIDE}×{SIDE} and were "
            "scaled and cut; the numbers hold only if their faces are aligned",
            style="yellow",
        )
