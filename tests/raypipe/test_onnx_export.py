"""Export to ONNX: what insightface's own class reads is the network."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from insightface.model_zoo.arcface_onnx import ArcFaceONNX
from torch import nn

from raypipe import onnx_export
from raypipe.errors import UserError
from raypipe.models.iresnet import iresnet
from raypipe.models.mobilefacenet import MobileFaceNet
from raypipe.onnx_export import export_onnx
from raypipe.recognizer import normalised, open_recognizer


def faces(count: int, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(14, axis=1).repeat(14, axis=2)


def saved(network: nn.Module, path: Path) -> str:
    """Weights with the statistics of faces, in which different faces are different."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        network(normalised(torch.from_numpy(faces(8))))
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [
        lambda: iresnet("10", width=8),
        lambda: iresnet("18", width=16, se=True),
        lambda: MobileFaceNet("MobileFaceNet"),
    ],
    ids=["iresnet", "se", "mobilefacenet"],
)
def test_insightface_embeds_with_the_export_as_we_do(tmp_path: Path, network) -> None:
    weights, path = saved(network(), tmp_path / "w.pt"), str(tmp_path / "there" / "model.onnx")
    export_onnx(weights, path)
    images = faces(5, seed=9)
    model = ArcFaceONNX(model_file=path)
    model.prepare(-1)
    assert (model.input_mean, model.input_std, model.input_size) == (127.5, 127.5, (112, 112))
    feat = model.get_feat([np.ascontiguousarray(image[:, :, ::-1]) for image in images])  # BGR
    expected = open_recognizer(weights).embed(torch.from_numpy(images)).numpy()
    assert np.linalg.norm(expected[0] - expected[1]) > 0.1 * np.linalg.norm(expected[0])
    np.testing.assert_allclose(feat, expected, atol=1e-4)
    ours = open_recognizer(path)
    np.testing.assert_allclose(ours.embed(torch.from_numpy(images)), expected, atol=1e-4)
    onnx.checker.check_model(path)


def test_a_model_that_differs_is_not_written(tmp_path: Path, monkeypatch) -> None:
    weights, path = saved(iresnet("10", width=2), tmp_path / "w.pt"), tmp_path / "model.onnx"
    other = iresnet("10", width=2).eval()
    # The exporter makes no mistake that could be waited for, so it is handed another network.
    export = onnx_export._export
    monkeypatch.setattr(onnx_export, "_export", lambda _network, file: export(other, file))
    with pytest.raises(UserError, match="differs from the network by .* nothing was written"):
        export_onnx(weights, str(path))
    assert not path.exists()


def test_names_that_are_no_export_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a name that ends in"):
        export_onnx("w.pt", str(tmp_path / "model.pt"))
    with pytest.raises(UserError, match="is ONNX already"):
        export_onnx("w.onnx", str(tmp_path / "model.onnx"))
    with pytest.raises(UserError, match="no such file"):
        export_onnx(str(tmp_path / "w.pt"), str(tmp_path / "model.onnx"))
