"""What the tests of the networks share."""

import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch

INTEGERS = ("num_batches_tracked", "position_ids")


def weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights as tests/data/parity/README.md defines them."""
    state = {}
    for name, shape in shapes.items():
        random = np.random.RandomState(zlib.crc32(("dev:" + name).encode()))
        noise = np.asarray(random.standard_normal(shape), dtype=np.float32)
        if name.endswith("num_batches_tracked"):
            value = np.zeros(shape)
        elif name.endswith("position_ids"):
            value = np.arange(shape[-1]).reshape(shape)
        elif name.endswith("running_mean"):
            value = 0.05 * noise
        elif name.endswith("running_var"):
            value = 1 + 0.1 * np.abs(noise)
        elif noise.ndim >= 2:
            value = noise / np.sqrt(np.prod(shape[1:]))
        else:
            value = 1 + 0.1 * noise if name.endswith("weight") else 0.05 * noise
        if name.endswith("bn3.weight"):
            value = value * 0.2
        state[name] = torch.from_numpy(
            np.asarray(value, np.int64 if name.endswith(INTEGERS) else np.float32)
        )
    return state


@pytest.fixture(scope="session")
def formula_weights() -> Callable[[dict[str, list[int]]], dict[str, torch.Tensor]]:
    """Function: shapes of a state dict to the weights that the parity cases were made of."""
    return weights
