"""AttrOP on a small generator with random weights and an estimator that anybody can check."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from raypipe.attributes import AttributeControl, short_of
from raypipe.config.attributes import AttributeConfig, AttributesConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import open_embedder
from raypipe.generator_losses import FaceFeatures
from raypipe.models.dcgan import DCGANGenerator
from raypipe.models.iresnet import EMBEDDING, iresnet
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import Vec2Face
from raypipe.models.vec2face_sizes import SMALL
from raypipe.models.vec2face_small import SmallDecoder, start_from_dcgan

PEOPLE = 3


class Brightness(nn.Module):
    """Mean of the pixels, in [-100, 100]."""

    def forward(self, images):
        return 100 * images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """An embedder with random weights: quick, and what its features mean does not matter here."""
    torch.manual_seed(2)
    path = str(tmp_path_factory.mktemp("weights") / "iresnet.pth")
    torch.save(iresnet("10", width=4).state_dict(), path)
    config = EmbedderConfig(kind="iresnet", depth="10", width=4, weights=path)
    return FaceFeatures(open_embedder(config, "cpu"))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = Vec2Face(replace(SMALL, vector=EMBEDDING), 1.0)
    dcgan = DCGANGenerator()
    load_into(dcgan, shipped("dcgan_digiface.safetensors"))
    assert isinstance(network.im_decoder, SmallDecoder)
    start_from_dcgan(network.im_decoder, dcgan.eval())
    return network.prepare("cpu")


@pytest.fixture(scope="module")
def given(network):
    """Vectors, token noise and mask rates."""
    random = torch.Generator().manual_seed(1)
    vectors = torch.randn(PEOPLE, EMBEDDING, generator=random)
    rates = torch.tensor([0.1, 0.3, 0.5], dtype=torch.float64)
    return vectors, torch.rand(PEOPLE, SMALL.side**2, generator=random), rates


def brightness(goal="value", value=0.0, tolerance=1.0):
    return AttributeConfig(
        name="brightness", estimator="x:y", goal=goal, value=value, tolerance=tolerance
    )


def control(network, faces, goal, **changes):
    settings = {"steps": 8, "identity_weight": 0.0, "identity_distance": 2.0} | changes
    config = AttributesConfig(goals=[goal], **settings)
    return AttributeControl(config, network, faces, [Brightness()])


def shown(network, given):
    with torch.no_grad():
        return network(*given).clamp(-1, 1)


def test_every_sample_stops_on_its_own(network, faces, given):
    vectors, noise, rates = given
    before = Brightness()(shown(network, given))
    # There already; near; out of reach.
    wanted = torch.stack([before[0], before[1] + 8, before[2] + 500])[:, None]
    attributes = control(network, faces, brightness(), steps=30)
    end = attributes.optimise(vectors, vectors, wanted, noise, rates)
    assert end.converged.tolist() == [True, True, False]
    assert end.steps[0] == 0 and 0 < end.steps[1] < 30 and end.steps[2] == 30
    assert torch.equal(end.vectors[0], vectors[0])
    assert torch.allclose(end.vectors.norm(dim=1), vectors.norm(dim=1))
    # What is reported is what the vectors make.
    images = shown(network, (end.vectors, noise, rates))
    assert torch.allclose(Brightness()(images)[:, None], end.values, atol=0.01)
    distances = 1 - F.cosine_similarity(faces(images)[0], vectors)
    assert torch.allclose(distances, end.distances, atol=1e-3)
    assert abs(end.values[1] - wanted[1]) <= 1
    assert end.values[2] > before[2] + 3  # what did not converge is the nearest that was seen


def test_nobody_depends_on_who_is_beside(network, faces, given):
    vectors, noise, rates = given
    before = Brightness()(shown(network, given))
    wanted = (before + torch.tensor([3.0, 8.0, 200.0]))[:, None]
    attributes = control(network, faces, brightness(), steps=5, identity_weight=10.0)
    together = attributes.optimise(vectors, vectors, wanted, noise, rates)
    for k in range(PEOPLE):
        rows = (x[k : k + 1] for x in (vectors, vectors, wanted, noise, rates))
        alone = attributes.optimise(*rows)
        assert alone.steps[0] == together.steps[k]
        assert alone.converged[0] == together.converged[k]
        assert torch.allclose(alone.vectors[0], together.vectors[k], atol=1e-3)


def test_the_step_is_adams_at_the_vectors_length(network, faces, given):
    vectors, noise, rates = (x[:1] for x in given)
    goal = brightness("at_least", 1000.0)
    attributes = control(network, faces, goal, steps=4, identity_weight=50.0, rate=0.05)
    end = attributes.optimise(vectors, vectors, torch.tensor([[1000.0]]), noise, rates)
    moved = nn.Parameter(vectors.clone())
    adam = torch.optim.Adam([moved], lr=0.05)
    losses = []
    for _ in range(4):
        images = network(moved, noise, rates).clamp(-1, 1)
        distance = 1 - F.cosine_similarity(faces(images)[0], vectors)
        loss = 50 * distance + 1000 - Brightness()(images)
        losses.append(loss.item())
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        moved.data = F.normalize(moved.data, dim=1) * vectors.norm()
    assert sorted(losses, reverse=True) == losses  # so the last is the best
    assert torch.allclose(end.vectors, moved.data, atol=1e-3)
    assert end.steps.item() == 4 and not end.converged.item()


def test_the_identity_is_a_goal_too(network, faces, given):
    vectors, noise, rates = given
    targets = faces(shown(network, given))[0]
    wanted = Brightness()(shown(network, given))[:, None]
    centre = targets.mean(0)
    config = AttributesConfig(goals=[brightness()], steps=0, identity_distance=0.01)
    attributes = AttributeControl(config, network, faces, [Brightness()], centre=centre)
    assert attributes.optimise(vectors, targets, wanted, noise, rates).converged.all()
    others = attributes.optimise(vectors, targets.roll(1, 0), wanted, noise, rates)
    assert not others.converged.any()
    cosines = F.cosine_similarity(targets - centre, targets.roll(1, 0) - centre)
    assert torch.allclose(others.distances, 1 - cosines, atol=1e-3)


def test_distance_from_the_goals():
    goals = [brightness(goal) for goal in ("at_least", "value", "magnitude")]
    values = torch.tensor([[5.0, 5.0, 5.0], [-5.0, -5.0, -5.0]])
    wanted = torch.tensor([[3.0, 3.0, 3.0], [3.0, 3.0, 3.0]])
    assert short_of(goals, values, wanted).tolist() == [[0, 2, 2], [8, 8, 2]]


def test_images_of_an_identity_take_turns():
    config = AttributesConfig(goals=[brightness(value=[1.0, 2.0, 3.0]), brightness(value=9.0)])
    assert config.values_for([0, 1, 4]) == [[1, 9], [2, 9], [2, 9]]
    with pytest.raises(ValidationError, match="pattern"):
        AttributeConfig(name="x", estimator="no colon", goal="value", value=0, tolerance=0)
