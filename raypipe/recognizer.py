"""A trained recognizer, and what it makes of faces."""

import torch
from torch import Tensor

from raypipe.models.iresnet import IResNet, iresnet
from raypipe.models.loading import load_into

SIDE = 112


def load_recognizer(path: str, *, depth: str, width: int) -> IResNet:
    """A network with the weights of a file, ready to embed.

    Raises:
        UserError: where the file holds the weights of another network.
    """
    network = iresnet(depth, width=width)
    load_into(network, path)
    return network.eval()


def normalised(images: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W) in [-1, 1], (x / 255 - 0.5) / 0.5 as published."""
    return images.permute(0, 3, 1, 2).float().contiguous() / 127.5 - 1


@torch.inference_mode()
def flip_sum(network: IResNet, images: Tensor) -> Tensor:
    """f(image) + f(mirrored image), as all published verification numbers are computed.

    Args:
        images: uint8 (N, 112, 112, 3), RGB, on the network's device.

    Returns:
        float32 (N, 512), not normalised.
    """
    faces = normalised(images)
    return network(faces) + network(faces.flip(3))
