"""Recognizers by name, for training, and by what a weights file holds, for everything else."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from raypipe.errors import UserError
from raypipe.models.iresnet import (
    EMBEDDING,
    from_ir_names,
    has_bn2,
    iresnet,
    is_ir,
    load_iresnet,
    shape_of,
)
from raypipe.models.loading import load_with_prefixes
from raypipe.models.mobilefacenet import MobileFaceNet, is_mobilefacenet, load_mobilefacenet


def make_recognizer(
    kind: Literal["iresnet", "mobilefacenet"], *, depth: str, width: int, se: bool, dropout: float
) -> nn.Module:
    """A freshly initialised network from faces (N, 3, 112, 112) to embeddings (N, 512).

    Args:
        kind: a MobileFaceNet has one size, arcface_torch's mbf, and takes no notice of the rest.
        depth, width, se, dropout: see `iresnet`.
    """
    if kind == "mobilefacenet":
        return MobileFaceNet("MobileFaceNet")
    return iresnet(depth, width=width, dropout=dropout, se=se)


@dataclass(frozen=True)
class Loaded:
    """A network with the weights of a file, in inference mode.

    Attributes:
        network: from float32 (N, 3, 112, 112) in [-1, 1] to float32 (N, 512), not normalised.
        name: for tables, such as "IResNet-50 SE", "IR-101" or "MobileFaceNet".
        bgr: whether the network wants blue first.
    """

    network: nn.Module
    name: str
    bgr: bool
    dimensions: int = EMBEDDING


def load_network(path: str) -> Loaded:
    """The recognizer that a file holds the weights of, told by their names and shapes.

    Known are arcface_torch's IResNet, which Vec2Face's and MagFace's files hold as well, that with
    the gates of HSFace's recipe, the IR networks of AdaFace, CVLface and face.evoLVe of up to 101
    layers, and arcface_torch's MobileFaceNets, in every wrapper that `load_state` knows.

    Of these only AdaFace's own files want blue first (its README); CVLface's, with names that begin
    with "net.", want red first (models/iresnet/configs there).

    Raises:
        UserError: where the weights are of another network, or `load_state` raises.
    """
    state, prefixes = load_with_prefixes(path)
    if is_mobilefacenet(state):
        mobile, size = load_mobilefacenet(state, path)
        return Loaded(mobile, size, bgr=False)
    if is_ir(state):
        renamed = from_ir_names(state)
        depth = shape_of(renamed, path).depth
        name = f"IR-{'101' if depth == '100' else depth}"  # what all three call it
        bgr = has_bn2(state) and "net." not in prefixes
        return Loaded(load_iresnet(renamed, path), name, bgr=bgr)
    if "layer1.0.conv1.weight" in state:
        shape = shape_of(state, path)
        name = f"IResNet-{shape.depth}{' SE' if shape.se else ''}"
        return Loaded(load_iresnet(state, path), name, bgr=False)
    raise UserError(
        f"{path}: weights of no recognizer that is known; expected an IResNet's (arcface_torch, "
        "HSFace, MagFace), an IR network's (AdaFace, CVLface, face.evoLVe) or a MobileFaceNet's"
    )
