"""What is done to an image before a recognizer is trained on it, a batch at once on its device.

Steps, order and ranges are those of AdaFace's `Augmenter` (mk-minchul/AdaFace; the same is in
CVLface and SOTA-FR), and after it the usual transforms of torchvision:

    crop            black outside of a rectangle with an area of U(0.2, 1) of the image and a ratio
                    of width to height of 3/4 to 4/3, log-uniform (`RandomResizedCrop`)
    low resolution  resized to a side of U(0.2, 1) · 112, rounded down, and back, each way by a
                    filter of OpenCV: nearest, linear, area, cubic or Lanczos
    photometric     brightness, contrast and saturation times U(0.5, 1.5), in any order
                    (`ColorJitter`)
    flip            left-right
    erase           after normalisation, zero in a rectangle with an area of U(0.02, 0.33) of the
                    image and a ratio of height to width of 0.3 to 3.3, log-uniform
                    (`RandomErasing`)

What is drawn depends on seed, epoch and position of the image alone. Three things differ from what
is published, by a level of 255 or two on average where they apply:

- Values are kept within the range of bytes after every resizing and photometric step, but not
  rounded to bytes, where a small difference may tip over. Pillow cuts fractions off: published
  images are 1.3 levels darker after the photometric steps.
- Grey has torchvision's four digits for tensors (0.2989, ...), the published one Pillow's (0.299).
- OpenCV's nearest filter takes the pixel beside the right one in 1 to 7 of 112 rows at 8 of the 90
  sizes, and its area filter at 4 sizes when it enlarges. Here the right one is taken.

Resizing is linear: a matrix for every filter and size, applied to columns and rows. Where products
of matrices are computed in TF32 (`torch.set_float32_matmul_precision("high")`, on GPUs) its result
is off by up to half a level of 255, 0.04 on average (simulated); what is not resized is exact.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from raypipe.augment import luma
from raypipe.config.augment import AugmentConfig
from raypipe.recognizer import SIDE
from raypipe.seeding import generator

# So few images at a time stay in a processor's cache, and in memory that it already has. With 128
# each image takes 1.4 times as long, and ten times where images are only mirrored.
CHUNK = 16
# Rectangles are drawn until one fits into the image, so many times (torchvision).
_TRIES = 10
# Least and greatest area, of the image's, and ratio of width to height.
_CROP = ((0.2, 1.0), (3 / 4, 4 / 3))
_ERASE = ((0.02, 0.33), (1 / 3.3, 1 / 0.3))
# A rectangle is top, left, bottom, right; bottom and right are the first outside.
_ALL, _NOTHING = (0, 0, SIDE, SIDE), (0, 0, 0, 0)
_SMALLEST = int(0.2 * SIDE)
_SIDES = SIDE - _SMALLEST
# What a photometric step leaves as it is: see `_photometric`.
_NEUTRAL = np.array([1.0, 0.0, 0.0])
# Random numbers of an image: which steps there are; crop; low resolution; photometric; erase.
_NUMBERS = (5, 2 * _TRIES + 2, 3, 6, 2 * _TRIES + 2)


def draw(config: AugmentConfig, seed: int, epoch: int, positions: np.ndarray) -> dict[str, Tensor]:
    """Draws what is done to images.

    The same count of numbers is drawn for every image, whatever is done to it, so that one
    probability can change without moving the others.

    Args:
        positions: int (N,), of the images in their set.

    Returns:
        A row for each image, and nothing for a step whose probability is zero. crop int32 (N, 4)
        and erase int32 (N, 4): top, left, bottom, right; low_resolution int64 (N, 2): which filter
        and size, downwards and up, 0 for none; photometric float32 (N, 3, 3): factors of image,
        grey image and mean grey in three steps; flip bool (N,).
    """
    probabilities = (
        config.crop,
        config.low_resolution,
        config.photometric,
        config.flip,
        config.erase,
    )
    if not any(probabilities):
        return {}
    numbers = np.stack(
        [
            generator(seed, "train", position, f"augment {epoch}").random(sum(_NUMBERS))
            for position in positions.tolist()
        ]
    )
    which, *parts = np.split(numbers, np.cumsum(_NUMBERS)[:-1], axis=1)
    crop, low, photometric, flip, erase = (which < probabilities).T
    drawn = {}
    if config.crop:
        drawn["crop"] = _rectangles(parts[0], crop, *_CROP, SIDE, _ALL)
    if config.low_resolution:
        drawn["low_resolution"] = np.where(low[:, None], _resizes(parts[1]), 0)
    if config.photometric:
        factors = np.where(photometric[:, None, None], _factors(parts[2]), _NEUTRAL)
        drawn["photometric"] = factors.astype(np.float32)
    if config.flip:
        drawn["flip"] = flip
    if config.erase:
        # torchvision erases no whole row or column.
        drawn["erase"] = _rectangles(parts[3], erase, *_ERASE, SIDE - 1, _NOTHING)
    return {name: torch.from_numpy(values) for name, values in drawn.items()}


def _rectangles(
    numbers: np.ndarray,
    chosen: np.ndarray,
    areas: tuple[float, float],
    ratios: tuple[float, float],
    largest: int,
    otherwise: tuple[int, int, int, int],
) -> np.ndarray:
    """Int32 (N, 4) rectangles of the first size that fits, and another where none does."""
    tries = numbers[:, : 2 * _TRIES].reshape(-1, _TRIES, 2)
    area = (areas[0] + (areas[1] - areas[0]) * tries[:, :, 0]) * SIDE**2
    ratio = ratios[0] * (ratios[1] / ratios[0]) ** tries[:, :, 1]
    sizes = np.rint(np.sqrt(np.stack([area / ratio, area * ratio], 2))).astype(np.int32)
    fits = np.all(sizes <= largest, axis=2)
    size = sizes[np.arange(len(sizes)), fits.argmax(1)]
    start = (numbers[:, 2 * _TRIES :] * (SIDE - size + 1)).astype(np.int32)
    found = np.concatenate([start, start + size], 1)
    return np.where((chosen & np.any(fits, axis=1))[:, None], found, np.array(otherwise, np.int32))


def _resizes(numbers: np.ndarray) -> np.ndarray:
    """Int64 (N, 2) places in `_matrices`, of the way down and the way up."""
    side = ((0.2 + 0.8 * numbers[:, :1]) * SIDE).astype(np.int64)
    filters = (numbers[:, 1:] * len(_FILTERS)).astype(np.int64)
    return 1 + filters * _SIDES + side - _SMALLEST


def _factors(numbers: np.ndarray) -> np.ndarray:
    """Float64 (N, 3, 3) factors for `_photometric`."""
    amount = 0.5 + numbers[:, :3]
    factors = np.zeros((len(numbers), 3, 3))
    factors[:, :, 0] = amount
    # Brightness moves from black, contrast from the mean grey, saturation from the grey image.
    factors[:, 1, 2] = 1 - amount[:, 1]
    factors[:, 2, 1] = 1 - amount[:, 2]
    order = numbers[:, 3:].argsort(1)
    return np.take_along_axis(factors, order[:, :, None], 1)


@torch.no_grad()
def augment(batch: Mapping[str, Tensor]) -> Tensor:
    """Does to images what was drawn for them, and normalises them.

    An image depends on its own row alone, up to the rounding of float32: at most 1e-5 of the
    result. The CPU waits for nothing that a GPU does.

    Args:
        batch: images uint8 (N, 112, 112, 3), RGB, and what `draw` returned for them, on the same
            device; more is not looked at.

    Returns:
        float32 (N, 3, 112, 112) in [-1, 1] on that device, as of `raypipe.recognizer.normalised`.
    """
    device, count = batch["images"].device, len(batch["images"])
    names = [name for name in ("images", *AugmentConfig.model_fields) if name in batch]
    size = CHUNK if device.type == "cpu" else count
    # Autocast would multiply the matrices in 16 bits.
    with torch.autocast(device.type, enabled=False):
        parts = [
            _augment({name: batch[name][start : start + size] for name in names})
            for start in range(0, count, size)
        ]
    return torch.cat(parts)


def _augment(batch: Mapping[str, Tensor]) -> Tensor:
    images = batch["images"].permute(0, 3, 1, 2).float().contiguous()
    if "crop" in batch:
        images.mul_(_inside(batch["crop"]))
    if "low_resolution" in batch:
        places = batch["low_resolution"]
        _change(images, (places > 0).any(1), _low_resolution, places)
    if "photometric" in batch:
        factors = batch["photometric"]
        # What is left as it is has factors of 1 for the image alone.
        _change(images, (factors[..., 0] != 1).any(1), _photometric, factors)
    if "flip" in batch:
        images = torch.where(batch["flip"].view(-1, 1, 1, 1), images.flip(3), images)
    images = images.div_(127.5).sub_(1)
    if "erase" in batch:
        images.masked_fill_(_inside(batch["erase"]), 0)
    return images


def _inside(rectangles: Tensor) -> Tensor:
    """Which pixels are in a rectangle: bool (N, 1, SIDE, SIDE)."""
    line = torch.arange(SIDE, device=rectangles.device)
    top, left, bottom, right = rectangles.unsqueeze(2).unbind(1)
    rows, columns = (line >= top) & (line < bottom), (line >= left) & (line < right)
    return (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)


def _change(
    images: Tensor, chosen: Tensor, step: Callable[[Tensor, Tensor], Tensor], parameters: Tensor
) -> None:
    """Does a step to the chosen images, in place."""
    rows = _rows(chosen)
    images[rows] = step(images[rows], parameters[rows])


def _rows(chosen: Tensor) -> Tensor | slice:
    """Where a step has work. A GPU does it to all images, with parameters that leave the others as
    they are: to ask which are chosen would make the CPU wait for all it was given to do."""
    return chosen.nonzero()[:, 0] if chosen.device.type == "cpu" else slice(None)


def _low_resolution(images: Tensor, places: Tensor) -> Tensor:
    """Resizes float (N, 3, SIDE, SIDE) in [0, 255] down and up."""
    # Bytes are exact in TF32; values in [0, 1] would not be, even where nothing is done.
    for table, place in zip(_matrices(images.device), places.unbind(1), strict=True):
        matrices = table[place].unsqueeze(1)
        images = (matrices @ images @ matrices.mT).clamp_(0, 255)
    return images


def _photometric(images: Tensor, factors: Tensor) -> Tensor:
    """Three steps, each: image, grey image and mean grey times their factors, within [0, 255]."""
    for step in factors[..., None, None, None].unbind(1):
        of_image, of_grey, of_mean = step.unbind(1)
        grey = luma(images)
        blended = grey * of_grey + grey.mean((2, 3), keepdim=True) * of_mean
        images = (images * of_image).add_(blended).clamp_(0, 255)
    return images


def _nearest(before: int, after: int) -> np.ndarray:
    return np.eye(before)[np.arange(after) * before // after]


def _area(before: int, after: int) -> np.ndarray:
    """The mean over what a pixel covers."""
    edges = np.arange(after + 1)[:, None] * before / after
    pixel = np.arange(before)
    covered = np.minimum(pixel + 1, edges[1:]) - np.maximum(pixel, edges[:-1])
    return np.maximum(covered, 0) * after / before


def _sampled(kernel: Callable[[np.ndarray], np.ndarray], reach: int) -> Callable[..., np.ndarray]:
    """A filter that samples at the middle of a pixel; the border is repeated outside. OpenCV does
    not widen it to make an image smaller."""

    def weights(before: int, after: int) -> np.ndarray:
        middle = (np.arange(after)[:, None] + 0.5) * before / after - 0.5
        pixel = np.floor(middle).astype(int) + np.arange(1 - reach, reach + 1)
        taps = kernel(np.abs(middle - pixel))
        result = np.zeros((after, before))
        rows = np.broadcast_to(np.arange(after)[:, None], pixel.shape)
        np.add.at(result, (rows, pixel.clip(0, before - 1)), taps / taps.sum(1, keepdims=True))
        return result

    return weights


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution (1981), with a = -0.75 as in OpenCV."""
    a = -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    return np.where(x <= 1, near, a * (x**3 - 5 * x**2 + 8 * x - 4))


_FILTERS: tuple[Callable[[int, int], np.ndarray], ...] = (
    _nearest,
    _sampled(lambda x: 1 - x, 1),
    _area,
    _sampled(_cubic, 2),
    _sampled(lambda x: np.sinc(x) * np.sinc(x / 4), 4),  # Lanczos with four lobes
)


@lru_cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """Resizing to every smaller side, and from it, by every filter.

    Returns:
        Two float32 (1 + filters · sides, SIDE, SIDE), 23 MB each. The first matrix leaves an image
        as it is. A smaller image is in the upper left, beside zeros.
    """
    shape = (1 + len(_FILTERS) * _SIDES, SIDE, SIDE)
    down, up = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    down[0] = up[0] = np.eye(SIDE)
    place = 1
    for weights in _FILTERS:
        for side in range(_SMALLEST, SIDE):
            down[place, :side] = weights(SIDE, side)
            up[place, :, :side] = weights(side, SIDE)
            place += 1
    return torch.from_numpy(down).to(device), torch.from_numpy(up).to(device)
