"""Differentiable estimators of attributes, for a configuration to name.

Each is a function of a weights file, or None, and a device, and returns a module from images (N, 3,
112, 112), RGB in [-1, 1], to values (N,).
"""

import importlib

import torch
from torch import Tensor, nn

from raypipe.config.attributes import AttributeConfig
from raypipe.errors import UserError, first_line
from raypipe.models.face_attributes import ATTRIBUTES, FaceAttributes
from raypipe.models.iresnet import load_iresnet
from raypipe.models.loading import load_state, shipped
from raypipe.node_cache import local

_SHIPPED = "face_attributes.safetensors"


def load(config: AttributeConfig, device: str | torch.device) -> nn.Module:
    """The estimator that a configuration names, on a device, in inference mode.

    Raises:
        UserError: where there is no such function, or it returns something else than a module; and
            whatever the function raises.
    """
    module, _, name = config.estimator.partition(":")
    where = f"attribute {config.name!r}: estimator {config.estimator!r}"
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{where} cannot be imported ({first_line(error)})") from error
    estimator = function(local(config.weights) if config.weights else None, device)
    if not isinstance(estimator, nn.Module):
        raise UserError(
            f"{where} returns a {type(estimator).__name__}; expected a torch.nn.Module from images "
            "(N, 3, 112, 112) to values (N,)"
        )
    return estimator.to(device).eval().requires_grad_(False)


class _Norm(nn.Module):
    """The length of a network's features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).norm(dim=1)


def magface(weights: str | None, device: str | torch.device) -> nn.Module:
    """Quality as the length of a MagFace feature (Meng et al., CVPR 2021).

    For an IResNet that is fed as ArcFace's are, such as Vec2Face's magface-r100-glint360k.pth; the
    goals published for it are 27 (Vec2Face) and 24 (Vec2Face+).

    Raises:
        UserError: where no weights are named, or they are no IResNet's.
    """
    if weights is None:
        raise UserError("estimator magface needs weights: name an IResNet's file")
    network = load_iresnet(load_state(weights), weights)
    return _Norm(network).to(device)


class _One(nn.Module):
    """One of the attributes of a `FaceAttributes`."""

    def __init__(self, weights: str | None, name: str) -> None:
        super().__init__()
        self.network = FaceAttributes.from_checkpoint(weights or shipped(_SHIPPED))
        self.place = ATTRIBUTES.index(name)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[:, self.place]


def face_quality(weights: str | None, device: str | torch.device) -> nn.Module:
    """How clearly a face is there, as dlib's detector scores it: mostly between −1 and 2 for the
    generated faces that what ships was trained on (its card is in raypipe/weights)."""
    return _One(weights, "quality").to(device)


def face_yaw(weights: str | None, device: str | torch.device) -> nn.Module:
    """Yaw in degrees, positive where the face looks to the right as the viewer sees it."""
    return _One(weights, "yaw").to(device)


def face_pitch(weights: str | None, device: str | torch.device) -> nn.Module:
    """Pitch in degrees, positive where the face looks down; the roughest of the three."""
    return _One(weights, "pitch").to(device)
