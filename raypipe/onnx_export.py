"""A recognizer as an ONNX model for insightface and onnxruntime."""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from raypipe import storage
from raypipe.errors import UserError
from raypipe.models.recognizers import load_network
from raypipe.recognizer import SIDE, open_recognizer
from raypipe.scratch import scratch

# Of insightface's export (recognition/arcface_torch/torch2onnx.py).
OPSET = 11
# Largest difference to the network in torch, as a share of the largest number of the embeddings.
# Measured: 3e-6 at most, from the order of additions.
TOLERANCE = 1e-4


class _RedFirst(nn.Module):
    """A network that wants blue first, for faces with red first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, faces: Tensor) -> Tensor:
        return self.network(faces.flip(1))


def export_onnx(weights: str, path: str) -> None:
    """Writes the recognizer of a weights file as an ONNX model, and checks that it is the same.

    The model takes float32 (N, 3, 112, 112), RGB in [-1, 1], N free, to (N, 512), not normalised:
    what insightface's ArcFaceONNX feeds. Before it is written, that class embeds random faces with
    it, in batches of other sizes than the export saw; the network in torch must say the same to
    within TOLERANCE.

    Args:
        weights: as `open_recognizer` takes them, but no ONNX.
        path: `.onnx` to write; it is whole or not there.

    Raises:
        UserError: where the weights are of no known recognizer, the file cannot be written, or the
            model computes something else.
    """
    if not path.endswith(".onnx"):
        raise UserError(f"{path}: expected a name that ends in .onnx")
    if weights.endswith(".onnx"):
        raise UserError(f"{weights}: is ONNX already; copy it")
    loaded = load_network(weights)
    with scratch() as folder:
        written = str(Path(folder) / "model.onnx")
        _export(_RedFirst(loaded.network) if loaded.bgr else loaded.network, written)
        wrong = _difference(weights, written)
        if not wrong <= TOLERANCE:  # also where it is no number
            raise UserError(
                f"{weights}: the ONNX model differs from the network by {wrong:.1g} of its largest "
                f"number, {TOLERANCE:g} is allowed; nothing was written"
            )
        storage.write_bytes(path, Path(written).read_bytes())


def _export(network: nn.Module, path: str) -> None:
    with warnings.catch_warnings():
        # The newer exporter needs onnxscript, which is no dependency.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            network.eval(),
            (torch.zeros(1, 3, SIDE, SIDE),),
            path,
            input_names=["input.1"],
            output_names=["embedding"],
            dynamic_axes={"input.1": {0: "N"}, "embedding": {0: "N"}},
            opset_version=OPSET,
            dynamo=False,
        )


def _difference(weights: str, path: str) -> float:
    """Largest difference of the embeddings of both files, as a share of the largest number."""
    coarse = torch.randint(0, 256, (5, 16, 16, 3), generator=torch.Generator().manual_seed(0))
    faces = coarse.to(torch.uint8).repeat_interleave(7, 1).repeat_interleave(7, 2)
    ours, model = open_recognizer(weights), open_recognizer(path)
    wrong, largest = 0.0, 0.0
    for part in (faces[:2], faces[2:]):
        expected = ours.embed(part)
        wrong = max(wrong, (model.embed(part) - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
    return wrong / largest
