"""The network that a training of Vec2Face starts with."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from raypipe.config.generator import GeneratorConfig
from raypipe.embedders import Embedder
from raypipe.errors import UserError
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import Vec2Face
from raypipe.models.vec2face_sizes import PUBLISHED, SMALL, Masking
from raypipe.models.vec2face_small import LENGTH, SmallDecoder, start_from_dcgan
from raypipe.seeding import generator, torch_seed

_BATCH = 32
_RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # shares of the mean variance


def masking(config: GeneratorConfig) -> Masking:
    """The law of the masks in training."""
    return Masking(lowest=config.mask_lowest, mean=config.mask_mean, std=config.mask_std)


def build(config: GeneratorConfig, length: int) -> Vec2Face:
    """A network of the right sizes; its weights are those of `config.weights`, or any.

    Args:
        length: numbers in a feature.

    Raises:
        UserError: where weights do not load, or are for other features.
    """
    if config.weights:
        network = Vec2Face.from_checkpoint(config.weights)
        if network.sizes.vector != length:
            raise UserError(
                f"{config.weights}: for vectors of {network.sizes.vector} numbers, and the set's "
                f"features have {length}"
            )
    else:
        sizes = SMALL if config.size == "small" else PUBLISHED[config.size]
        network = Vec2Face(replace(sizes, vector=length), config.position_std)
    if config.freeze_dcgan and isinstance(network.im_decoder, SmallDecoder):
        network.im_decoder.freeze()
    return network


def start(config: GeneratorConfig, seed: int, vectors: np.ndarray, embedder: Embedder) -> Vec2Face:
    """The network that training starts with; the same on every worker.

    Args:
        vectors: some features of the set, float32 (n, D).
        embedder: that the features are of.

    Raises:
        UserError: where weights do not fit.
    """
    torch.manual_seed(torch_seed(seed, "train_generator", stream="weights"))
    network = build(config, vectors.shape[1])
    if config.weights:
        return network
    if config.whiten:
        whiten(network.latent_prior_proj_f, torch.from_numpy(vectors))
    if isinstance(network.im_decoder, SmallDecoder):
        dcgan = DCGANGenerator()
        load_into(dcgan, config.dcgan or shipped("dcgan_digiface.safetensors"))
        start_from_dcgan(network.im_decoder, dcgan.eval())
        _guess_latents(network, network.im_decoder, embedder, config, seed)
    return network


@torch.no_grad()
def whiten(projection: nn.Linear, features: Tensor) -> None:
    """Lets a network's first layer whiten features, so that every direction of them is heard.

    The components of the features (n, D) with a variance below a tenth of the mean are damped
    rather than raised to 1: they carry noise.

    Args:
        projection: from a vector to a token; its weights are overwritten by a random rotation,
            drawn from torch's generator, of the whitened vector.
    """
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((features - mean).T))
    whitened = vectors * (values.clamp_min(0) + 0.1 * values.mean()).rsqrt()
    rotation = torch.empty(projection.out_features, features.shape[1])
    nn.init.orthogonal_(rotation)
    projection.weight.copy_(rotation @ whitened.T)
    projection.bias.copy_(-projection.weight @ mean)


@torch.no_grad()
def _guess_latents(
    network: Vec2Face,
    decoder: SmallDecoder,
    embedder: Embedder,
    config: GeneratorConfig,
    seed: int,
) -> None:
    """Fits the layer that makes latents to pictures that the DCGAN paints of random ones.

    Ridge regression from the mean over places of the feature map that the untrained transformer
    makes of a picture's feature. Without it training began with one picture for everybody, and
    stayed there for thousands of images.
    """
    count, masks = config.dcgan_pictures, masking(config)
    rng = generator(seed, "train_generator", stream="latents")
    latents = torch.from_numpy(rng.standard_normal((count, LATENT)).astype(np.float32))
    drawn = [masks.draw(rng, network.sizes.side**2) for _ in range(count)]
    rates = torch.tensor([rate for _, rate in drawn], dtype=torch.float64)
    noises = torch.from_numpy(np.stack([noise for noise, _ in drawn]))
    maps = []
    network.eval()
    network.im_decoder = nn.Identity()  # type: ignore[assignment]
    for first in range(0, count, _BATCH):
        part = slice(first, first + _BATCH)
        images = (decoder.paint(latents[part]) + 1) * 127.5
        pixels = images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous()
        features = torch.from_numpy(embedder.embed(pixels.numpy()))
        made = network(features, noises[part], rates[part], drop_rate=masks.lowest)
        maps.append(made.mean((2, 3)))
    network.im_decoder = decoder
    inputs = torch.cat(maps).double()
    weight, bias = ridge(inputs, latents.double())
    # A regression is cautious, so its guesses are short. Their direction is what counts; at full
    # length the optimizer's steps are small beside them.
    longer = LENGTH / (inputs @ weight.T + bias).norm(dim=1).mean()
    weight, bias = weight * longer, bias * longer
    decoder.latent.weight.copy_(weight)
    decoder.latent.bias.copy_(bias)


def ridge(inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (K, M) and bias (K,) of a ridge regression of (N, K) on (N, M).

    The strength is the one that serves the last fifth best after a fit to the others.
    """
    mean, shift = inputs.mean(0), targets.mean(0)
    x, y = inputs - mean, targets - shift
    cut = len(x) * 4 // 5

    def solve(x: Tensor, y: Tensor, share: float) -> Tensor:
        products = x.T @ x
        strength = share * products.diagonal().mean() * torch.eye(len(products)).to(products)
        return torch.linalg.solve(products + strength, x.T @ y)

    errors = [
        (x[cut:] @ solve(x[:cut], y[:cut], share) - y[cut:]).square().mean().item()
        for share in _RIDGES
    ]
    weight = solve(x, y, _RIDGES[int(np.argmin(errors))]).T
    return weight, shift - weight @ mean
