"""MobileFaceNet: the small recognition network of arcface_torch, with its names and shapes.

Chen et al., "MobileFaceNets" (2018), widened and deepened as in insightface
(recognition/arcface_torch/backbones/mobilefacenet.py): 512 numbers, and two sizes.
"""

import torch
from torch import Tensor, nn

from raypipe.models.loading import check_state

EMBEDDING = 512

# Residual blocks of the four stages, and channels of the first; arcface_torch's mbf and mbf_large.
SIZES: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "MobileFaceNet": ((1, 4, 6, 2), 128),
    "MobileFaceNet-large": ((2, 8, 12, 4), 256),
}
_LAST = 512  # channels before the embedding
_FIRST = "layers.0.layers.0.weight"


class ConvBlock(nn.Module):
    """Convolution without bias, BN and, where `active`, PReLU."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int,
        stride: int = 1,
        *,
        padding: int = 0,
        groups: int = 1,
        active: bool = True,
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d(
            channels_in, channels, kernel, stride, padding, groups=groups, bias=False
        )
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(channels))
        if active:
            self.layers.append(nn.PReLU(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Bottleneck(nn.Module):
    """1×1 to `hidden` channels, 3×3 in each of them, 1×1 without activation; plus the input where
    the size stays (stride 1)."""

    def __init__(self, channels_in: int, channels: int, hidden: int, stride: int) -> None:
        super().__init__()
        self.residual = stride == 1
        self.layers = nn.Sequential(
            ConvBlock(channels_in, hidden, 1),
            ConvBlock(hidden, hidden, 3, stride, padding=1, groups=hidden),
            ConvBlock(hidden, channels, 1, active=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class Stage(nn.Module):
    """Residual bottlenecks of one size."""

    def __init__(self, channels: int, hidden: int, blocks: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(Bottleneck(channels, channels, hidden, 1) for _ in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Embed(nn.Module):
    """Map (N, 512, 7, 7) to (N, 512): a 7×7 kernel for each channel, a linear layer and BN."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBlock(_LAST, _LAST, 7, groups=_LAST, active=False),
            nn.Flatten(),
            nn.Linear(_LAST, EMBEDDING, bias=False),
            nn.BatchNorm1d(EMBEDDING),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class MobileFaceNet(nn.Module):
    """Face (N, 3, 112, 112) in [-1, 1], RGB, to an embedding (N, 512), not normalised.

    Under autocast the last convolutions, linear layer and batch norms run in float32, as published;
    the embedding is then float32.
    """

    def __init__(self, size: str) -> None:
        """`size` is one of SIZES."""
        super().__init__()
        blocks, first = SIZES[size]
        second = 2 * first
        # The channels inside the bottlenecks are published as the same in both sizes.
        self.layers = nn.ModuleList(
            [
                ConvBlock(3, first, 3, 2, padding=1),
                # Published: a stage of one block is one convolution in 64 groups.
                ConvBlock(first, first, 3, padding=1, groups=64)
                if blocks[0] == 1
                else Stage(first, 128, blocks[0]),
                Bottleneck(first, first, 128, 2),
                Stage(first, 128, blocks[1]),
                Bottleneck(first, second, 256, 2),
                Stage(second, 256, blocks[2]),
                Bottleneck(second, second, 512, 2),
                Stage(second, 256, blocks[3]),
            ]
        )
        self.conv_sep = ConvBlock(second, _LAST, 1)
        self.features = Embed()
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.features(self.conv_sep(x.float()))


def is_mobilefacenet(state: dict[str, Tensor]) -> bool:
    """Whether weights have the names of a MobileFaceNet's."""
    return _FIRST in state and "conv_sep.layers.0.weight" in state


def load_mobilefacenet(state: dict[str, Tensor], path: str) -> tuple[MobileFaceNet, str]:
    """The MobileFaceNet that weights are of, with these, in inference mode, and its size.

    Raises:
        UserError: where they are of another size; the line begins with `path`.
    """
    sizes = [
        size for size, (_, channels) in SIZES.items() if state[_FIRST].shape[:1] == (channels,)
    ]
    size = sizes[0] if sizes else "MobileFaceNet"  # `check_state` then says what is wrong
    network = MobileFaceNet(size)
    check_state(network, state, path)
    network.load_state_dict(state, strict=False)
    return network.eval(), size
