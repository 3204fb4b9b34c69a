"""Vec2Face's small size starts as the DCGAN it comes from."""

import pytest
import torch
from torch.nn import functional as F

from raypipe.models.dcgan import DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import Vec2Face
from raypipe.models.vec2face_sizes import SMALL
from raypipe.models.vec2face_small import SIDE, start_from_dcgan, start_from_features


@pytest.fixture(scope="module")
def dcgan():
    network = DCGANGenerator()
    load_into(network, shipped("dcgan_digiface.safetensors"))
    return network.eval()


@pytest.fixture(scope="module")
def started(dcgan):
    torch.manual_seed(0)
    network = Vec2Face(SMALL, position_std=1.0)
    start_from_dcgan(network.im_decoder, network.im_decoder_proj, dcgan)
    return network


@torch.no_grad()
def test_the_decoder_paints_what_the_dcgan_paints(dcgan, started):
    z = torch.randn(3, 100, generator=torch.Generator().manual_seed(1))
    first_map = dcgan.main[:2](z[:, :, None, None])
    wanted = F.interpolate(dcgan(z), size=SIDE, mode="bicubic")
    assert torch.allclose(started.im_decoder(first_map), wanted, atol=1e-4)


@torch.no_grad()
def test_unit_tokens_make_feature_maps_like_the_dcgans(dcgan, started):
    random = torch.Generator().manual_seed(1)
    maps = dcgan.main[:2](torch.randn(500, 100, 1, 1, generator=random))
    maps = maps.permute(0, 2, 3, 1).reshape(-1, 512)
    made = started.im_decoder_proj(torch.randn(8000, SMALL.width, generator=random))
    assert torch.allclose(made.mean(0), maps.mean(0), atol=0.15)
    share = made.var(0).sum() / maps.var(0).sum()
    assert 0.8 < share < 1.0  # the largest 192 of 512 components
    correlation = torch.corrcoef(torch.stack([made.var(0), maps.var(0)]))[0, 1]
    assert correlation > 0.8


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
