"""What a training of the small Vec2Face starts with is better than nothing."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn import functional as F

from raypipe.config.embed import EmbedderConfig
from raypipe.config.generator import GeneratorConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.generator_start import build, ridge, start, whiten
from raypipe.models.dcgan import DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels
from raypipe.models.vec2face_sizes import SMALL
from raypipe.templates import unit

SETTINGS = {"size": "small", "whiten": True, "position_std": 1.0, "mask_lowest": 0.1}
CONFIG = GeneratorConfig(**SETTINGS)


def test_ridge_is_scikit_learns_at_the_chosen_strength():
    rng = torch.Generator().manual_seed(0)
    inputs = 2 + torch.randn(60, 5, generator=rng, dtype=torch.float64)
    targets = inputs[:, :3] - 1 + 3 * torch.randn(60, 3, generator=rng, dtype=torch.float64)
    weight, bias = ridge(inputs, targets)
    scale = ((inputs - inputs.mean(0)) ** 2).sum(0).mean().item()
    fits = [
        Ridge(alpha=share * scale).fit(inputs.numpy(), targets.numpy())
        for share in (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    ]
    assert any(
        np.allclose(fit.coef_, weight.numpy()) and np.allclose(fit.intercept_, bias.numpy())
        for fit in fits
    )


@torch.no_grad()
def test_features_are_whitened():
    torch.manual_seed(0)
    scales = torch.logspace(-2, 0, SMALL.vector)
    features = torch.randn(4000, SMALL.vector) * scales + 3
    projection = torch.nn.Linear(SMALL.vector, SMALL.width)
    whiten(projection, features)
    made = projection(features)
    assert made.mean(0).abs().max() < 1e-2
    values = torch.linalg.svdvals(made - made.mean(0)) ** 2 / len(made)
    assert values[0] == pytest.approx(1, abs=0.1)  # the loudest directions are as loud as others
    assert values[SMALL.vector // 4] > 0.5


def test_a_file_for_other_features_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(build(CONFIG, 7).to_safetensors())
    with pytest.raises(UserError, match="for vectors of 7 numbers, and the set's features have 5"):
        build(GeneratorConfig(**SETTINGS, weights=str(path)), 5)


@pytest.mark.slow
@torch.inference_mode()
def test_the_first_guess_already_knows_people_apart():
    embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.standard_normal((400, 100)).astype(np.float32))
    dcgan = DCGANGenerator()
    load_into(dcgan, shipped("dcgan_digiface.safetensors"))
    faces = to_pixels(F.interpolate(dcgan.eval()(noise), size=112, mode="bicubic"))
    vectors = np.concatenate([embedder.embed(faces[i : i + 40]) for i in range(0, 400, 40)])
    config = GeneratorConfig(**SETTINGS, dcgan_pictures=2000)
    network = start(config, 3, vectors, embedder).eval()
    made = network(torch.from_numpy(vectors[:60]), torch.rand(60, 16), 0.15)
    made = embedder.embed(to_pixels(made)) - vectors.mean(0)
    wanted = vectors[:60] - vectors.mean(0)
    cosines = unit(made) @ unit(wanted).T
    assert np.diag(cosines).mean() > 0.1  # strangers: 0 ± 0.02
    assert abs((cosines.sum() - np.trace(cosines)) / (60 * 59)) < 0.1
