"""IResNet: the recognition network of ArcFace, with the names and shapes of the published weights.

He et al. 2016 with the improved residual unit of Deng et al., "ArcFace" (CVPR 2019), section 3.1:
no activation after the addition, stride in the block's second convolution. Layout and
initialisation as in insightface (recognition/arcface_torch/backbones/iresnet.py) and in Vec2Face,
whose checkpoints hold the same names. AdaFace, CVLface and face.evoLVe have the same network under
other names and with another shortcut in the first stage; `from_ir_names` brings their weights here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from raypipe.errors import UserError
from raypipe.models.loading import check_state

EMBEDDING = 512

BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "10": (1, 1, 1, 1),  # not published: the shallowest net of this shape, for CPUs
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 14, 3),
    "100": (3, 13, 30, 3),
    "152": (3, 8, 36, 3),  # Vec2Face, SOTA-Face-Recognition-Train-and-Test and face.evoLVe
    "200": (6, 26, 60, 6),
}


class ChannelGate(nn.Module):
    """Squeeze and excitation (Hu et al. 2018): scales channels (N, C, H, W) by a sigmoid of their
    means, through a layer of C / 16 channels, at least one; no biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(means))))


class Block(nn.Module):
    """Improved residual unit: BN, conv 3×3, BN, PReLU, strided conv 3×3, BN; plus the shortcut.

    The shortcut of a strided block is a strided 1×1 convolution with BN, or, `pooled`, every
    stride-th pixel as it is. With `se` the shortcut then goes through a gate: there, not in the
    residual as in the paper of squeeze and excitation, the recipe of HSFace has it.
    """

    def __init__(
        self, channels_in: int, channels: int, stride: int, *, se: bool, pooled: bool
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module | None = None
        if stride != 1 and pooled:
            self.downsample = nn.MaxPool2d(1, stride)
        elif stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.attn = ChannelGate(channels) if se else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        if self.downsample is not None:
            x = self.downsample(x)
        return y + (x if self.attn is None else self.attn(x))


class IResNet(nn.Module):
    """Face (N, 3, 112, 112) in [-1, 1], RGB, to an embedding (N, 512), not normalised.

    Under autocast the convolutions run in the low precision, and the last linear layer and batch
    norm in float32, as published; the embedding is then float32.
    """

    def __init__(
        self,
        blocks: tuple[int, int, int, int],
        width: int,
        *,
        dropout: float = 0.0,
        se: bool = False,
        pooled: bool = False,
    ) -> None:
        """`se`: a gate in the first block of every stage; `pooled`: that of the first stage, which
        has as many channels as its input, has no convolution in its shortcut (AdaFace)."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.layer1 = _stage(width, width, blocks[0], se=se, pooled=pooled)
        self.layer2 = _stage(width, 2 * width, blocks[1], se=se)
        self.layer3 = _stage(2 * width, 4 * width, blocks[2], se=se)
        self.layer4 = _stage(4 * width, 8 * width, blocks[3], se=se)
        self.bn2 = nn.BatchNorm2d(8 * width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8 * width * 7 * 7, EMBEDDING)
        self.features = nn.BatchNorm1d(EMBEDDING)
        # The scale of the last batch norm would only undo what the head normalises away.
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.fc(x.float()))


def _stage(
    channels_in: int, channels: int, blocks: int, *, se: bool, pooled: bool = False
) -> nn.Sequential:
    others = (Block(channels, channels, 1, se=False, pooled=False) for _ in range(blocks - 1))
    return nn.Sequential(Block(channels_in, channels, 2, se=se, pooled=pooled), *others)


def iresnet(depth: str, *, width: int = 64, dropout: float = 0.0, se: bool = False) -> IResNet:
    """A freshly initialised IResNet.

    Args:
        depth: "18", "34", "50", "100", "152" or "200" as published, or "10" (one block a stage, for
            CPUs).
        width: planes of the first stage; the others have 2, 4 and 8 times as many. Published: 64.
        dropout: probability before the last linear layer (arcface_torch 0, Vec2Face 0.4).
        se: mode="se" of SOTA-Face-Recognition-Train-and-Test, the recipe of HSFace.
    """
    return IResNet(BLOCKS[depth], width, dropout=dropout, se=se)


def _rows(weight: Tensor) -> int:
    """Rows of a weight; 1 where it has none, for `check_state` to refuse."""
    return len(weight) if weight.ndim and len(weight) else 1


class Shape(NamedTuple):
    """What tells an IResNet from another."""

    depth: str
    width: int
    se: bool
    pooled: bool


def shape_of(state: dict[str, Tensor], path: str) -> Shape:
    """The shape of the IResNet that weights are of, by their names; `path` is for the error.

    Blocks are counted: what Vec2Face's code calls "200" has those of arcface_torch's 100.

    Raises:
        UserError: where they are of no IResNet.
    """
    names = [
        [name for name in state if name.startswith(f"layer{k}.") and name.endswith(".conv1.weight")]
        for k in (1, 2, 3, 4)
    ]
    blocks = tuple(map(len, names))
    depths = [depth for depth, published in BLOCKS.items() if published == blocks]
    if not depths or "conv1.weight" not in state:
        raise UserError(f"{path}: not an IResNet: {blocks} blocks in its four stages")
    return Shape(
        depths[0],
        _rows(state["conv1.weight"]),
        se="layer1.0.attn.fc1.weight" in state,
        pooled="layer1.0.downsample.0.weight" not in state,
    )


def load_iresnet(state: dict[str, Tensor], path: str) -> IResNet:
    """The IResNet that weights are of, with these weights, in inference mode.

    Raises:
        UserError: where they are of no IResNet; the line begins with `path`.
    """
    shape = shape_of(state, path)
    network = IResNet(BLOCKS[shape.depth], shape.width, se=shape.se, pooled=shape.pooled)
    check_state(network, state, path)
    network.load_state_dict(state, strict=False)
    return network.eval()


_IR_NAMES = {
    "input_layer.0": "conv1",
    "input_layer.1": "bn1",
    "input_layer.2": "prelu",
    "output_layer.0": "bn2",
    "output_layer.3": "fc",
    "output_layer.4": "features",
}
_IR_BLOCK = ("bn1", "conv1", "bn2", "prelu", "conv2", "bn3")  # AdaFace, CVLface
_IR_BLOCK_WITHOUT_BN2 = ("bn1", "conv1", "prelu", "conv2", "bn3")  # face.evoLVe


def is_ir(state: dict[str, Tensor]) -> bool:
    """Whether weights have the names of AdaFace's, CVLface's or face.evoLVe's IR networks."""
    return "input_layer.0.weight" in state and "output_layer.3.weight" in state


def has_bn2(state: dict[str, Tensor]) -> bool:
    """Whether the blocks of an IR network have a BN between their convolutions, as AdaFace's."""
    return "body.0.res_layer.5.weight" in state


def from_ir_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an IR network under the names of an IResNet that computes the same.

    The names are those of mk-minchul/AdaFace (net.py) and ZhaoJ9014/face.evoLVe
    (backbone/model_irse.py). A block with a convolution in its shortcut begins a stage. What an
    IResNet has beyond is set to change nothing: scale and offset of the last batch norm, and
    face.evoLVe's missing second one of a block. Names that have no place stay as they are.
    """
    block = _IR_BLOCK if has_bn2(state) else _IR_BLOCK_WITHOUT_BN2
    renamed: dict[str, Tensor] = {}
    stage, first = 1, 0
    parts = [name.split(".") for name in state if name.startswith("body.")]
    places: dict[str, str] = dict(_IR_NAMES)
    for number in sorted({int(part[1]) for part in parts if part[1].isdecimal()}):
        if f"body.{number}.shortcut_layer.0.weight" in state:
            stage, first = stage + 1, number
        old, new = f"body.{number}", f"layer{stage}.{number - first}"
        places |= {f"{old}.res_layer.{i}": f"{new}.{part}" for i, part in enumerate(block)}
        places |= {f"{old}.shortcut_layer.{i}": f"{new}.downsample.{i}" for i in (0, 1)}
        if "bn2" not in block and f"{old}.res_layer.1.weight" in state:
            channels = _rows(state[f"{old}.res_layer.1.weight"])
            ones, zeros = torch.ones(channels), torch.zeros(channels)
            # A batch norm divides by sqrt(1 + eps).
            renamed[f"{new}.bn2.weight"] = ones * math.sqrt(1 + nn.BatchNorm2d(1).eps)
            renamed[f"{new}.bn2.bias"] = renamed[f"{new}.bn2.running_mean"] = zeros
            renamed[f"{new}.bn2.running_var"] = ones
    for name, value in state.items():
        module, _, parameter = name.rpartition(".")
        renamed[f"{places.get(module, module)}.{parameter}"] = value
    dimensions = _rows(state["output_layer.3.weight"])
    renamed.setdefault("features.weight", torch.ones(dimensions))
    renamed.setdefault("features.bias", torch.zeros(dimensions))
    return renamed
