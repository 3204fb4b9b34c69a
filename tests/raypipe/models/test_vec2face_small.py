"""Vec2Face's small size starts as the DCGAN it comes from."""

import pytest
import torch
from torch.nn import functional as F

from raypipe.models.dcgan import DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import Vec2Face
from raypipe.models.vec2face_sizes import SMALL
from raypipe.models.vec2face_small import (
    SIDE,
    SmallDecoder,
    start_from_dcgan,
    start_from_features,
)


@pytest.fixture(scope="module")
def dcgan():
    network = DCGANGenerator()
    load_into(network, shipped("dcgan_digiface.safetensors"))
    return network.eval()


@pytest.fixture(scope="module")
def started(dcgan):
    torch.manual_seed(0)
    network = Vec2Face(SMALL, position_std=1.0)
    start_from_dcgan(network.im_decoder, dcgan)
    return network


@torch.no_grad()
def test_the_decoder_paints_what_the_dcgan_paints(dcgan, started):
    z = torch.randn(3, 100, generator=torch.Generator().manual_seed(1))
    wanted = F.interpolate(dcgan(z), size=SIDE, mode="bicubic")
    assert torch.allclose(started.im_decoder.paint(z[:, :, None, None]), wanted, atol=1e-4)


@torch.no_grad()
def test_latents_have_the_law_of_random_ones(started):
    decoder = started.im_decoder
    painted = []
    hook = decoder.up[0].register_forward_pre_hook(lambda _, inputs: painted.append(inputs[0]))
    maps = 3 + torch.randn(64, SMALL.channels, SMALL.side, SMALL.side)
    for _ in range(50):
        decoder.latent_norm(decoder.latent(maps))
    decoder.eval()(maps)
    hook.remove()
    latents = painted[-1].flatten(1)
    assert torch.allclose(latents.norm(dim=1), torch.tensor(10.0), atol=1e-3)
    assert torch.allclose(latents.mean(0), torch.tensor(0.0), atol=0.1)
    assert torch.allclose(latents.var(0), torch.tensor(1.0), atol=0.2)


def test_a_frozen_dcgan_leaves_the_latent_to_learn(dcgan):
    decoder = SmallDecoder(8, 4, SMALL.levels)
    start_from_dcgan(decoder, dcgan)
    decoder.freeze()
    decoder(torch.randn(2, 8, 4, 4)).square().mean().backward()
    moved = {name for name, value in decoder.named_parameters() if value.grad is not None}
    assert moved == {"latent.weight"}


def test_safetensors_and_back(started, tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(started.to_safetensors(torch.float16))
    assert path.stat().st_size < 12e6
    network = Vec2Face.from_checkpoint(str(path)).prepare("cpu")
    assert network.sizes == SMALL
    with torch.inference_mode():
        assert network(torch.randn(2, SMALL.vector)).shape == (2, 3, SIDE, SIDE)


@torch.no_grad()
def test_features_are_whitened():
    torch.manual_seed(0)
    scales = torch.logspace(-2, 0, SMALL.vector)
    features = torch.randn(4000, SMALL.vector) * scales + 3
    projection = torch.nn.Linear(SMALL.vector, SMALL.width)
    start_from_features(projection, features)
    made = projection(features)
    assert made.mean(0).abs().max() < 1e-2
    values = torch.linalg.svdvals(made - made.mean(0)) ** 2 / len(made)
    assert values[0] == pytest.approx(1, abs=0.1)  # the loudest directions are as loud as others
    assert values[SMALL.vector // 4] > 0.5
