import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from raypipe.errors import UserError
from raypipe.models.iresnet import BLOCKS, IResNet, iresnet
from raypipe.models.mobilefacenet import MobileFaceNet
from raypipe.onnx_export import export_onnx
from raypipe.recognizer import flip_sum, normalised, open_recognizer


def trained(network):
    """With the statistics of faces, in which different faces are different, in inference mode."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.momentum = 1.0
    with torch.no_grad():
        network(normalised(faces(8)))
    return network.eval()


def faces(count, seed=0):
    """Smooth random pictures: noise alone gives every network the same answer."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(14, axis=1).repeat(14, axis=2))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return trained(iresnet("10", width=2))


def ir_names(state):
    """Names of AdaFace's network for the weights of ours, one block a stage."""
    start = {
        "conv1.": "input_layer.0.",
        "bn1.": "input_layer.1.",
        "prelu.": "input_layer.2.",
        "bn2.": "output_layer.0.",
        "fc.": "output_layer.3.",
        "features.": "output_layer.4.",
    }
    for stage in range(4):
        for i, part in enumerate(["bn1", "conv1", "bn2", "prelu", "conv2", "bn3"]):
            start[f"layer{stage + 1}.0.{part}."] = f"body.{stage}.res_layer.{i}."
        start[f"layer{stage + 1}.0.downsample."] = f"body.{stage}.shortcut_layer."
    renamed = {}
    for name, value in state.items():
        begin = next(begin for begin in start if name.startswith(begin))
        renamed[start[begin] + name.removeprefix(begin)] = value
    # Published without scale and offset of the last batch norm.
    return {
        n: v
        for n, v in renamed.items()
        if n not in ("output_layer.4.weight", "output_layer.4.bias")
    }


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def embeds_as(recognizer, network, bgr=False):
    images = faces(3, seed=1)
    with torch.no_grad():
        expected = network(normalised(images.flip(3) if bgr else images))
    # 2e-6 of the largest number: batch norms are computed alike, additions need not be.
    largest = expected.abs().max().item()
    embedded = recognizer.embed(images)
    assert embedded.dtype == torch.float32
    assert embedded.shape == (3, recognizer.dimensions) == (3, 512)
    return (embedded - expected).abs().max().item() < 1e-5 * largest


def test_normalised_is_the_published_scaling():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    values = normalised(pixels)
    assert values.shape == (1, 3, 1, 1)
    assert values.flatten().tolist() == pytest.approx([-1.0, (51 / 255 - 0.5) / 0.5, 1.0])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict_backbone": s, "epoch": 1, "state_optimizer": {"lr": 0.1}},
        lambda s: prefixed(s, "module."),
        lambda s: {"state_dict": prefixed(s, "features.module.")},
        lambda s: {
            "state_dict": {**prefixed(s, "module.features."), "module.fc.weight": s["fc.bias"]}
        },
        lambda s: prefixed(s, "net."),
    ],
    ids=["bare", "arcface_torch", "parallel", "magface", "magface_head", "cvlface_insightface"],
)
def test_every_wrapper_of_an_iresnet_opens(tmp_path, network, wrap):
    path = str(tmp_path / "weights.pt")
    torch.save(wrap(network.state_dict()), path)
    recognizer = open_recognizer(path)
    assert recognizer.name == "IResNet-10"
    assert embeds_as(recognizer, network)


@pytest.mark.slow
def test_safetensors_gates_and_mobilefacenet_open(tmp_path):
    gated, mobile = (
        trained(iresnet("10", width=16, se=True)),
        trained(MobileFaceNet("MobileFaceNet")),
    )
    for network, name in ((gated, "IResNet-10 SE"), (mobile, "MobileFaceNet")):
        path = str(tmp_path / "weights.safetensors")
        save_file(network.state_dict(), path)
        recognizer = open_recognizer(path)
        assert recognizer.name == name
        assert embeds_as(recognizer, network)


@pytest.mark.slow
def test_ir_networks_open_with_the_colours_of_their_publisher(tmp_path):
    torch.manual_seed(0)
    network = trained(IResNet(BLOCKS["10"], 2, pooled=True))
    state = ir_names(network.state_dict())
    path = str(tmp_path / "weights.ckpt")
    torch.save({"state_dict": {**prefixed(state, "model."), "head.kernel": torch.zeros(2)}}, path)
    adaface = open_recognizer(path)
    assert adaface.name == "IR-10"
    assert embeds_as(adaface, network, bgr=True) and not embeds_as(adaface, network)
    # An ONNX model is fed with red first, so the export swaps.
    export_onnx(path, str(tmp_path / "adaface.onnx"))
    assert embeds_as(open_recognizer(str(tmp_path / "adaface.onnx")), network, bgr=True)
    for prefix in ("net.", "model.net."):
        torch.save(prefixed(state, prefix), path)
        cvlface = open_recognizer(path)
        assert embeds_as(cvlface, network) and not embeds_as(cvlface, network, bgr=True)


def test_mirrored_faces_embed_alike_and_other_faces_do_not(tmp_path, network):
    path = str(tmp_path / "weights.pt")
    torch.save(network.state_dict(), path)
    recognizer, images = open_recognizer(path), faces(2)
    embedded = flip_sum(recognizer, images)
    assert embedded.shape == (2, 512)
    assert torch.allclose(embedded, flip_sum(recognizer, images.flip(2)), atol=1e-5)
    assert (embedded[0] - embedded[1]).norm() > 0.1 * embedded[0].norm()
    values = normalised(images)
    with torch.no_grad():
        assert torch.allclose(embedded, network(values) + network(values.flip(3)), atol=1e-5)


def onnx_model(path, *, batch="N", side=112, outputs=1, scales=False):
    """A linear embedding of the mean colour, with the first nodes of an old MXNet export."""
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    nodes, faces = [], "data"
    if scales:
        nodes += [
            helper.make_node("Sub", ["data", "mean"], ["centred"], name="_minusscalar0"),
            helper.make_node("Mul", ["centred", "scale"], ["scaled"], name="_mulscalar0"),
        ]
        faces = "scaled"
    nodes += [
        helper.make_node("GlobalAveragePool", [faces], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flat"),
    ]
    nodes += [
        helper.make_node("MatMul", ["flat", "weight"], [f"out{k}"], name=f"linear{k}")
        for k in range(outputs)
    ]
    graph = helper.make_graph(
        nodes,
        "recognizer",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [batch, 3, side, side])],
        [
            helper.make_tensor_value_info(f"out{k}", TensorProto.FLOAT, [batch, 4])
            for k in range(outputs)
        ],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.float32([127.5]), "mean"),
            numpy_helper.from_array(np.float32([1 / 128]), "scale"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path, weight


@pytest.mark.parametrize("batch", ["N", 1])
@pytest.mark.parametrize(("scales", "divisor"), [(False, 127.5), (True, 128)])
def test_onnx_of_anyones_is_fed_as_insightface_does(tmp_path, batch, scales, divisor):
    path, weight = onnx_model(str(tmp_path / "w600k_r50.onnx"), batch=batch, scales=scales)
    recognizer = open_recognizer(path)
    assert (recognizer.name, recognizer.dimensions) == ("w600k_r50.onnx", 4)
    images = faces(3)
    colours = (images.numpy().astype(np.float64).mean((1, 2)) - 127.5) / divisor  # red first
    np.testing.assert_allclose(recognizer.embed(images).numpy(), colours @ weight, atol=1e-4)


def test_onnx_of_other_inputs_or_outputs_is_refused_in_one_line(tmp_path):
    for wrong in ({"side": 160}, {"outputs": 2}, {"batch": 8}):
        path, _ = onnx_model(str(tmp_path / "other.onnx"), **wrong)
        with pytest.raises(UserError, match="not a recognition model: inputs") as caught:
            open_recognizer(path)
        assert str(caught.value).startswith(path) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"none\.onnx: no such file"):
        open_recognizer(str(tmp_path / "none.onnx"))


def test_weights_of_another_network_are_refused(tmp_path):
    path = str(tmp_path / "weights.pt")
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(UserError, match="no recognizer that is known"):
        open_recognizer(path)
