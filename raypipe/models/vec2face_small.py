"""The image decoder of Vec2Face's small size: a whole DCGAN, steered at two places.

A trained DCGAN paints faces already; the transformer is left to find whom to paint. A latent alone
does that badly, for features are a rough function of it; the DCGAN's first feature map obeys more
readily. Moved by gradient descent from the same start, twenty steps of the latent bring the mean
centred cosine of a picture's dlib feature and the wanted one from 0.36 to 0.74, ten steps of that
map to 0.89, and the eye hardly sees them. The map alone, without a latent, is a worse start: all
pictures were blurred towards the mean face, which the pixel loss likes best. So a person's latent
says which face the DCGAN paints, and a residual on the map corrects who it is. Batch norms are
folded into the convolutions.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raypipe.models.dcgan import LATENT, DCGANGenerator

SIDE = 112  # pixels of the image
LENGTH = math.sqrt(LATENT)  # of nearly all latents that a DCGAN is trained with


class SmallDecoder(nn.Module):
    """Feature map (B, channels_in, 4, 4) to image (B, 3, 112, 112) in about [-1, 1].

    A linear layer on the mean over the map gives a latent of 100 numbers, scaled to length 10, the
    length of nearly all random ones: near 0 the DCGAN paints no face. A transposed 4×4 convolution
    makes 4×4 of it, to which a 1×1 convolution of the map is added; ReLU and a transposed
    convolution of stride 2 is each doubling; then tanh, and bicubic to 112×112.

    Args:
        channels_in: channels of the feature map.
        levels: channels at 4×4 and after each doubling but the last, which makes the colours.
    """

    def __init__(self, channels_in: int, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.latent = nn.Linear(channels_in, LATENT)
        self.residual = nn.Conv2d(channels_in, levels[0], 1)
        nn.init.zeros_(self.residual.weight)
        nn.init.zeros_(self.residual.bias)  # type: ignore[arg-type]
        self.up = nn.ModuleList([nn.ConvTranspose2d(LATENT, levels[0], 4)])
        self.up.extend(
            nn.ConvTranspose2d(before, after, 4, 2, 1)
            for before, after in itertools.pairwise(levels)
        )
        self.conv_out = nn.ConvTranspose2d(levels[-1], 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        latent = F.normalize(self.latent(x.mean((2, 3))), dim=1) * LENGTH
        return self.paint(latent, self.residual(x))

    def paint(self, latent: Tensor, residual: Tensor | float = 0.0) -> Tensor:
        """Latents (B, 100) and what is added to their first maps (B, levels[0], 4, 4) to images."""
        first, *others = self.up
        x = F.relu(first(latent[:, :, None, None]) + residual)
        for layer in others:
            x = F.relu(layer(x))
        x = torch.tanh(self.conv_out(x))
        return F.interpolate(x, size=SIDE, mode="bicubic", align_corners=False)

    def freeze(self) -> None:
        """Keeps the DCGAN's layers as they are in training."""
        self.up.requires_grad_(False)
        self.conv_out.requires_grad_(False)


@torch.no_grad()
def start_from_dcgan(decoder: SmallDecoder, dcgan: DCGANGenerator) -> None:
    """Copies a trained DCGAN's layers into a decoder of levels 512, 256, 128, 64."""
    for layer, index in zip(decoder.up, (0, 3, 6, 9), strict=True):
        weight, bias = _folded(dcgan, index)
        layer.load_state_dict({"weight": weight, "bias": bias})
    last = dcgan.main[12].state_dict()
    decoder.conv_out.load_state_dict({"weight": last["weight"], "bias": torch.zeros(3)})


def _folded(dcgan: DCGANGenerator, index: int) -> tuple[Tensor, Tensor]:
    """Weight and bias of a transposed convolution with the batch norm behind it."""
    convolution, norm = dcgan.main[index], dcgan.main[index + 1]
    assert isinstance(convolution, nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return (
        convolution.weight * scale[:, None, None],
        norm.bias - norm.running_mean * scale,
    )
