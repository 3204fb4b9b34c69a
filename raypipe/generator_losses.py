"""What Vec2Face is trained with, as its published code computes it.

Sources: github.com/HaiyuWu/Vec2Face, pixel_generator/vec2face/taming/modules/discriminator_loss.py
(losses and weights), .../discriminator/model.py (discriminator), lpips/lpips.py (perceptual);
github.com/HaiyuWu/Vec2Face_plus, pose_training.py (weights without a discriminator). Images are
(B, 3, H, W), RGB in [-1, 1].
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raypipe.embedders import TorchEmbedder
from raypipe.errors import UserError
from raypipe.models.dlib_resnet import DlibResNet
from raypipe.models.iresnet import IResNet
from raypipe.models.loading import check_state, load_state

_SSIM_SIDE, _SSIM_SIGMA = 11, 1.5  # Wang et al. 2004, and pytorch_msssim, which is published
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_FLOOR = 1e-6  # published: of the length of a feature


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean structural similarity of images in [-1, 1], at most 1; 0-d.

    Gaussian window 11×11 with σ 1.5, no padding, each channel by itself, data range 1 after scaling
    to [0, 1].
    """
    with torch.autocast(x.device.type, enabled=False):
        return _ssim((x.float() + 1) / 2, (y.float() + 1) / 2)


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    channels = x.shape[1]
    offsets = torch.arange(_SSIM_SIDE, device=x.device, dtype=torch.float32) - _SSIM_SIDE // 2
    line = torch.softmax(-(offsets**2) / (2 * _SSIM_SIGMA**2), dim=0)

    def blur(values: Tensor) -> Tensor:
        across = line.expand(channels, 1, 1, -1)
        values = F.conv2d(values, across, groups=channels)
        return F.conv2d(values, across.transpose(2, 3), groups=channels)

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    contrast = (2 * covariance + _SSIM_C2) / (var_x + var_y + _SSIM_C2)
    luminance = (2 * mean_x * mean_y + _SSIM_C1) / (mean_x**2 + mean_y**2 + _SSIM_C1)
    return (luminance * contrast).mean()


def identity_distance(made: Tensor, vectors: Tensor) -> Tensor:
    """1 − cosine of images' features (B, D) to the vectors they were made from, their mean; 0-d."""
    return (1 - F.cosine_similarity(made, vectors)).mean()


def _apart(maps: Tensor, others: Tensor) -> Tensor:
    """Squared difference of feature maps (B, C, H, W) whose vectors are made unit length."""
    maps, others = maps.float(), others.float()
    x, y = (m / m.norm(dim=1, keepdim=True).clamp_min(_FLOOR) for m in (maps, others))
    return (x - y) ** 2


class FaceFeatures(nn.Module):
    """An embedder that gradients pass through: images to features and to maps on the way to them.

    Raises:
        UserError: for an embedder that is no PyTorch network.
    """

    def __init__(self, embedder: object) -> None:
        super().__init__()
        if not isinstance(embedder, TorchEmbedder):
            raise UserError(
                "no gradients pass through an ONNX embedder; train with one of kind dlib or iresnet"
            )
        self._prepare = embedder.prepare
        self.network = embedder.network.requires_grad_(False).eval()
        self._maps: list[Tensor] = []
        for layer in _layers(self.network):
            layer.register_forward_hook(lambda _module, _inputs, output: self._maps.append(output))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Features (B, D), raw, and maps of three depths."""
        self._maps.clear()
        # Bytes do not fit the eight bits of a bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            pixels = self._prepare(((images.float() + 1) * 127.5).permute(0, 2, 3, 1))
        features = self.network(pixels)
        maps = list(self._maps)
        self._maps.clear()
        return features.float(), maps


def _layers(network: nn.Module) -> Sequence[nn.Module]:
    """The last layer at each of three sizes of the maps."""
    if isinstance(network, DlibResNet):
        return [network.blocks[k] for k in (2, 6, 9)]
    assert isinstance(network, IResNet)
    return [network.layer1, network.layer2, network.layer3]


def feature_distance(maps: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """LPIPS (Zhang et al. 2018) without its learned weights, on an embedder's maps; 0-d.

    Mean over the maps of the mean squared distance of unit vectors, in [0, 4]. Stands in where no
    perceptual network is given.
    """
    distances = [_apart(x, y).sum(1).mean() for x, y in zip(maps, others, strict=True)]
    return torch.stack(distances).mean()


class LPIPS(nn.Module):
    """LPIPS with VGG16, with the names of `lpips.LPIPS(net="vgg").state_dict()`.

    github.com/richzhang/PerceptualSimilarity; the file is made by
    `torch.save(lpips.LPIPS(net="vgg").state_dict(), "lpips_vgg.pth")`.
    """

    # Convolutions of each slice: index in VGG16's features, channels in and out.
    _SLICES = (
        ((0, 3, 64), (2, 64, 64)),
        ((5, 64, 128), (7, 128, 128)),
        ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
        ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
        ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
    )

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = nn.Module()
        self.scaling_layer.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.scaling_layer.register_buffer("scale", torch.ones(1, 3, 1, 1))
        self.net = nn.Module()
        for k, convolutions in enumerate(self._SLICES):
            layers = {
                str(i): nn.Conv2d(before, after, 3, 1, 1) for i, before, after in convolutions
            }
            self.net.add_module(f"slice{k + 1}", nn.ModuleDict(layers))
            head = nn.Module()
            head.model = nn.Sequential(
                nn.Identity(), nn.Conv2d(convolutions[-1][2], 1, 1, bias=False)
            )
            self.add_module(f"lin{k}", head)

    @classmethod
    def from_checkpoint(cls, path: str) -> "LPIPS":
        """Raises UserError where the file is missing, unsafe, or another network's."""
        network = cls()
        # Newer versions of the package hold every head twice.
        state = {n: v for n, v in load_state(path).items() if not n.startswith("lins.")}
        check_state(network, state, path)
        network.load_state_dict(state)
        return network.requires_grad_(False).eval()

    def _maps(self, images: Tensor) -> list[Tensor]:
        scaling = self.scaling_layer.state_dict()
        x = (images - scaling["shift"]) / scaling["scale"]
        maps = []
        for k in range(len(self._SLICES)):
            if k:
                x = F.max_pool2d(x, 2)
            for convolution in self.net.get_submodule(f"slice{k + 1}").children():
                x = F.relu(convolution(x))
            maps.append(x)
        return maps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean distance of images to others; 0-d."""
        distances = [
            self.get_submodule(f"lin{k}.model")(_apart(*maps)).mean()
            for k, maps in enumerate(zip(self._maps(x), self._maps(y), strict=True))
        ]
        return torch.stack(distances).sum()


class _CrossEmbedding(nn.Module):
    """Convolutions of three sizes side by side: half, a quarter and a quarter of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        shares = (channels // 2, channels // 4, channels - channels // 2 - channels // 4)
        self.convs = nn.ModuleList(
            nn.Conv2d(3, share, side, 1, side // 2)
            for share, side in zip(shares, (3, 7, 15), strict=True)
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([conv(images) for conv in self.convs], dim=1)


class _Residual(nn.Module):
    """x + 3×3 convolution of leaky ReLU of group norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.project = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(F.leaky_relu(self.norm(x), 0.1))


class Discriminator(nn.Module):
    """ViT-VQGAN's patch discriminator: images (B, 3, 112, 112) to logits (B, 1, 11, 11).

    As in lucidrains/parti-pytorch, vit_vqgan.py, which Vec2Face uses with 64 to 512 channels.
    """

    def __init__(self, channels: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        layers: list[nn.Module] = [_CrossEmbedding(channels[0]), nn.LeakyReLU(0.1)]
        for before, after in itertools.pairwise(channels):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1),
                nn.LeakyReLU(0.1),
                nn.GroupNorm(8, after),
                _Residual(after),
            ]
        last = channels[-1]
        layers += [nn.Conv2d(last, last, 1), nn.LeakyReLU(0.1), nn.Conv2d(last, 1, 4)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def discriminator_loss(real: Tensor, made: Tensor) -> Tensor:
    """LSGAN: half of the mean of (logit − 1)² over real patches and of logit² over made ones."""
    return 0.5 * (((real - 1) ** 2).mean() + (made**2).mean())


def adaptive_weight(others: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """How much larger the other losses' gradient of the last layer is than the adversarial one's.

    Esser et al. (VQGAN, 2021), as published with 1e-4 and a limit of 1e4; 0-d, no gradient. The
    published class computes it, but a test the wrong way round leaves it at 1 by default.
    """
    (ours,) = torch.autograd.grad(others, last_layer, retain_graph=True)
    (theirs,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, 1e4).detach()
