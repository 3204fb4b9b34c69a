"""Embedders: one interface over three kinds."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from raypipe import storage
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import flip_sum, open_embedder
from raypipe.errors import UserError
from raypipe.models.iresnet import IResNet, iresnet
from raypipe.models.loading import shipped


def crops(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures: noise alone gives every network the same answer."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(14, axis=1).repeat(14, axis=2)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def random_iresnet() -> IResNet:
    """A small IResNet with fixed weights and statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = iresnet("10", width=8)
    for _ in range(4):
        network(torch.from_numpy(crops(4)).permute(0, 3, 1, 2) / 127.5 - 1)
    return network.eval()


@pytest.fixture(scope="module")
def network() -> IResNet:
    return random_iresnet()


@pytest.fixture(scope="module")
def expected(network: IResNet) -> np.ndarray:
    """Embeddings of crops(5) as the published preprocessing, (x/255 - 0.5) / 0.5, gives them."""
    x = (torch.from_numpy(crops(5)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        return network(x).numpy()


@pytest.fixture(scope="module")
def checkpoint(network: IResNet, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("weights") / "r10.pth")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def onnx_model(network: IResNet, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("onnx") / "r10.onnx")
    torch.onnx.export(
        network,
        (torch.zeros(2, 3, 112, 112),),
        path,
        input_names=["input.1"],
        dynamic_axes={"input.1": {0: "batch"}},
        dynamo=False,
    )
    return path


def test_iresnet_is_the_network_with_published_preprocessing(
    checkpoint: str, expected: np.ndarray
) -> None:
    embedder = open_embedder(
        EmbedderConfig(kind="iresnet", depth="10", width=8, weights=checkpoint), "cpu"
    )
    embedding = embedder.embed(crops(5))
    assert (embedding.dtype, embedding.shape) == (np.float32, (5, embedder.dimension))
    assert embedder.weights_path == checkpoint
    np.testing.assert_allclose(embedding, expected, atol=1e-4)


def test_insightface_runs_an_export_of_the_same_network(
    onnx_model: str, expected: np.ndarray
) -> None:
    embedder = open_embedder(EmbedderConfig(kind="insightface", weights=onnx_model), "cpu")
    embedding = embedder.embed(crops(5))
    assert (embedding.dtype, embedding.shape) == (np.float32, (5, 512))
    assert embedder.dimension == 512
    assert embedder.weights_path == onnx_model
    assert cosine(embedding, expected).min() > 0.9999
    # The check can tell: colours the other way round are another picture.
    assert cosine(embedder.embed(crops(5)[..., ::-1].copy()), expected).min() < 0.999


def test_dlib_ships_with_its_weights() -> None:
    embedder = open_embedder(EmbedderConfig(), "cpu")
    embedding = embedder.embed(crops(3))
    assert (embedding.dtype, embedding.shape) == (np.float32, (3, 128))
    assert embedder.weights_path == shipped("dlib_resnet_v1.safetensors")
    assert np.array_equal(embedding, embedder.embed(crops(3)))


def test_dlib_gives_the_same_bytes_with_one_thread_and_two() -> None:
    embedder, before, found = open_embedder(EmbedderConfig(), "cpu"), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(embedder.embed(crops(20)).tobytes())
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_flip_sum_is_symmetric_under_mirroring() -> None:
    embedder = open_embedder(EmbedderConfig(), "cpu")
    images = crops(2)
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    total = flip_sum(embedder, images)
    np.testing.assert_allclose(total, embedder.embed(images) + embedder.embed(mirrored), atol=1e-6)
    np.testing.assert_allclose(total, flip_sum(embedder, mirrored), atol=1e-6)
    assert not np.allclose(total, 2 * embedder.embed(images), atol=1e-3)


def test_weights_of_another_depth_are_refused(checkpoint: str) -> None:
    config = EmbedderConfig(kind="iresnet", depth="18", width=8, weights=checkpoint)
    with pytest.raises(UserError, match=r"r10\.pth: weights of another network than IResNet"):
        open_embedder(config, "cpu")


def test_onnx_that_is_missing_broken_or_no_recognizer_is_refused(tmp_path: Path) -> None:
    def refusal(path: str) -> str:
        with pytest.raises(UserError) as caught:
            open_embedder(EmbedderConfig(kind="insightface", weights=path), "cpu")
        return str(caught.value)

    assert refusal(str(tmp_path / "none.onnx")).endswith("none.onnx: no such file")
    (tmp_path / "text.onnx").write_bytes(b"no model")
    assert "text.onnx: not an ONNX model" in refusal(str(tmp_path / "text.onnx"))
    other = str(tmp_path / "other.onnx")
    torch.onnx.export(
        torch.nn.Conv2d(3, 4, 3).eval(), (torch.zeros(1, 3, 64, 64),), other, dynamo=False
    )
    assert "other.onnx: not a recognition model: inputs [[1, 3, 64, 64]]" in refusal(other)


@pytest.mark.parametrize("kind", ["iresnet", "insightface"])
def test_weights_of_a_bucket(
    kind: str,
    checkpoint: str,
    onnx_model: str,
    expected: np.ndarray,
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAYPIPE_CACHE", str(tmp_path))
    file = {"iresnet": checkpoint, "insightface": onnx_model}[kind]
    uri = f"{s3_bucket}/weights/{Path(file).name}"
    storage.write_bytes(uri, Path(file).read_bytes())
    config = EmbedderConfig(kind=kind, depth="10", width=8, weights=uri)
    embedder = open_embedder(config, "cpu")
    assert cosine(embedder.embed(crops(5)), expected).min() > 0.9999
    assert embedder.weights_path == uri
    assert [path.name for path in tmp_path.rglob("*.*") if path.suffix != ".lock"] == [
        Path(file).name
    ]


def test_configuration_wants_weights_where_none_ship() -> None:
    for kind in ("iresnet", "insightface"):
        with pytest.raises(ValidationError, match="needs weights"):
            EmbedderConfig(kind=kind)


def test_configuration_costs_no_torch() -> None:
    import subprocess

    code = "import sys, raypipe.config.embed, raypipe.config.align; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
