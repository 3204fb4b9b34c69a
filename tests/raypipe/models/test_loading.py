"""Loading weights: published wrappers, clear refusals, and no code from a file."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from raypipe.errors import UserError
from raypipe.models.dcgan import DCGANGenerator
from raypipe.models.dlib_resnet import DlibResNet
from raypipe.models.iresnet import iresnet
from raypipe.models.loading import load_into, load_state, shipped


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: prefixed(s, "module."),
        lambda s: {"state_dict": prefixed(s, "features.module."), "epoch": 3},
        lambda s: {"state_dict": {**prefixed(s, "model."), "head.kernel": torch.zeros(2)}},
        lambda s: {"state_dict_backbone": s, "epoch": 1, "state_optimizer": {"lr": 0.1}},
        lambda s: prefixed(s, "net."),
        lambda s: prefixed(s, "model.net."),
    ],
    ids=[
        "arcface_torch",
        "parallel",
        "magface",
        "adaface",
        "arcface_torch_checkpoint",
        "cvlface",
        "cvlface_hub",
    ],
)
def test_published_wrappers_are_taken_off(tmp_path: Path, wrap) -> None:
    source, target = network(0), network(1)
    path = str(tmp_path / "weights.pt")
    torch.save(wrap(source.state_dict()), path)
    load_into(target, path)
    for name, value in target.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


@pytest.mark.parametrize("prefix", ["features.module.", "module.features."])
def test_magface_is_found_beside_its_head(tmp_path: Path, prefix: str) -> None:
    state = iresnet("10", width=2).state_dict()
    path = str(tmp_path / "magface.pth")
    head = {"module.fc.weight" if prefix[0] == "m" else "fc.weight": torch.zeros(2, 3)}
    torch.save({"state_dict": {**prefixed(state, prefix), **head}}, path)
    assert load_state(path).keys() == state.keys()


def test_the_last_layers_name_is_no_prefix(tmp_path: Path) -> None:
    state = iresnet("10", width=2).state_dict()
    path = str(tmp_path / "parallel.pt")
    torch.save(prefixed(state, "module."), path)
    assert load_state(path).keys() == state.keys()


def test_networks_that_name_all_their_layers_features_keep_the_name(tmp_path: Path) -> None:
    path = str(tmp_path / "vgg.pt")
    torch.save(prefixed(network().state_dict(), "features."), path)
    assert "features.0.weight" in load_state(path)


def test_half_precision_safetensors_become_the_networks_precision(tmp_path: Path) -> None:
    source, target = network(0), network(1)
    path = str(tmp_path / "weights.safetensors")
    halves = {n: v.half() for n, v in source.state_dict().items() if "num_batches" not in n}
    save_file(halves, path)
    load_into(target, path)
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, source[0].weight.half().float())


class Malicious:
    """Runs a command when it is unpickled by Python's own pickle."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save(
        {"weight": torch.zeros(2), "x": Malicious(marker)},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=r"evil\.pt: not weights that can be loaded safely"):
        load_state(str(path))
    assert not marker.exists()
    torch.load(path, weights_only=False)  # the file is a live one
    assert marker.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pt", b""),
        ("text.pth", b"this is no checkpoint"),
        ("text.safetensors", b"this is no checkpoint"),
        ("huge_header.safetensors", b"\xff" * 16),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_state(str(tmp_path / name))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"cut\.pt"):
        load_state(str(path))


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pt: no such file"):
        load_state(str(tmp_path / "nowhere.pt"))
    with pytest.raises(UserError, match="cannot be read"):
        load_state(str(tmp_path))


def test_what_is_not_a_tensor_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "odd.pt")
    torch.save({"0.weight": [1, 2]}, path)
    with pytest.raises(UserError, match=r"odd\.pt: '0\.weight' is a list, not a tensor"):
        load_state(path)


def test_another_network_is_refused_with_first_name_and_both_shapes(tmp_path: Path) -> None:
    state = network().state_dict()
    path = str(tmp_path / "w.pt")

    torch.save({**state, "0.weight": torch.zeros(4, 3, 5, 5)}, path)
    with pytest.raises(UserError) as caught:
        load_into(network(), path)
    assert str(caught.value) == (
        f"{path}: weights of another network than Sequential: '0.weight' has shape [4, 3, 5, 5] in "
        "the file and [4, 3, 3, 3] in the network"
    )

    torch.save({name: value for name, value in state.items() if name[0] == "0"}, path)
    with pytest.raises(UserError, match=r"'1\.weight' is not in the file .* \[4\] .*3 more"):
        load_into(network(), path)

    torch.save({**state, "attn.fc1.weight": torch.zeros(1, 2)}, path)
    with pytest.raises(
        UserError, match=r"'attn\.fc1\.weight' has shape \[1, 2\] in the file and is"
    ):
        load_into(network(), path)


def test_a_refused_file_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    path = str(tmp_path / "w.pt")
    torch.save({**network(1).state_dict(), "1.bias": torch.zeros(9)}, path)
    target = network(0)
    with pytest.raises(UserError):
        load_into(target, path)
    assert torch.equal(target[0].weight, network(0)[0].weight)


def test_shipped_weights_fit_their_networks() -> None:
    load_into(DlibResNet(), shipped("dlib_resnet_v1.safetensors"))
    load_into(DCGANGenerator(), shipped("dcgan_digiface.safetensors"))
    with pytest.raises(UserError, match="than IResNet"):
        load_into(iresnet("10", width=4), shipped("dlib_resnet_v1.safetensors"))


@pytest.mark.parametrize("name", ["dlib_resnet_v1", "dcgan_digiface"])
def test_every_shipped_file_has_a_card_with_its_digest(name: str) -> None:
    from raypipe.storage import sha256_file

    card = Path(shipped(f"{name}.md")).read_text()
    assert sha256_file(shipped(f"{name}.safetensors")) in card
    for topic in ("What.", "Origin and licence.", "Measured quality."):
        assert topic in card
