"""DCGAN generator (Radford et al. 2016) of `gan_face_generate`: it makes the demo's faces."""

import itertools

from torch import Tensor, nn

LATENT = 100
SIZE = 64

_CHANNELS = (LATENT, 512, 256, 128, 64, 3)


class DCGANGenerator(nn.Module):
    """z (N, 100), standard normal, to a face (N, 3, 64, 64) in [-1, 1], RGB.

    Transposed convolutions 4×4: 1×1 to 4×4, then four doublings; batch norm and ReLU between.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for k, (before, after) in enumerate(itertools.pairwise(_CHANNELS)):
            stride, padding = (1, 0) if k == 0 else (2, 1)
            layers.append(nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False))
            if after != 3:
                layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.main = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.main(z[:, :, None, None])
