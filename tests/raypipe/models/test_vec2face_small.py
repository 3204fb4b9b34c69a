"""Vec2Face's small size starts as the DCGAN it comes from."""

import pytest
import torch
from torch.nn import functional as F

from raypipe.models.dcgan import DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import Vec2Face
from raypipe.models.vec2face_sizes import SMALL
from raypipe.models.vec2face_small import SIDE, SmallDecoder, start_from_dcgan

PARTS = ("weight", "bias")


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
    assert torch.allclose(started.im_decoder.paint(z), wanted, atol=1e-4)


@torch.no_grad()
def test_every_latent_has_the_length_of_a_random_one(started):
    painted = []
    first = started.im_decoder.up[0]
    hook = first.register_forward_pre_hook(lambda _, inputs: painted.append(inputs[0]))
    started.im_decoder(7 * torch.randn(3, SMALL.channels, SMALL.side, SMALL.side))
    hook.remove()
    assert torch.allclose(painted[0].flatten(1).norm(dim=1), torch.tensor(10.0), atol=1e-4)


def test_a_frozen_dcgan_leaves_latent_and_residual_to_learn(dcgan):
    decoder = SmallDecoder(8, SMALL.levels)
    start_from_dcgan(decoder, dcgan)
    decoder.freeze()
    decoder(torch.randn(2, 8, 4, 4)).square().mean().backward()
    moved = {name for name, value in decoder.named_parameters() if value.grad is not None}
    assert moved == {f"{layer}.{part}" for layer in ("latent", "residual") for part in PARTS}


def test_safetensors_and_back(started, tmp_path):
    path = tmp_path / "small.safetensors"
    path.write_bytes(started.to_safetensors(torch.float16))
    assert path.stat().st_size < 12e6
    network = Vec2Face.from_checkpoint(str(path)).prepare("cpu")
    assert network.sizes == SMALL
    with torch.inference_mode():
        assert network(torch.randn(2, SMALL.vector)).shape == (2, 3, SIDE, SIDE)
