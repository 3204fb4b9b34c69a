import math
from itertools import permutations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageEnhance
from pydantic import BaseModel, ValidationError

from raypipe import batch_augment
from raypipe.batch_augment import augment, draw
from raypipe.config.augment import PRESETS, AugmentConfig
from raypipe.recognizer import normalised

FILTERS = ["nearest", "linear", "area", "cubic", "lanczos"]
OPENCV = [
    cv2.INTER_NEAREST,
    cv2.INTER_LINEAR,
    cv2.INTER_AREA,
    cv2.INTER_CUBIC,
    cv2.INTER_LANCZOS4,
]
EVERYTHING = AugmentConfig(flip=0.5, crop=0.5, low_resolution=0.5, photometric=0.5, erase=0.5)
# Rounding of float32 over all steps, of values in [-1, 1].
EPS = 1e-5

pytestmark = pytest.mark.usefixtures("one_thread")


def faces(count, seed=0):
    """Smooth pictures with some noise, as photographs are."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    large = np.stack([cv2.resize(x, (112, 112), interpolation=cv2.INTER_CUBIC) for x in small])
    return np.clip(large + rng.normal(0, 4, large.shape), 0, 255).astype(np.uint8)


def augmented(images, drawn):
    return augment({"images": torch.from_numpy(images), **drawn}).numpy()


def filter_and_side(place):
    number, side = divmod(place - 1, 90)
    return number, side + 22


def part(drawn, rows):
    return {name: values[rows] for name, values in drawn.items()}


# --- one image at a time, from the definitions ---


def kernel(name, x):
    x = abs(x)
    if name == "linear":
        return max(0.0, 1 - x)
    if name == "cubic":
        if x < 1:
            return 1.25 * x**3 - 2.25 * x**2 + 1
        return -0.75 * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0
    if x == 0:
        return 1.0
    t = math.pi * x
    return math.sin(t) / t * math.sin(t / 4) / (t / 4) if x < 4 else 0.0


def resized_rows(image, side, name):
    """float64 (side, ...) of float64 (before, ...), a row at a time."""
    before = len(image)
    scale = before / side
    rows = []
    for k in range(side):
        if name == "nearest":
            rows.append(image[k * before // side])
            continue
        if name == "area":
            first, last = k * scale, (k + 1) * scale
            weights = {
                j: min(j + 1, last) - max(j, first)
                for j in range(math.floor(first), min(before, math.ceil(last)))
            }
        else:
            middle = (k + 0.5) * scale - 0.5
            near = range(math.floor(middle) - 4, math.floor(middle) + 6)
            weights = {j: kernel(name, j - middle) for j in near}
        total = sum(weights.values())
        taken = (image[min(max(j, 0), before - 1)] * w / total for j, w in weights.items())
        rows.append(sum(taken))
    return np.stack(rows)


def resized(image, side, name):
    columns = resized_rows(image, side, name).swapaxes(0, 1)
    return resized_rows(columns, side, name).swapaxes(0, 1).clip(0, 255)


def reference(image, drawn):
    """What has to come out for one image; float64 (3, 112, 112)."""
    values = {name: value.numpy() for name, value in drawn.items()}
    top, left, bottom, right = values["crop"]
    x = np.zeros(image.shape)
    x[top:bottom, left:right] = image[top:bottom, left:right]
    down, up = values["low_resolution"]
    if down:
        number, side = filter_and_side(down)
        x = resized(x, side, FILTERS[number])
        x = resized(x, 112, FILTERS[filter_and_side(up)[0]])
    for factor, of_grey, of_mean in values["photometric"].astype(float):
        grey = x @ [0.2989, 0.587, 0.114]
        x = x * factor + of_grey * grey[..., None] + of_mean * grey.mean()
        x = x.clip(0, 255)
    if values["flip"]:
        x = x[:, ::-1]
    x = (x / 255 - 0.5) / 0.5
    top, left, bottom, right = values["erase"]
    x = x.copy()
    x[top:bottom, left:right] = 0
    return x.transpose(2, 0, 1)


def published(image, drawn):
    """As the published code goes about it: OpenCV and Pillow on bytes."""
    values = {name: value.numpy() for name, value in drawn.items()}
    top, left, bottom, right = values["crop"]
    x = np.zeros_like(image)
    x[top:bottom, left:right] = image[top:bottom, left:right]
    if values["low_resolution"][0]:
        (down, side), (up, _) = map(filter_and_side, values["low_resolution"])
        x = cv2.resize(x, (side, side), interpolation=OPENCV[down])
        x = cv2.resize(x, (112, 112), interpolation=OPENCV[up])
    picture = Pillow.fromarray(x)
    for factor, of_grey, of_mean in values["photometric"].tolist():
        if factor != 1:
            kind = ImageEnhance.Color if of_grey else ImageEnhance.Brightness
            kind = ImageEnhance.Contrast if of_mean else kind
            picture = kind(picture).enhance(factor)
    x = np.asarray(picture)[:, :: -1 if values["flip"] else 1]
    x = (x / 255 - 0.5) / 0.5
    top, left, bottom, right = values["erase"]
    x[top:bottom, left:right] = 0
    return x.transpose(2, 0, 1)


def rectangle(rng, areas, ratios, largest):
    """Height and width, drawn until they fit."""
    while True:
        area = 112**2 * rng.uniform(*areas)
        ratio = math.exp(rng.uniform(math.log(ratios[0]), math.log(ratios[1])))
        wide, high = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if wide <= largest and high <= largest:
            return high, wide


def test_equals_one_image_at_a_time():
    images = faces(40)
    drawn = draw(EVERYTHING, 3, 1, np.arange(40))
    got = augmented(images, drawn)
    assert got.dtype == np.float32 and got.shape == (40, 3, 112, 112)
    assert np.abs(got).max() <= 1 + 1e-6
    for k in range(40):
        assert np.abs(got[k] - reference(images[k], part(drawn, k))).max() < EPS, k


def test_differs_from_the_published_augmenter_by_its_rounding():
    images = faces(60, seed=1)
    drawn = draw(EVERYTHING, 4, 0, np.arange(60))
    got = augmented(images, drawn)
    levels = [127.5 * (got[k] - published(images[k], part(drawn, k))) for k in range(60)]
    means = np.abs(levels).mean((1, 2, 3))
    assert means.mean() < 1 and means.max() < 3
    # Pillow cuts fractions off where OpenCV rounds.
    factors = drawn["photometric"].numpy()
    photometric = (factors[:, :, 0] != 1).any(1)
    signed = np.mean(levels, (1, 2, 3))
    assert 1 < signed[photometric].mean() < 1.5
    assert abs(signed[~photometric].mean()) < 0.1


@pytest.mark.parametrize("number", range(5), ids=FILTERS)
@pytest.mark.parametrize("side", [22, 31, 56, 75, 90, 111])
def test_filters_are_those_of_opencv(number, side):
    image = faces(1)[0].astype(np.float32)
    down, up = batch_augment._matrices(torch.device("cpu"))
    place = 1 + 90 * number + side - 22
    small = cv2.resize(image, (side, side), interpolation=OPENCV[number])
    large = cv2.resize(small, (112, 112), interpolation=OPENCV[number])
    planes = torch.from_numpy(image).permute(2, 0, 1)
    got = (down[place] @ planes @ down[place].T)[:, :side, :side]
    assert np.abs(got.permute(1, 2, 0).numpy() - small).max() < 0.01
    assert not down[place, side:].any() and not up[place, :, side:].any()
    planes = torch.zeros(3, 112, 112)
    planes[:, :side, :side] = torch.from_numpy(small).permute(2, 0, 1)
    got = up[place] @ planes @ up[place].T
    assert np.abs(got.permute(1, 2, 0).numpy() - large).max() < 0.01


def test_an_image_depends_on_its_own_position_only():
    images = faces(37)
    positions = np.arange(100, 137)
    whole = augmented(images, draw(EVERYTHING, 5, 2, positions))
    order = np.random.default_rng(0).permutation(37)
    shuffled = augmented(images[order], draw(EVERYTHING, 5, 2, positions[order]))
    assert np.abs(shuffled - whole[order]).max() < EPS
    for k in range(37):
        alone = augmented(images[k : k + 1], draw(EVERYTHING, 5, 2, positions[k : k + 1]))
        assert np.abs(alone[0] - whole[k]).max() < EPS


def test_seed_and_epoch_change_what_is_drawn():
    first = draw(EVERYTHING, 0, 0, np.arange(50))
    again = draw(EVERYTHING, 0, 0, np.arange(50))
    assert set(first) == set(AugmentConfig.model_fields)
    for other in (draw(EVERYTHING, 0, 1, np.arange(50)), draw(EVERYTHING, 1, 0, np.arange(50))):
        for name, values in first.items():
            assert torch.equal(values, again[name])
            assert not torch.equal(values, other[name])


def test_a_probability_does_not_move_the_other_steps():
    alone = draw(AugmentConfig(erase=0.5), 0, 0, np.arange(50))
    assert list(alone) == ["erase"]
    assert torch.equal(alone["erase"], draw(EVERYTHING, 0, 0, np.arange(50))["erase"])


def test_none_is_the_plain_normalisation():
    images = faces(20)
    drawn = draw(AugmentConfig.preset("none"), 0, 0, np.arange(20))
    assert not drawn
    assert np.array_equal(augmented(images, drawn), normalised(torch.from_numpy(images)).numpy())


def test_what_is_not_chosen_stays_exactly_as_it_is():
    images = faces(30)
    rare = AugmentConfig(flip=1e-9, crop=1e-9, low_resolution=1e-9, photometric=1e-9, erase=1e-9)
    drawn = draw(rare, 0, 0, np.arange(30))
    assert len(drawn) == 5
    assert np.array_equal(augmented(images, drawn), normalised(torch.from_numpy(images)).numpy())


def test_all_images_at_once_as_on_a_gpu(monkeypatch):
    images = faces(20)
    drawn = draw(EVERYTHING, 0, 0, np.arange(20))
    expected = augmented(images, drawn)
    # The same steps on every row, in one piece: what a GPU does, where there is none. The steps are
    # the real ones, and the expected result is theirs on the chosen rows.
    monkeypatch.setattr(batch_augment, "_rows", lambda chosen: slice(None))
    monkeypatch.setattr(batch_augment, "CHUNK", 20)
    assert np.abs(augmented(images, drawn) - expected).max() < EPS


def test_autocast_does_not_reach_it():
    images = faces(8)
    drawn = draw(EVERYTHING, 0, 0, np.arange(8))
    with torch.autocast("cpu", torch.bfloat16):
        got = augmented(images, drawn)
    assert np.array_equal(got, augmented(images, drawn))


@pytest.mark.parametrize("name", ["adaface", "hsface"])
def test_shares_are_the_probabilities(name):
    config = AugmentConfig.preset(name)
    count = 5000
    drawn = {key: v.numpy() for key, v in draw(config, 7, 0, np.arange(count)).items()}
    neutral = {
        "crop": [0, 0, 112, 112],
        "low_resolution": [0, 0],
        "photometric": np.tile([1, 0, 0], (3, 1)),
        "flip": False,
        "erase": [0, 0, 0, 0],
    }
    happened = {}
    for key, values in drawn.items():
        happened[key] = (values != neutral[key]).reshape(count, -1).any(1)
        probability = getattr(config, key)
        deviation = math.sqrt(probability * (1 - probability) / count)
        assert abs(happened[key].mean() - probability) < 4 * deviation, key
    both = (happened["crop"] & happened["photometric"]).mean()
    assert both == pytest.approx(config.crop * config.photometric, abs=0.02)


def test_amounts_are_in_their_ranges():
    every = AugmentConfig(flip=1, crop=1, low_resolution=1, photometric=1, erase=1)
    drawn = {key: v.numpy() for key, v in draw(every, 0, 0, np.arange(4000)).items()}
    rng = np.random.default_rng(0)
    for key, areas, ratios, largest in (
        ("crop", (0.2, 1), (3 / 4, 4 / 3), 112),
        ("erase", (0.02, 0.33), (1 / 3.3, 1 / 0.3), 111),
    ):
        top, left, bottom, right = drawn[key].T
        assert top.min() == left.min() == 0 and bottom.max() == right.max() == 112
        high, wide = bottom - top, right - left
        expected = np.array([rectangle(rng, areas, ratios, largest) for _ in range(4000)])
        for got, sizes in ((high, expected[:, 0]), (wide, expected[:, 1])):
            assert [got.min(), got.max()] == pytest.approx([sizes.min(), sizes.max()], abs=2)
            at = np.linspace(0.05, 0.95, 10)
            assert np.quantile(got, at) == pytest.approx(np.quantile(sizes, at), abs=4)
        shares, others = high * wide / 112**2, expected.prod(1) / 112**2
        assert shares.mean() == pytest.approx(others.mean(), abs=0.01)
        turned = np.log(wide / high)
        assert turned.mean() == pytest.approx(
            np.log(expected[:, 1] / expected[:, 0]).mean(), abs=0.03
        )
        # Anywhere that there is room.
        for start, size in ((top, high), (left, wide)):
            room = (start / np.maximum(112 - size, 1))[size < 90]
            assert np.histogram(room, 4, (0, 1))[0].min() > 0.2 * len(room)
    down, up = (drawn["low_resolution"][:, k] for k in range(2))
    filters, sides = filter_and_side(down)
    assert np.array_equal(filter_and_side(up)[1], sides)
    assert sides.min() == 22 and sides.max() == 111
    assert sides.mean() == pytest.approx(0.6 * 112 - 0.5, abs=1.5)
    pairs = np.bincount(filters * 5 + filter_and_side(up)[0], minlength=25)
    assert pairs.min() > 100
    factors = drawn["photometric"]
    assert 0.5 <= factors[..., 0].min() < 0.51 and 1.49 < factors[..., 0].max() <= 1.5
    kinds = (factors[..., 1] != 0) + 2 * (factors[..., 2] != 0)
    for order in permutations(range(3)):
        assert (kinds == order).all(1).mean() == pytest.approx(1 / 6, abs=0.03)


class Holder(BaseModel):
    augment: AugmentConfig


def test_a_preset_or_own_probabilities():
    assert Holder(augment="hsface").augment == AugmentConfig(
        flip=0.5, crop=0.3, low_resolution=0.3, photometric=0.3, erase=0.5
    )
    assert Holder(augment={"flip": 0.5, "erase": 0.2}).augment == AugmentConfig(flip=0.5, erase=0.2)
    assert AugmentConfig.preset("none") == AugmentConfig()
    for name in PRESETS:
        config = AugmentConfig.preset(name)
        assert Holder(augment=config.model_dump()).augment == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("hsfaces", "no preset 'hsfaces'; there are none, flip, adaface, hsface"),
        ({"flip": 1.5}, "less than or equal to 1"),
        ({"crop": -0.1}, "greater than or equal to 0"),
        ({"blur": 0.5}, "Extra inputs"),
        (None, "augment"),
    ],
)
def test_what_makes_no_sense_is_refused(value, message):
    with pytest.raises(ValidationError, match=message):
        Holder(augment=value)
