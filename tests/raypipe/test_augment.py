import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from raypipe import augment
from raypipe.augment import Parameters
from raypipe.seeding import generator

PLAIN = Parameters(flip=False, jitter=(), grey=False, warps=(), sigma=0.1)


pytestmark = pytest.mark.usefixtures("one_thread")


def random_images(count: int, height: int = 10, width: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def smooth_bytes(count: int, height: int = 33, width: int = 40) -> np.ndarray:
    rng = np.random.default_rng(count)
    small = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Pillow.fromarray(x).resize((width, height), 3)) for x in small])


@pytest.mark.parametrize("sizes", [[1] * 23, [23], [3, 1, 4, 15], [16, 7], [5, 5, 5, 5, 3]])
def test_an_image_does_not_depend_on_its_batch(sizes):
    images = smooth_bytes(23)
    whole = augment.augment(images, [generator(5, "a", k, "augment") for k in range(23)])
    parts, start = [], 0
    for size in sizes:
        rngs = [generator(5, "a", k, "augment") for k in range(start, start + size)]
        parts.append(augment.augment(images[start : start + size], rngs))
        start += size
    assert np.concatenate(parts).tobytes() == whole.tobytes()


@pytest.mark.parametrize(("chunk", "threads"), [(1, 1), (7, 2), (64, 2), (64, 1)])
def test_an_image_does_not_depend_on_chunks_or_threads(chunk, threads):
    images = smooth_bytes(20, 112, 112)
    parameters = [augment.draw(generator(2, "a", k), 112, 112) for k in range(20)]
    expected = np.concatenate(
        [augment.apply(images[k : k + 1], parameters[k : k + 1]) for k in range(20)]
    )
    before = augment.CHUNK
    try:
        augment.CHUNK = chunk
        torch.set_num_threads(threads)
        assert augment.apply(images, parameters).tobytes() == expected.tobytes()
    finally:
        augment.CHUNK = before


def test_other_seed_identity_or_index_is_another_image():
    image = smooth_bytes(1)
    made = {
        augment.augment(image, [generator(*key)]).tobytes()
        for key in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0), (0, "a", 0)]
    }
    assert len(made) == 4


def test_probabilities_and_ranges():
    drawn = [augment.draw(generator(0, "x", k), 100, 200) for k in range(4000)]
    share = {
        "flip": np.mean([p.flip for p in drawn]),
        "jitter": np.mean([bool(p.jitter) for p in drawn]),
        "grey": np.mean([p.grey for p in drawn]),
        "warps": np.mean([len(p.warps) for p in drawn]),
    }
    assert share == pytest.approx({"flip": 0.5, "jitter": 0.8, "grey": 0.2, "warps": 1.0}, abs=0.03)
    sigma = [p.sigma for p in drawn]
    assert min(sigma) >= 0.1
    assert max(sigma) <= 2
    assert np.mean(sigma) == pytest.approx(1.05, abs=0.03)
    for name, low, high in [
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.6, 1.4),
        ("hue", -0.1, 0.1),
    ]:
        amounts = [amount for p in drawn for operation, amount in p.jitter if operation == name]
        assert low <= min(amounts) < low + 0.01 * (high - low) * 2
        assert high - 0.01 * (high - low) * 2 < max(amounts) <= high
        first = np.mean([p.jitter[0][0] == name for p in drawn if p.jitter])
        assert first == pytest.approx(0.25, abs=0.03)
    assert len({tuple(name for name, _ in p.jitter) for p in drawn}) == 24 + 1


def test_flip_mirrors_and_nothing_else():
    images = smooth_bytes(3)
    plain = augment.apply(images, [PLAIN] * 3)
    flipped = augment.apply(
        images,
        [Parameters(flip=True, jitter=(), grey=False, warps=(), sigma=0.1), PLAIN, PLAIN],
    )
    # Mirroring commutes with the blur and the two resizings up to rounding.
    np.testing.assert_allclose(flipped[0, :, ::-1].astype(int), plain[0], atol=1)
    assert flipped[1:].tobytes() == plain[1:].tobytes()


@pytest.mark.parametrize("turns", [-0.1, -0.03, 0.0, 0.07, 0.5])
def test_hue_is_colorsys_with_the_hue_turned(turns):
    images = random_images(2)
    images[0, :, 0, 0] = 0.3  # grey has no hue
    images[0, :, 0, 1] = torch.tensor([1.0, 1.0, 0.0])
    got = augment.hue(images, column(turns, turns))
    for n, y, x in np.ndindex(2, 10, 12):
        h, s, v = colorsys.rgb_to_hsv(*images[n, :, y, x].tolist())
        expected = colorsys.hsv_to_rgb((h + turns) % 1, s, v)
        assert got[n, :, y, x].tolist() == pytest.approx(expected, abs=1e-5)


def test_brightness_contrast_saturation_by_hand():
    images = random_images(2)
    factors = column(0.6, 1.4)
    light, more, vivid = (
        operation(images, factors)
        for operation in (augment.brightness, augment.contrast, augment.saturation)
    )
    for n, factor in enumerate((0.6, 1.4)):
        pixels = images[n].permute(1, 2, 0).double().numpy()
        grey = pixels @ np.array([0.2989, 0.587, 0.114])
        for got, base in ((light, 0.0), (more, grey.mean()), (vivid, grey[..., None])):
            expected = np.clip(factor * pixels + (1 - factor) * base, 0, 1)
            np.testing.assert_allclose(got[n].permute(1, 2, 0), expected, atol=2e-5)


def test_grey_leaves_no_colour():
    grey = Parameters(flip=False, jitter=(), grey=True, warps=(), sigma=1.0)
    got = augment.apply(smooth_bytes(1), [grey])[0]
    assert (got == got[..., :1]).all()
    assert got.std() > 10


def scalar_warp(image: np.ndarray, forward: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    """Pixel by pixel: where a result pixel comes from, and its four neighbours, black outside."""
    height, width = image.shape
    back = np.linalg.inv(forward)
    result = np.zeros_like(image)
    for y, x in np.ndindex(height, width):
        offset = np.array([x - (width - 1) / 2 - shift[0], y - (height - 1) / 2 - shift[1]])
        u, v = back @ offset + np.array([(width - 1) / 2, (height - 1) / 2])
        for j in (math.floor(v), math.floor(v) + 1):
            for i in (math.floor(u), math.floor(u) + 1):
                if 0 <= j < height and 0 <= i < width:
                    result[y, x] += image[j, i] * (1 - abs(u - i)) * (1 - abs(v - j))
    return result


@pytest.mark.parametrize(
    ("angle", "shear", "scale", "shift"),
    [
        (0, 0, 1.0, (0, 0)),
        (10, 0, 1.0, (0, 0)),
        (0, 5, 1.0, (0, 0)),
        (0, 0, 0.95, (2, -1)),
        (-7, -4, 1.05, (-1, 2)),
    ],
)
def test_warp_is_the_affine_map_about_the_centre(angle, shear, scale, shift):
    images = random_images(1, 9, 14)
    a, s = math.radians(angle), math.radians(shear)
    rotation = np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    forward = scale * rotation @ np.array([[1, -math.tan(s)], [0, 1]])
    got = augment.warp(images, augment._inverse(angle, shear, scale, shift)[None])
    for channel in range(3):
        expected = scalar_warp(images[0, channel].double().numpy(), forward, shift)
        np.testing.assert_allclose(got[0, channel], expected, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_is_a_gaussian_with_reflected_borders(sigma):
    images = random_images(1)
    kernel = np.exp(-0.5 * (np.arange(-1, 2) / sigma) ** 2)
    kernel /= kernel.sum()
    got = augment.blur(images, column(math.exp(-0.5 / sigma**2)))
    padded = np.pad(images[0].double().numpy(), ((0, 0), (1, 1), (1, 1)), mode="reflect")
    for c, y, x in np.ndindex(3, 10, 12):
        expected = kernel @ padded[c, y : y + 3, x : x + 3] @ kernel
        assert got[0, c, y, x].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("height", "width"), [(112, 112), (33, 40), (2, 5)])
def test_halving_and_back_is_pillows_bilinear(height, width):
    images = random_images(1, height, width)
    got = augment.halve_and_back(images)
    for channel in range(3):
        plane = Pillow.fromarray(images[0, channel].numpy())
        small = plane.resize((width // 2, height // 2), Pillow.Resampling.BILINEAR)
        back = small.resize((width, height), Pillow.Resampling.BILINEAR)
        np.testing.assert_allclose(got[0, channel], np.asarray(back), atol=1e-5)


def test_a_flat_image_stays_itself_and_read_only_input_is_taken():
    flat = np.full((2, 20, 20, 3), 77, np.uint8)
    flat.flags.writeable = False
    assert (augment.apply(flat, [PLAIN] * 2) == 77).all()
    assert augment.apply(flat[:0], []).shape == (0, 20, 20, 3)
