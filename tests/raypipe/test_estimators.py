import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from raypipe import estimators, storage
from raypipe.config.attributes import AttributeConfig
from raypipe.errors import UserError
from raypipe.estimator_labels import Labeller
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.iresnet import iresnet
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels


def attribute(estimator, weights=None):
    return AttributeConfig(
        name="x", estimator=estimator, weights=weights, goal="value", value=0, tolerance=1
    )


def test_anybodys_function_can_be_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "their_estimators.py").write_text(
        "import torch\n"
        "class Red(torch.nn.Module):\n"
        "    def __init__(self, factor):\n"
        "        super().__init__()\n"
        "        self.factor = torch.nn.Parameter(torch.tensor(factor))\n"
        "    def forward(self, images):\n"
        "        return self.factor * images[:, 0].mean((1, 2))\n"
        "def red(weights, device):\n"
        "    return Red(float(weights))\n"
        "def nothing(weights, device):\n"
        "    return 3\n"
    )
    red = estimators.load(attribute("their_estimators:red", "2"), "cpu")
    assert torch.allclose(red(torch.full((2, 3, 112, 112), 0.5)), torch.ones(2))
    assert not red.training and not red.factor.requires_grad
    with pytest.raises(UserError, match="returns a int; expected a torch.nn.Module"):
        estimators.load(attribute("their_estimators:nothing"), "cpu")
    with pytest.raises(UserError, match="'their_estimators:green' cannot be imported"):
        estimators.load(attribute("their_estimators:green"), "cpu")
    with pytest.raises(UserError, match="'no_such:red' cannot be imported"):
        estimators.load(attribute("no_such:red"), "cpu")
    sys.modules.pop("their_estimators")


def test_the_function_gets_a_file_of_this_node(s3_bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYPIPE_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reading_estimators.py").write_text(
        "import torch\n"
        "def bias(weights, device):\n"
        "    layer = torch.nn.Linear(1, 1)\n"
        "    layer.bias.data.fill_(float(open(weights).read()))\n"
        "    return layer\n"
    )
    storage.write_bytes(f"{s3_bucket}/estimators/bias.txt", b"2.5")
    weights = f"{s3_bucket}/estimators/bias.txt"
    found = estimators.load(attribute("reading_estimators:bias", weights), "cpu")
    assert found.bias.item() == 2.5


def test_magface_is_the_length_of_the_feature(tmp_path):
    torch.manual_seed(0)
    network = iresnet("18", width=4).eval()
    path = str(tmp_path / "magface.pth")
    # As MagFace's training script names them.
    state = {f"features.module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state}, path)
    images = torch.rand(2, 3, 112, 112) * 2 - 1
    quality = estimators.load(attribute("raypipe.estimators:magface", path), "cpu")
    with torch.no_grad():
        assert torch.allclose(quality(images), network(images).norm(dim=1))
    with pytest.raises(UserError, match="needs weights"):
        estimators.load(attribute("raypipe.estimators:magface"), "cpu")
    path = shipped("dcgan_digiface.safetensors")
    with pytest.raises(UserError, match="not an IResNet"):
        estimators.load(attribute("raypipe.estimators:magface", path), "cpu")


def faces(count, seed=0):
    """Faces of the DCGAN, in [-1, 1]."""
    dcgan = DCGANGenerator()
    load_into(dcgan, shipped("dcgan_digiface.safetensors"))
    rng = np.random.default_rng(seed)
    latents = torch.from_numpy(rng.standard_normal((count, LATENT)).astype(np.float32))
    with torch.inference_mode():
        return F.interpolate(dcgan.eval()(latents), size=112, mode="bicubic").clamp(-1, 1)


def test_what_ships_tells_a_face_from_none_and_left_from_right():
    images = faces(32)
    with torch.inference_mode():
        quality = estimators.load(attribute("raypipe.estimators:face_quality"), "cpu")
        yaw = estimators.load(attribute("raypipe.estimators:face_yaw"), "cpu")
        pitch = estimators.load(attribute("raypipe.estimators:face_pitch"), "cpu")
        assert quality(images).mean() > quality(images.flip(2)).mean() + 0.5  # upside down
        mirrored = images.flip(3)
        assert np.corrcoef(yaw(images), yaw(mirrored))[0, 1] < -0.9
        assert np.corrcoef(pitch(images), pitch(mirrored))[0, 1] > 0.9


@pytest.mark.slow
def test_what_ships_agrees_with_dlib():
    images = faces(40, seed=5)
    labeller = Labeller()
    labels = [labeller.label(face) for face in to_pixels(images)]
    for name, least in (("quality", 0.75), ("yaw", 0.85), ("pitch", 0.6)):
        true = np.array([getattr(label, name) for label in labels])
        with torch.inference_mode():
            told = estimators.load(attribute(f"raypipe.estimators:face_{name}"), "cpu")(images)
        known = ~np.isnan(true)
        assert np.corrcoef(true[known], told.numpy()[known])[0, 1] > least, name
