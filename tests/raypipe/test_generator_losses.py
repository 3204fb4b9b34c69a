"""The losses against their definitions, written down a second time or known in closed form."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.generator_losses import (
    LPIPS,
    Discriminator,
    FaceFeatures,
    adaptive_weight,
    discriminator_loss,
    feature_distance,
    identity_distance,
    ssim,
)


@pytest.fixture(scope="module")
def faces():
    return FaceFeatures(open_embedder(EmbedderConfig(kind="dlib"), "cpu"))


def images(count, seed=0, side=112):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, side, side, generator=random) * 2 - 1


def test_ssim_is_that_of_wang_et_al():
    x = images(1, 0, 32)
    y = (0.7 * x + 0.3 * images(1, 1, 32)).clamp(-1, 1)

    def blur(plane):
        return gaussian_filter(plane, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    wanted = []
    planes = (((image[0] + 1) / 2).double().numpy() for image in (x, y))
    for a, b in zip(*planes, strict=True):
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        both = blur(a * b) - mean_a * mean_b
        wanted.append(
            (2 * mean_a * mean_b + 1e-4)
            * (2 * both + 9e-4)
            / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
        )
    assert ssim(x, y).item() == pytest.approx(np.mean(wanted), abs=1e-4)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert ssim(x, y).item() == pytest.approx(np.mean(wanted), abs=1e-4)


def test_identity_distance():
    made, vectors = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[2.0, 0], [3, 0]])
    assert identity_distance(made, vectors).item() == pytest.approx(0.5)


def test_gradients_pass_through_the_embedder(faces):
    """The network overwrites its activations; the gradient is that of finite differences."""
    x = images(2)
    direction = images(2, 1)
    embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")
    pixels = ((x + 1) * 127.5).round()
    wanted = embedder.embed(pixels.byte().permute(0, 2, 3, 1).contiguous().numpy())
    features, maps = faces(pixels / 127.5 - 1)
    assert np.allclose(features.numpy(), wanted, atol=1e-5)
    assert [m.shape[1] for m in maps] == [32, 64, 128]

    def loss(images):
        features, maps = faces(images)
        return features.square().sum() + sum(m.square().mean() for m in maps)

    x.requires_grad_()
    loss(x).backward()
    with torch.no_grad():
        step = 1e-3
        slope = (loss(x + step * direction) - loss(x - step * direction)) / (2 * step)
    assert (x.grad * direction).sum().item() == pytest.approx(slope.item(), rel=0.02)


def test_feature_distance(faces):
    with torch.no_grad():
        maps, others = faces(images(2))[1], faces(images(2, 1))[1]
    assert feature_distance(maps, maps).item() == 0
    assert feature_distance(maps, others).item() > 0.01
    apart = [torch.tensor([3.0, 0]).view(1, 2, 1, 1)], [torch.tensor([0, 5.0]).view(1, 2, 1, 1)]
    assert feature_distance(*apart).item() == pytest.approx(2)


def test_an_onnx_embedder_is_refused():
    with pytest.raises(UserError, match="no gradients pass through an ONNX embedder"):
        FaceFeatures(object())


def test_lpips_reads_the_names_of_the_package_and_adds_up_its_layers(tmp_path):
    torch.manual_seed(0)
    made = LPIPS()
    state = made.state_dict()
    assert "net.slice5.28.weight" in state and "lin4.model.1.weight" in state
    assert sum(value.numel() for name, value in state.items() if "net" in name) == 14_714_688
    state["scaling_layer.scale"] = torch.full((1, 3, 1, 1), 0.5)
    state |= {f"lin{k}.model.1.weight": state[f"lin{k}.model.1.weight"].abs() for k in range(5)}
    path = tmp_path / "lpips.pth"
    # As newer versions of the package write it.
    torch.save(state | {"lins.0.model.1.weight": state["lin0.model.1.weight"]}, path)
    network = LPIPS.from_checkpoint(str(path))
    x, y = images(2, 0, 32), images(2, 1, 32)
    weights = [state[f"net.slice1.{k}.{name}"] for k in (0, 2) for name in ("weight", "bias")]
    first, second = (
        F.conv2d(F.conv2d(z / 0.5, *weights[:2], 1, 1).relu(), *weights[2:], 1, 1).relu()
        for z in (x, y)
    )
    one = (F.normalize(first, dim=1) - F.normalize(second, dim=1)) ** 2
    one = F.conv2d(one, state["lin0.model.1.weight"]).mean().item()
    for k in range(1, 5):
        network.state_dict()[f"lin{k}.model.1.weight"].zero_()
    assert network(x, y).item() == pytest.approx(one, rel=1e-4)
    assert network(x, x).item() == 0
    torch.save({"net.slice1.0.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match="weights of another network than LPIPS"):
        LPIPS.from_checkpoint(str(path))


def test_discriminator_has_the_published_shape():
    network = Discriminator()
    assert network(images(1)).shape == (1, 1, 11, 11)
    real, made = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    assert discriminator_loss(real, made).item() == pytest.approx(0.5 * (0.5 + 2))


def test_adaptive_weight_makes_the_gradients_equally_long():
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    others, adversarial = (3 * weight).sum(), weight[0] * 0.5
    factor = adaptive_weight(others, adversarial, weight)
    assert factor.item() == pytest.approx(18**0.5 / (0.5 + 1e-4))
    assert not factor.requires_grad
