"""The image decoder of Vec2Face's small size: the layers of a DCGAN, and its warm start.

A trained DCGAN behind its first feature map already paints faces; the transformer is left to find
the feature map of a person. Batch norms are folded into the convolutions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raypipe.models.dcgan import LATENT, DCGANGenerator

SIDE = 112  # pixels of the image
_DRAWN = 4096  # latents that the statistics of the feature map are taken from


class SmallDecoder(nn.Module):
    """Feature map (B, channels_in, S, S) to image (B, 3, 112, 112) in about [-1, 1].

    ReLU and a transposed 4×4 convolution of stride 2 for each doubling, tanh, bicubic to 112×112.

    Args:
        channels_in: channels of the feature map.
        levels: channels after each doubling but the last, which makes the colours.
    """

    def __init__(self, channels_in: int, levels: tuple[int, ...]) -> None:
        super().__init__()
        channels = (channels_in, *levels)
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(before, after, 4, 2, 1)
            for before, after in zip(channels, levels, strict=False)
        )
        self.conv_out = nn.ConvTranspose2d(channels[-1], 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.up:
            x = layer(F.relu(x))
        x = torch.tanh(self.conv_out(F.relu(x)))
        return F.interpolate(x, size=SIDE, mode="bicubic", align_corners=False)


@torch.no_grad()
def start_from_dcgan(decoder: SmallDecoder, projection: nn.Linear, dcgan: DCGANGenerator) -> None:
    """Copies a DCGAN's layers into a decoder, and gives its input the DCGAN's statistics.

    Tokens of unit variance, such as a LayerNorm gives, then make feature maps with the DCGAN's mean
    and its largest principal components.

    Args:
        decoder: for feature maps of 512 channels, levels 256, 128, 64.
        projection: from tokens to the channels of the feature map; at most as many numbers in a
            token as channels.
        dcgan: trained.
    """
    for layer, index in zip(decoder.up, (3, 6, 9), strict=True):
        weight, bias = _folded(dcgan, index)
        layer.load_state_dict({"weight": weight, "bias": bias})
    last = dcgan.main[12].state_dict()
    decoder.conv_out.load_state_dict({"weight": last["weight"], "bias": torch.zeros(3)})
    weight, bias = _folded(dcgan, 0)
    z = torch.randn(_DRAWN, LATENT, 1, 1, generator=torch.Generator().manual_seed(0))
    maps = F.conv_transpose2d(z, weight, bias).permute(0, 2, 3, 1).reshape(-1, weight.shape[1])
    mean = maps.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((maps - mean).T))
    width = projection.in_features
    projection.weight.copy_(vectors[:, -width:] * values[-width:].clamp_min(0).sqrt())
    projection.bias.copy_(mean)


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


@torch.no_grad()
def start_from_features(projection: nn.Linear, features: Tensor) -> None:
    """Lets a network's first layer whiten features, so that every direction of them is heard.

    The components of the features (n, D) with a variance below a tenth of the mean are damped
    rather than raised to 1: they carry noise.

    Args:
        projection: from a vector to a token, with at least D outputs; its weights are overwritten
            by a random rotation, drawn from torch's generator, of the whitened vector.
    """
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((features - mean).T))
    whiten = vectors * (values.clamp_min(0) + 0.1 * values.mean()).rsqrt()
    rotation = torch.empty(projection.out_features, features.shape[1])
    nn.init.orthogonal_(rotation)
    # Every number of the token has unit variance too where there are more of them than D.
    projection.weight.copy_(rotation @ whiten.T)
    projection.bias.copy_(-projection.weight @ mean)
