"""What reads rows for a training, in processes of its own.

No part of the trainer: to import PyTorch and Ray Train takes a process 4 s of a core.
"""

from collections.abc import Iterator

import pyarrow as pa
import ray

from raypipe.train_rows import RowGroups

_ROWS = 1000  # that travel at once: 8 MB


def read(block: pa.Table, rows: ray.ObjectRef) -> Iterator[pa.Table]:
    """Images, labels and epochs of positions.

    Args:
        block: columns position and epoch.
        rows: a `RowGroups`.
    """
    found: RowGroups = ray.get(rows)
    table = found.read(block["position"].to_numpy(), ("image", "label"))
    table = table.append_column("epoch", block["epoch"])
    for start in range(0, len(table), _ROWS):
        yield table.slice(start, _ROWS)
