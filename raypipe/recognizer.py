"""Recognizers of anyone's: what a weights file or an ONNX model makes of faces."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from raypipe.errors import UserError
from raypipe.models.arcface_onnx import ArcFaceModel
from raypipe.models.recognizers import load_network

SIDE = 112


def normalised(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1], (x / 255 - 0.5) / 0.5 as published."""
    return images.permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


class Recognizer:
    """A recognizer on a device, whatever file it came from.

    Attributes:
        name: of the network, for tables: "IResNet-50", "MobileFaceNet", "w600k_r50.onnx".
        dimensions: length of an embedding.
    """

    def __init__(
        self, name: str, dimensions: int, device: str, function: Callable[[Tensor], Tensor]
    ) -> None:
        """`function` takes uint8 (N, 112, 112, 3), RGB, on the device, to float32 (N, D)."""
        self.name, self.dimensions = name, dimensions
        self._device, self._function = torch.device(device), function

    @torch.inference_mode()
    def embed(self, images: Tensor) -> Tensor:
        """Embeddings of faces.

        Args:
            images: uint8 (N, 112, 112, 3), RGB, N at least 1, in CPU memory or on the device.

        Returns:
            float32 (N, dimensions) on the device, as the network gives them, not normalised.
        """
        return self._function(images.to(self._device))


def open_recognizer(path: str, device: str = "cpu") -> Recognizer:
    """The recognizer of a file, ready to embed.

    An ONNX model is fed as insightface's ArcFaceONNX feeds it: RGB, in [-1, 1] unless the graph
    scales by itself. MagFace's own release was trained on BGR in [0, 1], which its file does not
    say; it is fed as all others are.

    Args:
        path: path or URI, which is fetched once a node; `.onnx`, anything else holds weights
            (`load_network`).
        device: "cpu", "cuda", "cuda:1", ...

    Raises:
        UserError: where the file is missing or broken, is no recognizer of 112×112 faces, or is
            ONNX for a GPU that onnxruntime cannot use.
    """
    if path.endswith(".onnx"):
        model = ArcFaceModel(path, _providers(path, torch.device(device)))

        def run(images: Tensor) -> Tensor:
            return torch.from_numpy(model.embed(images.cpu().numpy())).to(images.device)

        return Recognizer(model.name, model.dimensions, device, run)
    loaded = load_network(path)
    network = loaded.network.to(device)

    def forward(images: Tensor) -> Tensor:
        return network(normalised(images.flip(3) if loaded.bgr else images))

    return Recognizer(loaded.name, loaded.dimensions, device, forward)


def _providers(path: str, device: torch.device) -> list[Any]:
    """What onnxruntime is to run a model with."""
    if device.type == "cpu":
        return ["CPUExecutionProvider"]
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError(
            f"{path}: this onnxruntime cannot use a GPU; install raypipe's extra gpu or use the CPU"
        )
    return [("CUDAExecutionProvider", {"device_id": device.index or 0}), "CPUExecutionProvider"]


def flip_sum(recognizer: Recognizer, images: Tensor) -> Tensor:
    """f(image) + f(mirrored image), as all published verification numbers are computed.

    Args:
        images: uint8 (N, 112, 112, 3), RGB, in CPU memory or on the recognizer's device.

    Returns:
        float32 (N, dimensions) on the recognizer's device, not normalised.
    """
    return recognizer.embed(images) + recognizer.embed(images.flip(2))
