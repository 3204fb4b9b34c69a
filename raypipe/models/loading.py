"""Weights from files: safetensors or PyTorch checkpoints, and nothing in them is ever executed."""

import argparse
import io
import json
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from raypipe import storage
from raypipe.errors import UserError, first_line
from raypipe.node_cache import local

# Under which key published checkpoints keep the network: AdaFace and Lightning, arcface_torch's
# checkpoint_gpu_*.pt, Vec2Face. arcface_torch's model.pt is bare.
_WRAPPERS = ("state_dict", "state_dict_backbone", "model_vec2face")
# What DistributedDataParallel, Lightning (AdaFace), MagFace and CVLface put before every name.
# MagFace's are "features.module." or "module.features.": its trainer wraps one or the other.
_PREFIXES = ("module.", "model.", "features.module.", "features.", "net.")
# The first layer of MagFace's network. Only it tells the prefix "features." from the names of an
# IResNet's last layer; beside it the files may hold the head.
_FIRST = "conv1.weight"
# Counts training steps; no result depends on it, and some files leave it out.
_OPTIONAL = "num_batches_tracked"


def shipped(name: str) -> str:
    """Path of a weights file that ships with raypipe, for example "dlib_resnet_v1.safetensors"."""
    return str(Path(__file__).parents[1] / "weights" / name)


def _parse(path: str) -> object:
    try:
        data = storage.read_bytes(local(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    try:
        if path.endswith(".safetensors"):
            return load_safetensors(data)
        # Checkpoints of training scripts keep their arguments: a Namespace, which does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        # Whatever a broken or hostile file makes the parsers raise, the file is at fault.
        raise UserError(
            f"{path}: not weights that can be loaded safely ({first_line(error)}); "
            "expected safetensors, or a PyTorch file that holds nothing but tensors"
        ) from error


def load_state(path: str) -> dict[str, Tensor]:
    """Name to tensor of a weights file, on the CPU.

    Unwraps what published checkpoints put around a network: an outer dictionary ("state_dict",
    "state_dict_backbone", "model_vec2face") and prefixes ("module.", "model.", "features.module.",
    "module.features.", "net."); where only some names have the prefix of a network ("model." or
    MagFace's), the others (the head) are left out.

    Args:
        path: path or URI, which is fetched once a node; `.safetensors`, anything else is read as a
            PyTorch file.

    Raises:
        UserError: where the file is missing, broken, or holds code or something else than tensors.
    """
    return load_with_prefixes(path)[0]


def load_with_prefixes(path: str) -> tuple[dict[str, Tensor], list[str]]:
    """What `load_state` returns, and the prefixes that were taken off, outermost first."""
    content = _parse(path)
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not names and tensors")
    state = {str(name): value for name, value in content.items()}
    prefixes = []
    for prefix in _PREFIXES:
        inner = {name: value for name, value in state.items() if name.startswith(prefix)}
        whole = len(inner) == len(state) and prefix != "features."
        if inner and (whole or prefix == "model." or prefix + _FIRST in state):
            state = {name.removeprefix(prefix): value for name, value in inner.items()}
            prefixes.append(prefix)
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
    if not state:
        raise UserError(f"{path}: holds no tensors")
    return state, prefixes


def metadata(path: str) -> dict[str, str]:
    """What a `.safetensors` file that `load_state` accepts says of itself beside the tensors."""
    path = local(path)
    length = int.from_bytes(storage.read_bytes(path, 8), "little")
    return json.loads(storage.read_bytes(path, 8 + length)[8:]).get("__metadata__", {})


def load_into(module: nn.Module, path: str) -> None:
    """Copies the weights of a file into a network; half precision becomes the network's own.

    Raises:
        UserError: where a name is missing, unknown, or has another shape; the line names the first
            such name and both shapes. Also whatever `load_state` raises.
    """
    state = load_state(path)
    check_state(module, state, path)
    module.load_state_dict(state, strict=False)


def check_state(module: nn.Module, state: dict[str, Tensor], path: str) -> None:
    """Raises UserError, as `load_into` does, where the weights of a file do not fit a network."""
    wanted = module.state_dict()
    problems = []
    for name, tensor in wanted.items():
        if name in state and state[name].shape != tensor.shape:
            problems.append(
                f"{name!r} has shape {list(state[name].shape)} in the file "
                f"and {list(tensor.shape)} in the network"
            )
        elif name not in state and not name.endswith(_OPTIONAL):
            problems.append(
                f"{name!r} is not in the file and has shape {list(tensor.shape)} in the network"
            )
    problems += [
        f"{name!r} has shape {list(tensor.shape)} in the file and is not in the network"
        for name, tensor in state.items()
        if name not in wanted
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(
            f"{path}: weights of another network than {type(module).__name__}: {problems[0]}{more}"
        )
