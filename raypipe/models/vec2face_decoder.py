"""Vec2Face's image decoder: a small feature map to an image, with the published names and shapes.

The decoder of VQGAN (Esser et al., CVPR 2021) without attention, as Vec2Face configures it
(https://github.com/HaiyuWu/Vec2Face, pixel_generator/vec2face/im_decoder.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
NORM_EPS = 1e-6

# Which of the three taps of the kernel meet in each of the four taps of the folded one.
_FOLD = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])


class NormSiLU(nn.GroupNorm):
    """Group norm, then SiLU."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels, NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        # Without gradients nobody needs the norm's output again.
        return F.silu(super().forward(x), inplace=not torch.is_grad_enabled())


class ResidualBlock(nn.Module):
    """h = norm, SiLU, 3×3 convolution, twice; x + h, or h + 1×1(h) where the channels change.

    The published network puts its shortcut on h and not on x, and was trained that way.
    """

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.norm1 = NormSiLU(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, 1, 1, bias=False)
        self.norm2 = NormSiLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.nin_shortcut = None
        if channels_in != channels:
            self.nin_shortcut = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.norm2(self.conv1(self.norm1(x))))
        if not torch.is_grad_enabled():
            return h.add_(x if self.nin_shortcut is None else self.nin_shortcut(h))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(h))


class Prepared(nn.Module):
    """A layer that inference may give a second form of its weights, outside the state dict."""

    prepared: Tensor | None = None

    def train(self, mode: bool = True) -> "Prepared":
        if mode:
            self.prepared = None
        super().train(mode)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.prepared = None
        super()._load_from_state_dict(*args, **kwargs)


class Upsample(Prepared):
    """Nearest ×2, then a 3×3 convolution.

    Each output pixel sees only 2×2 different input pixels, so the two steps are one transposed 4×4
    convolution of stride 2 whose taps are sums of the 3×3 kernel's: 4/9 of the multiplications,
    and the large map is never made. `prepare` computes that kernel once, for inference.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1)

    def prepare(self) -> None:
        """Folds the present weights; training or loading drops the result."""
        weight = self.conv.weight.detach()
        taps = _FOLD.to(weight.device)
        folded = torch.einsum("ah,bw,oihw->ioab", taps, taps, weight.float()).to(weight)
        self.prepared = folded.contiguous(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        if self.prepared is None:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return F.conv_transpose2d(x, self.prepared, self.conv.bias, stride=2, padding=1)


class Level(nn.Module):
    """Residual blocks of one image size, and the doubling to the next."""

    def __init__(self, channels_in: int, channels: int, blocks: int, double: bool) -> None:
        super().__init__()
        self.channels = channels
        self.block = nn.Sequential(
            ResidualBlock(channels_in, channels),
            *(ResidualBlock(channels, channels) for _ in range(blocks - 1)),
        )
        self.upsample = Upsample(channels) if double else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """Two residual blocks at the smallest size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.block_1(x))


class ImageDecoder(nn.Module):
    """Feature map (B, channels_in, S, S) to image (B, 3, S·2^(levels−1), S·2^(levels−1)).

    Args:
        channels_in: channels of the feature map.
        levels: channels of each image size, the smallest first; multiples of 32.
        blocks: residual blocks at each size.
    """

    def __init__(self, channels_in: int, levels: tuple[int, ...], blocks: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels_in, levels[0], 3, 1, 1)
        self.mid = Middle(levels[0])
        before = (levels[0], *levels[:-1])
        # Published: `up.0` is the largest size.
        self.up = nn.ModuleList(
            Level(before[k], levels[k], blocks, double=k < len(levels) - 1)
            for k in reversed(range(len(levels)))
        )
        self.norm_out = NormSiLU(levels[-1])
        self.conv_out = nn.Conv2d(levels[-1], 3, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(x))
        levels: list[Any] = list(self.up)[::-1]
        if x.device.type != "cpu" or torch.is_grad_enabled():
            return self._finish(x, levels)
        # Where a level's weights are larger than one image's maps, images share the weights; later
        # they go one by one, whose maps stay in a CPU's cache and in memory that malloc keeps.
        while levels and x.shape[-1] ** 2 <= 9 * levels[0].channels:
            x = levels.pop(0)(x)
        return torch.cat([self._finish(image, levels) for image in x.split(1)])

    def _finish(self, x: Tensor, levels: list[Any]) -> Tensor:
        for level in levels:
            x = level(x)
        return self.conv_out(self.norm_out(x))
