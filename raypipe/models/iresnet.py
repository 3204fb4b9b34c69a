"""IResNet: the recognition network of ArcFace, with the names and shapes of the published weights.

He et al. 2016 with the improved residual unit of Deng et al., "ArcFace" (CVPR 2019), section 3.1:
no activation after the addition, stride in the block's second convolution. Layout and
initialisation as in insightface (recognition/arcface_torch/backbones/iresnet.py) and in Vec2Face,
whose checkpoints hold the same names.
"""

import torch
from torch import Tensor, nn

EMBEDDING = 512

BLOCKS: dict[str, tuple[int, int, int, int]] = {
    "10": (1, 1, 1, 1),  # not published: the shallowest net of this shape, for CPUs
    "18": (2, 2, 2, 2),
    "34": (3, 4, 6, 3),
    "50": (3, 4, 14, 3),
    "100": (3, 13, 30, 3),
    "200": (6, 26, 60, 6),
}


class Block(nn.Module):
    """Improved residual unit: BN, conv 3×3, BN, PReLU, strided conv 3×3, BN; plus the shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    """Face (N, 3, 112, 112) in [-1, 1], RGB, to an embedding (N, 512), not normalised.

    Under autocast the convolutions run in the low precision, and the last linear layer and batch
    norm in float32, as published; the embedding is then float32.
    """

    def __init__(self, blocks: tuple[int, int, int, int], width: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.layer1 = self._stage(width, width, blocks[0])
        self.layer2 = self._stage(width, 2 * width, blocks[1])
        self.layer3 = self._stage(2 * width, 4 * width, blocks[2])
        self.layer4 = self._stage(4 * width, 8 * width, blocks[3])
        self.bn2 = nn.BatchNorm2d(8 * width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(8 * width * 7 * 7, EMBEDDING)
        self.features = nn.BatchNorm1d(EMBEDDING)
        # The scale of the last batch norm would only undo what the head normalises away.
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
        first = Block(channels_in, channels, 2)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.fc(x.float()))


def iresnet(depth: str, *, width: int = 64, dropout: float = 0.0) -> IResNet:
    """A freshly initialised IResNet.

    Args:
        depth: "18", "34", "50", "100" or "200" as published, or "10" (one block a stage, for CPUs).
        width: planes of the first stage; the others have 2, 4 and 8 times as many. Published: 64.
        dropout: probability before the last linear layer (arcface_torch 0, Vec2Face 0.4).
    """
    return IResNet(BLOCKS[depth], width, dropout)
