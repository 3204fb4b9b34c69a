"""Embedders: aligned faces to vectors, behind one interface."""

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from raypipe.config.embed import EmbedderConfig
from raypipe.models import dlib_resnet, iresnet
from raypipe.models.arcface_onnx import ArcFaceModel
from raypipe.models.loading import load_into, shipped

SIZE = 112  # pixels; every embedder takes the ArcFace crop


class Embedder(Protocol):
    """Turns aligned faces into vectors.

    Attributes:
        dimension: length D of a vector.
        weights_path: file the weights were read from.
    """

    dimension: int
    weights_path: str

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeds one model batch.

        Args:
            images: uint8 (N, 112, 112, 3), RGB, N at least 1.

        Returns:
            float32 (N, D), as the network gives it, not normalised.
        """
        ...


class TorchEmbedder:
    """A PyTorch network in inference mode; float32 on a CPU, `dtype` on a GPU."""

    def __init__(
        self,
        network: nn.Module,
        prepare: Callable[[Tensor], Tensor],
        *,
        dimension: int,
        weights_path: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.dimension = dimension
        self.weights_path = weights_path
        self._device = device
        self._dtype = dtype
        self.prepare = prepare
        self.network = network.eval().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeds one model batch: uint8 (N, 112, 112, 3) RGB to float32 (N, D), not normalised."""
        batch = torch.from_numpy(images)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        low_precision = self._device.type == "cuda" and self._dtype != torch.float32
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, self._dtype, enabled=low_precision),
        ):
            prepared = self.prepare(batch).contiguous(memory_format=torch.channels_last)
            return self.network(prepared).float().cpu().numpy()


def _to_unit_range(images: Tensor) -> Tensor:
    """uint8 (N, 112, 112, 3) to float32 (N, 3, 112, 112) in [-1, 1], as in arcface_torch."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


class InsightFaceEmbedder:
    """An ONNX recognition model through insightface's own class, on a GPU where there is one."""

    def __init__(self, path: str, device: str | None) -> None:
        from insightface.model_zoo.onnxruntime_utils import get_default_providers

        cpu = ["CPUExecutionProvider"]
        self._model = ArcFaceModel(path, cpu if device == "cpu" else get_default_providers())
        self.dimension = self._model.dimensions
        self.weights_path = path

    def embed(self, images: np.ndarray) -> np.ndarray:
        """Embeds one model batch: uint8 (N, 112, 112, 3) RGB to float32 (N, D), not normalised."""
        return self._model.embed(images)


def open_embedder(config: EmbedderConfig, device: str | None = None) -> Embedder:
    """Loads the embedder a configuration asks for.

    Args:
        config: kind, weights and network.
        device: "cpu", "cuda", "cuda:1", ...; none: a GPU where this process sees one.

    Raises:
        UserError: where the weights are missing, unsafe, or of another network.
    """
    if config.kind == "insightface":
        assert config.weights is not None  # the configuration checks it
        return InsightFaceEmbedder(config.weights, device)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network: nn.Module
    if config.kind == "dlib":
        weights = config.weights or shipped("dlib_resnet_v1.safetensors")
        network = dlib_resnet.DlibResNet()
        prepare: Callable[[Tensor], Tensor] = dlib_resnet.ChipFromCrop().to(place)
        dimension, dtype = dlib_resnet.EMBEDDING, torch.float32
    else:
        assert config.weights is not None
        weights = config.weights
        network = iresnet.iresnet(config.depth, width=config.width)
        prepare = _to_unit_range
        dimension, dtype = iresnet.EMBEDDING, getattr(torch, config.dtype)
    load_into(network, weights)
    return TorchEmbedder(
        network,
        prepare,
        dimension=dimension,
        weights_path=weights,
        device=place,
        dtype=dtype,
    )


def flip_sum(embedder: Embedder, images: np.ndarray) -> np.ndarray:
    """f(x) + f(mirrored x), the embedding of the LFW protocol as insightface evaluates it.

    Args:
        embedder: any embedder.
        images: uint8 (N, 112, 112, 3), RGB.

    Returns:
        float32 (N, D), the plain sum of the two raw vectors.
    """
    return embedder.embed(images) + embedder.embed(np.ascontiguousarray(images[:, :, ::-1]))
