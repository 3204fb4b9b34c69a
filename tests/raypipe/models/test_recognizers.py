"""Recognizers against published names, shapes and outputs, and found by what their files hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from raypipe.errors import UserError
from raypipe.models.iresnet import iresnet
from raypipe.models.mobilefacenet import SIZES, MobileFaceNet
from raypipe.models.recognizers import load_network, make_recognizer

PARITY = Path(__file__).parents[2] / "data" / "parity"
SHAPES = json.loads((PARITY / "recognizers_state_dict.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "bgr"),
    [
        ("mbf", "MobileFaceNet", False),
        ("mbf_large", "MobileFaceNet-large", False),
        ("r18_se", "IResNet-18 SE", False),
        ("ir18", "IR-18", True),
        ("ir18_evolve", "IR-18", False),
    ],
)
def test_published_weights_are_known_and_embed_as_published(
    tmp_path: Path, kind: str, name: str, bgr: bool, formula_weights
) -> None:
    path = str(tmp_path / "weights.pth")
    torch.save(formula_weights(SHAPES[kind]), path)
    loaded = load_network(path)
    assert (loaded.name, loaded.dimensions, loaded.bgr) == (name, 512, bgr)
    x = torch.from_numpy(np.load(PARITY / "iresnet_case.npz")["x"])
    expected = np.load(PARITY / "recognizers_case.npz")[kind]
    with torch.inference_mode():
        embedding = loaded.network(x).numpy()
    # Equal where the case was made; other processors add in another order.
    np.testing.assert_allclose(embedding, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        ("mbf", lambda: MobileFaceNet("MobileFaceNet")),
        ("mbf_large", lambda: MobileFaceNet("MobileFaceNet-large")),
        ("r18_se", lambda: iresnet("18", se=True)),
    ],
)
def test_names_and_shapes_are_published(kind: str, network) -> None:
    with torch.device("meta"):
        state = network().state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == SHAPES[kind]


@pytest.mark.parametrize(("size", "parameters"), zip(SIZES, (2_059_520, 6_314_880), strict=True))
def test_sizes_of_mobilefacenet_are_those_of_arcface_torch(size: str, parameters: int) -> None:
    with torch.device("meta"):
        network = MobileFaceNet(size)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


@pytest.mark.slow
def test_mobilefacenet_trains_and_ends_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    network = make_recognizer("mobilefacenet", depth="50", width=64, se=False, dropout=0.0)
    x = torch.rand(4, 3, 112, 112) * 2 - 1
    network(x).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    network.eval()
    with torch.inference_mode():
        exact = network(x)
        with torch.autocast("cpu", torch.bfloat16):
            low = network(x)
    assert low.dtype == torch.float32
    assert torch.cosine_similarity(low, exact).min() > 0.99


def test_training_gets_the_network_it_asks_for() -> None:
    with torch.device("meta"):
        network = make_recognizer("iresnet", depth="34", width=16, se=True, dropout=0.4)
        same = iresnet("34", width=16, se=True, dropout=0.4)
    assert str(network) == str(same)
    assert "Dropout(p=0.4" in str(network)


@pytest.mark.parametrize("depth", ["10", "18", "34", "50", "100", "152"])
@pytest.mark.parametrize("se", [False, True])
def test_depth_width_and_gates_are_read_from_the_file(tmp_path: Path, depth: str, se: bool) -> None:
    path = str(tmp_path / "weights.pt")
    torch.save(iresnet(depth, width=2, se=se).state_dict(), path)
    loaded = load_network(path)
    assert loaded.name == f"IResNet-{depth}" + (" SE" if se else "")
    assert not loaded.network.training
    assert loaded.network.state_dict()["conv1.weight"].shape[0] == 2


def refusal(tmp_path: Path, state: dict[str, torch.Tensor]) -> str:
    path = str(tmp_path / "w.pt")
    torch.save(state, path)
    with pytest.raises(UserError) as caught:
        load_network(path)
    assert str(caught.value).startswith(path) and "\n" not in str(caught.value)
    return str(caught.value).removeprefix(path)


def test_other_networks_are_refused_in_one_line(tmp_path: Path) -> None:
    assert "no recognizer that is known" in refusal(tmp_path, nn.Linear(2, 2).state_dict())
    state = iresnet("10", width=2).state_dict()
    extra = {**state, "layer1.1.conv1.weight": torch.zeros(2, 2, 3, 3)}
    assert "not an IResNet: (2, 1, 1, 1) blocks" in refusal(tmp_path, extra)
    assert "'fc.bias' has shape [256]" in refusal(tmp_path, {**state, "fc.bias": torch.zeros(256)})
    assert "'conv1.weight' has shape []" in refusal(
        tmp_path, {**state, "conv1.weight": torch.tensor(0.0)}
    )
    with_gates = {**state, "layer1.0.attn.fc1.weight": torch.zeros(1, 2, 1, 1)}
    assert "'layer1.0.attn.fc2.weight' is not in the file" in refusal(tmp_path, with_gates)
    shapes = {name: torch.zeros(shape) for name, shape in SHAPES["mbf"].items()}
    shapes["layers.3.layers.4.layers.0.layers.0.weight"] = torch.zeros(128, 128, 1, 1)
    assert "another network than MobileFaceNet" in refusal(tmp_path, shapes)


@pytest.mark.slow
def test_ir_networks_of_another_kind_are_refused(tmp_path: Path) -> None:
    state = {name: torch.zeros(shape) for name, shape in SHAPES["ir18_evolve"].items()}
    for broken in ("body.x.y", "body.0"):
        assert "is not in the network" in refusal(tmp_path, {**state, broken: torch.zeros(1)})
    state["body.0.res_layer.5.fc1.weight"] = torch.zeros(4, 64, 1, 1)
    assert "'body.0.res_layer.5.fc1.weight' has shape" in refusal(tmp_path, state)
