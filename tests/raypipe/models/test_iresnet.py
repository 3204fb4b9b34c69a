"""IResNet against the published names, shapes, sizes and outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raypipe.models.iresnet import iresnet

PARITY = Path(__file__).parents[2] / "data" / "parity"


@pytest.mark.slow
@pytest.mark.parametrize("depth", ["18", "50"])
def test_names_shapes_and_embeddings_are_those_of_the_published_network(
    depth: str, formula_weights
) -> None:
    shapes = json.loads((PARITY / f"iresnet{depth}_state_dict.json").read_text())
    network = iresnet(depth).eval()
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == shapes
    network.load_state_dict(formula_weights(shapes))
    case = np.load(PARITY / "iresnet_case.npz")
    with torch.inference_mode():
        embedding = network(torch.from_numpy(case["x"])).numpy()
    np.testing.assert_allclose(embedding, case[f"r{depth}"], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("depth", "parameters", "entries"),
    [
        ("18", 24_025_600, 187),
        ("34", 34_139_328, 331),
        ("50", 43_590_848, 475),
        ("100", 65_156_160, 925),
        ("200", 118_833_920, 1807),
    ],
)
def test_sizes_are_those_of_arcface_torch(depth: str, parameters: int, entries: int) -> None:
    with torch.device("meta"):
        network = iresnet(depth)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert len(network.state_dict()) == entries
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["features.weight"]


def test_gates_of_the_hsface_recipe_are_in_first_blocks_only() -> None:
    with torch.device("meta"):
        plain, gated = iresnet("50"), iresnet("50", se=True)
    added = gated.state_dict().keys() - plain.state_dict().keys()
    assert added == {f"layer{k}.0.attn.fc{i}.weight" for k in (1, 2, 3, 4) for i in (1, 2)}
    assert gated.state_dict()["layer4.0.attn.fc1.weight"].shape == (32, 512, 1, 1)
    parameters = [sum(p.numel() for p in network.parameters()) for network in (plain, gated)]
    assert parameters[1] - parameters[0] == 43_520


def test_width_scales_planes_and_keeps_names() -> None:
    with torch.device("meta"):
        narrow, published = iresnet("18", width=16).state_dict(), iresnet("18").state_dict()
    assert list(narrow) == list(published)
    assert narrow["layer4.0.conv1.weight"].shape == (128, 64, 3, 3)
    assert narrow["fc.weight"].shape == (512, 128 * 49)


def test_last_layer_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    network = iresnet("10", width=8).eval()
    seen: list[torch.dtype] = []
    network.bn2.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    network.fc.register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))
    x = torch.rand(2, 3, 112, 112) * 2 - 1
    with torch.inference_mode():
        exact = network(x)
        seen.clear()
        with torch.autocast("cpu", torch.bfloat16):
            low = network(x)
    assert seen == [torch.bfloat16, torch.float32]
    assert low.dtype == torch.float32
    assert torch.cosine_similarity(low, exact).min() > 0.99


def test_trains_with_dropout() -> None:
    torch.manual_seed(0)
    network = iresnet("10", width=8, dropout=0.4)
    network(torch.rand(4, 3, 112, 112)).square().sum().backward()
    without = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert network.features.weight.grad is None
