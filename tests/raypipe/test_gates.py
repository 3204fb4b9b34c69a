"""Gates of references: what is measured on photographs and drawings, and what is refused for it."""

import functools

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw
from pydantic import ValidationError
from scipy.spatial.transform import Rotation

from raypipe import orl
from raypipe.aligners import AlignedFace, Aligner, open_aligner
from raypipe.config.align import AlignerConfig
from raypipe.config.gates import GatesConfig
from raypipe.gates import flatness, measure, refused, sharpness
from raypipe.identities import Try
from raypipe.images import decode
from raypipe.pose import DLIB_HEAD, SCRFD_HEAD, pose

ANYTHING = GatesConfig(
    min_size=None, min_sharpness=None, max_yaw=None, max_pitch=None, max_flatness=None
)
GOOD = {"size": 90.0, "sharpness": 0.5, "yaw": 5.0, "pitch": -5.0, "flatness": 0.5}


@pytest.fixture(scope="module")
def people() -> list[np.ndarray]:
    """Photographs of 10 people, uint8 (112, 92, 3)."""
    found = orl.photographs()[:200:20]
    return [decode(open(photo.path, "rb").read(), source=photo.path) for photo in found]


@functools.cache
def aligner() -> Aligner:
    return open_aligner(AlignerConfig(margin=0.25))


def find(rgb: np.ndarray) -> list[AlignedFace]:
    return aligner().find(rgb)


def look(rgb: np.ndarray) -> Try:
    return measure(rgb, find(rgb))


def cartoon(side: int = 256) -> np.ndarray:
    """A face of flat shapes, in which dlib finds a face."""
    image = Image.new("RGB", (side, side), (214, 222, 240))
    draw = ImageDraw.Draw(image)

    def box(x: float, y: float, wide: float, high: float) -> list[float]:
        return [side * value for value in (x - wide, y - high, x + wide, y + high)]

    draw.ellipse(box(0.5, 0.42, 0.33, 0.36), fill=(60, 40, 20))
    draw.ellipse(box(0.5, 0.52, 0.27, 0.36), fill=(224, 172, 140))
    for x in (0.38, 0.62):
        draw.ellipse(box(x, 0.46, 0.06, 0.032), fill="white", outline=(60, 40, 20), width=2)
        draw.ellipse(box(x, 0.46, 0.027, 0.03), fill=(60, 40, 20))
        draw.rectangle(box(x, 0.4, 0.06, 0.01), fill=(60, 40, 20))
    draw.polygon([side * v for v in (0.5, 0.48, 0.46, 0.62, 0.54, 0.62)], fill=(180, 138, 112))
    draw.chord(box(0.5, 0.715, 0.1, 0.045), 10, 170, fill=(170, 60, 60))
    return np.asarray(image)


def outlined(rgb: np.ndarray) -> np.ndarray:
    """A photograph as six levels with black outlines."""
    smooth = cv2.bilateralFilter(cv2.bilateralFilter(rgb, 7, 40, 7), 7, 40, 7)
    grey = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (0, 0), 1)
    lines = cv2.adaptiveThreshold(
        grey, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, blockSize=9, C=4
    )
    return np.minimum(smooth // 42 * 42 + 21, lines[..., None])


@pytest.mark.parametrize("head", [DLIB_HEAD, SCRFD_HEAD], ids=["dlib", "SCRFD"])
@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(0, 0, 0), (20, 5, 3), (-40, -15, -30), (35, 20, 25), (10, -5, 80)]
)
def test_pose_of_a_head_that_is_turned_and_photographed(
    head: np.ndarray, yaw: int, pitch: int, roll: int
) -> None:
    turned = Rotation.from_euler("YXZ", [yaw, pitch, roll], degrees=True).apply(head)
    photographed = turned[:, :2] * [4.2, -4.2] + [30, 70]
    assert pose(photographed, head) == pytest.approx((yaw, pitch), abs=1e-3)


def test_photographs_pass(people: list[np.ndarray]) -> None:
    for rgb in people:
        measured = look(rgb)
        assert refused(measured, GatesConfig()) is None, measured
        assert measured.size is not None and 50 < measured.size < 112


def test_yaw_follows_the_mirror_image(people: list[np.ndarray]) -> None:
    yaws = [(look(rgb).yaw, look(np.ascontiguousarray(rgb[:, ::-1])).yaw) for rgb in people]
    assert max(abs(yaw) for yaw, _ in yaws) > 8
    assert np.median([abs(yaw + mirrored) for yaw, mirrored in yaws]) < 4


def test_sharpness_falls_with_blur_and_hardly_with_contrast(people: list[np.ndarray]) -> None:
    for rgb in people:
        (face,) = find(rgb)
        values = [
            measure(cv2.GaussianBlur(rgb, (0, 0), sigma), [face]).sharpness
            for sigma in (0.3, 1, 2, 3)
        ]
        assert values == sorted(values, reverse=True)
        assert values[-1] < GatesConfig().min_sharpness < values[0]
        faint = (0.4 * rgb + 70).astype(np.uint8)
        assert measure(faint, [face]).sharpness == pytest.approx(values[0], abs=0.03)
    assert refused(measure(cv2.GaussianBlur(rgb, (0, 0), 3), [face]), GatesConfig()) == (
        "seed:blurred"
    )


def test_sharpness_is_that_of_the_crop(people: list[np.ndarray]) -> None:
    """Enlarging a picture does not make its face sharper or more blurred."""
    for rgb in people[:3]:
        (face,) = find(rgb)
        twice = AlignedFace(
            crop=face.crop,
            box=2 * face.box,
            points=2 * face.points,
            head=face.head,
            score=face.score,
        )
        once = measure(rgb, [face])
        enlarged = measure(cv2.resize(rgb, None, fx=2, fy=2), [twice])
        assert enlarged.sharpness == pytest.approx(once.sharpness, abs=0.06)
        assert enlarged.size == 2 * once.size
        assert enlarged.yaw == pytest.approx(once.yaw, abs=0.1)


def test_drawings_are_told_from_photographs_without_colour(people: list[np.ndarray]) -> None:
    limit = GatesConfig().max_flatness
    for rgb in people:
        (face,) = find(rgb)
        assert measure(rgb, [face]).flatness < limit - 0.05
        assert measure(outlined(rgb), [face]).flatness > limit + 0.05


def test_a_cartoon_is_a_drawing_in_colour_and_grey() -> None:
    drawn = cartoon()
    measured = look(drawn)
    assert measured.faces == 1
    assert refused(measured, GatesConfig()) == "seed:drawing"
    assert refused(measured, ANYTHING) is None
    grey = np.repeat(cv2.cvtColor(drawn, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    assert refused(look(grey), GatesConfig()) == "seed:drawing"


def test_flatness_of_known_steps() -> None:
    """A Gini coefficient: 0 where all steps are equal, near 1 where few have all."""
    ramp = np.tile(np.arange(100, dtype=np.uint8), (100, 1))
    assert flatness(ramp) == pytest.approx(0, abs=1e-9)
    edge = np.zeros((100, 100), np.uint8)
    edge[:, 50:] = 200
    assert flatness(edge) == pytest.approx(1 - 1 / 99)
    assert flatness(edge // 2) == pytest.approx(flatness(edge))


def test_sharpness_of_noise_and_of_a_wave() -> None:
    rng = np.random.default_rng(0)
    assert sharpness(rng.integers(0, 256, (80, 80), np.uint8)) > 0.8
    wave = np.tile(127 + 100 * np.sin(np.arange(80) / 12), (80, 1)).astype(np.uint8)
    assert sharpness(wave) < 0.3


def test_only_a_single_face_is_measured(people: list[np.ndarray]) -> None:
    wall = np.full((120, 120, 3), 90, np.uint8)
    assert look(wall) == Try(faces=0)
    assert refused(look(wall), ANYTHING) == "seed:no_face"
    both = look(np.concatenate(people[:2], axis=1))
    assert both == Try(faces=2)
    assert refused(both, ANYTHING) == "seed:several_faces"


@pytest.mark.parametrize(
    ("worse", "field", "reason"),
    [
        ({"size": 31.9}, "min_size", "seed:small"),
        ({"sharpness": 0.2}, "min_sharpness", "seed:blurred"),
        ({"yaw": 36.0}, "max_yaw", "seed:turned"),
        ({"yaw": -36.0}, "max_yaw", "seed:turned"),
        ({"pitch": -26.0}, "max_pitch", "seed:turned"),
        ({"flatness": 0.8}, "max_flatness", "seed:drawing"),
    ],
)
def test_each_gate_and_none(worse: dict[str, float], field: str, reason: str) -> None:
    measured = Try(faces=1, **GOOD | worse)
    assert refused(measured, GatesConfig()) == reason
    assert refused(measured, GatesConfig(**{field: None})) is None
    assert refused(Try(faces=1, **GOOD), GatesConfig()) is None


def test_reasons_in_a_fixed_order() -> None:
    bad = {"size": 10.0, "sharpness": 0.1, "yaw": 60.0, "pitch": 0.0, "flatness": 0.9}
    order = ["seed:small", "seed:blurred", "seed:turned", "seed:drawing"]
    for field, reason in zip(("size", "sharpness", "yaw", "flatness"), order, strict=True):
        assert refused(Try(faces=1, **bad), GatesConfig()) == reason
        bad[field] = GOOD[field]
    assert refused(Try(faces=1, **bad), GatesConfig()) is None


def test_limits_are_checked() -> None:
    with pytest.raises(ValidationError, match="max_yaw"):
        GatesConfig(max_yaw=-1)
    with pytest.raises(ValidationError, match="max_faces"):
        GatesConfig(max_faces=2)
