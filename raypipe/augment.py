"""The augmentations that refill an identity, many images at once.

Operations, order, probabilities and ranges are those published with HGF (Ferry-Li/datacv_fr,
`hsface_makeup.py`; arXiv 2508.10672), the meaning of each is torchvision's for float tensors:

    flip left-right          p 0.5
    colour jitter            p 0.8   brightness, contrast, saturation U(0.6, 1.4), hue U(-0.1, 0.1)
                                     of a turn, the four in an order drawn for each image
    grey                     p 0.2
    affine                   p 0.5   U(-10, 10) degrees, shift up to 5 %, scale U(0.95, 1.05),
                                     shear U(-5, 5) degrees, about the centre
    rotation                 p 0.5   U(-5, 5) degrees about the centre
    Gaussian blur            always  3×3, sigma U(0.1, 2), reflected at the border
    half the size, and back  always  bilinear, with the filter widened when shrinking

Both warps are bilinear (torchvision's default is nearest) and black outside the frame. Values are
float32 in [0, 1] from the first operation to the last, and are rounded to bytes once.

An image depends on its own random numbers only, never on what shares the batch, nor on the number
of threads: every operation is an element-wise IEEE operation with one rounding, a gather, a sum of
integers, or `grid_sample`, which torch computes image by image. There is no matrix product, no
convolution and no floating-point sum over pixels, whose rounding changes with the batch.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

# ITU-R BT.601 luma, with torchvision's four digits.
_LUMA = (0.2989, 0.587, 0.114)
_JITTER = ("brightness", "contrast", "saturation", "hue")
# So few float 112×112 images stay in the processor's cache through all operations; with 16 or 40 at
# a time each image takes 1.3 to 2 times as long (`benchmarks/assemble.py`).
CHUNK = 4
# Probabilities of flip, jitter, grey, affine and rotation.
_P = (0.5, 0.8, 0.2, 0.5, 0.5)
# Least and greatest amount of each jitter.
_AMOUNTS = ((0.6, 0.6, 0.6, -0.1), (1.4, 1.4, 1.4, 0.1))
# Least and greatest angle, shear, scale, shift right, shift down, turn of the rotation, and sigma.
_RANGES = ((-10, -5, 0.95, -0.05, -0.05, -5, 0.1), (10, 5, 1.05, 0.05, 0.05, 5, 2.0))


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What is done to one image.

    Attributes:
        flip: mirror left-right.
        jitter: (operation, amount) in order, empty where there is none; the amount of "hue" is in
            turns, of the others a factor.
        grey: drop the colour.
        warps: float32 (2, 3) matrices, one after the other; each maps a pixel of the result, from
            the centre, to the pixel of the image it is taken from, from the centre.
        sigma: of the blur, in pixels.
    """

    flip: bool
    jitter: tuple[tuple[str, float], ...]
    grey: bool
    warps: tuple[np.ndarray, ...]
    sigma: float


def draw(rng: np.random.Generator, height: int, width: int) -> Parameters:
    """Draws what is done to an image of this size.

    The same count of numbers is drawn whatever is applied, so that one probability can change
    without moving the others.
    """
    flip, jitter, grey, affine, rotation = (u < p for u, p in zip(rng.random(5), _P, strict=True))
    order = rng.random(4).argsort()
    amounts = rng.uniform(*_AMOUNTS).tolist()
    angle, shear, scale, right, down, turn, sigma = rng.uniform(*_RANGES).tolist()
    warps = []
    if affine:
        warps.append(_inverse(angle, shear, scale, (round(right * width), round(down * height))))
    if rotation:
        warps.append(_inverse(turn, 0.0, 1.0, (0, 0)))
    return Parameters(
        flip=bool(flip),
        jitter=tuple((_JITTER[k], amounts[k]) for k in order) if jitter else (),
        grey=bool(grey),
        warps=tuple(warps),
        sigma=sigma,
    )


def _inverse(angle: float, shear: float, scale: float, shift: tuple[int, int]) -> np.ndarray:
    """Inverse of shift · scale · rotation · shear about the centre; angles in degrees."""
    sin, cos = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    tan = math.tan(math.radians(shear))
    # (rotation · shear)⁻¹ = shear⁻¹ · rotation⁻¹, where shear is [[1, -tan], [0, 1]].
    a, b = (cos - tan * sin) / scale, (sin + tan * cos) / scale
    c, d = -sin / scale, cos / scale
    right, down = shift
    rows = [[a, b, -a * right - b * down], [c, d, -c * right - d * down]]
    return np.array(rows, dtype=np.float32)


def augment(images: np.ndarray, generators: Sequence[np.random.Generator]) -> np.ndarray:
    """Augments images of one size.

    Args:
        images: uint8 (N, H, W, 3), RGB, H and W at least 2.
        generators: N of them, one for each image.

    Returns:
        uint8 (N, H, W, 3).
    """
    parameters = [draw(rng, images.shape[1], images.shape[2]) for rng in generators]
    return apply(images, parameters)


def apply(images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
    """Does to every image (uint8 (N, H, W, 3)) what its parameters say."""
    result = np.empty_like(images)
    for start in range(0, len(images), CHUNK):
        chunk = slice(start, start + CHUNK)
        # A copy: Arrow and PIL hand out read-only arrays, which torch does not take.
        planes = torch.from_numpy(images[chunk].transpose(0, 3, 1, 2).copy())
        values = _apply(planes.to(torch.float32).div_(255), parameters[chunk])
        rounded = values.mul_(255).add_(0.5).to(torch.uint8)
        result[chunk] = rounded.numpy().transpose(0, 2, 3, 1)
    return result


def _apply(images: torch.Tensor, parameters: Sequence[Parameters]) -> torch.Tensor:
    every = range(len(parameters))

    def on(rows: list[int], operation: Callable[..., torch.Tensor], *amounts: list[float]) -> None:
        if rows:
            chosen = images[rows]
            columns = [chosen.new_tensor(amount).view(-1, 1, 1, 1) for amount in amounts]
            images[rows] = operation(chosen, *columns)

    on([i for i in every if parameters[i].flip], lambda chosen: chosen.flip(3))
    for step in range(len(_JITTER)):
        for name in _JITTER:
            jitters = {i: parameters[i].jitter[step] for i in every if parameters[i].jitter}
            rows = [i for i, (operation, _) in jitters.items() if operation == name]
            on(rows, _COLOUR[name], [jitters[i][1] for i in rows])
    on([i for i in every if parameters[i].grey], lambda chosen: luma(chosen).expand_as(chosen))
    for step in range(2):
        rows = [i for i in every if len(parameters[i].warps) > step]
        if rows:
            images[rows] = warp(images[rows], np.stack([parameters[i].warps[step] for i in rows]))
    # The kernel is computed in float64 for each image alone: a vectorised exp may round differently
    # at the end of a batch.
    sides = [math.exp(-0.5 / p.sigma**2) for p in parameters]
    columns = [images.new_tensor(sides).view(-1, 1, 1, 1)]
    return halve_and_back(blur(images, *columns))


def luma(images: torch.Tensor) -> torch.Tensor:
    """Grey of float (N, 3, H, W) in [0, 1]: (N, 1, H, W)."""
    red, green, blue = (images[:, k : k + 1] * weight for k, weight in enumerate(_LUMA))
    return red + green + blue


def brightness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """factor · image, clamped to [0, 1]; the factor is (N, 1, 1, 1)."""
    return (images * factor).clamp_(0, 1)


def contrast(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Moves every value from the mean grey of its image by a factor, clamped to [0, 1]."""
    # The mean is over integers, 2^16 steps to white: exact, whatever the order of the sum.
    steps = (luma(images) * 65536).round().to(torch.int64).sum((1, 2, 3), keepdim=True)
    mean = (steps.to(torch.float64) / (65536 * images.shape[2] * images.shape[3])).to(images.dtype)
    return (images * factor).add_(mean * (1 - factor)).clamp_(0, 1)


def saturation(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Moves every pixel from its own grey by a factor, clamped to [0, 1]."""
    return (images * factor).add_(luma(images) * (1 - factor)).clamp_(0, 1)


def hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turns the hue at constant value and chroma (hexcone model, Smith 1978)."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    divisor = torch.where(chroma == 0, 1.0, chroma)
    # Sextants of the circle: red is 0, green 2, blue 4.
    sextant = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4),
    )
    sextant = sextant + turns[:, 0] * 6
    planes = []
    for offset in (5, 3, 1):
        k = sextant + offset
        k.sub_(torch.floor(k / 6).mul_(6))
        planes.append(value - torch.minimum(k, 4 - k).clamp_(0, 1).mul_(chroma))
    return torch.stack(planes, 1).clamp_(0, 1)


_COLOUR = {
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
}


def warp(images: torch.Tensor, matrices: np.ndarray) -> torch.Tensor:
    """Bilinear warp, black outside the frame.

    Args:
        images: float (N, 3, H, W).
        matrices: float32 (N, 2, 3), from a pixel of the result to a pixel of the image, both from
            the centre of the frame.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, dtype=images.dtype) - (width - 1) / 2
    y = (torch.arange(height, dtype=images.dtype) - (height - 1) / 2).unsqueeze(1)
    m = torch.from_numpy(matrices).view(-1, 6, 1, 1).unbind(1)
    # grid_sample with align_corners=False: -1 and 1 are the outer edges of the outer pixels.
    across = (x * m[0] + y * m[1] + m[2]) * 2 / width
    down = (x * m[3] + y * m[4] + m[5]) * 2 / height
    grid = torch.stack([across, down], -1)
    return functional.grid_sample(
        images, grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )


def blur(images: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """3×3 Gaussian blur with reflected borders.

    Args:
        images: float (N, C, H, W), H and W at least 2.
        side: (N, 1, 1, 1), weight of a neighbour over that of the middle: exp(-1 / (2 sigma²)).
    """
    total = 1 + 2 * side
    middle, side = 1 / total, side / total
    for axis in (3, 2):
        size = images.shape[axis]
        first, last = images.narrow(axis, 1, 1), images.narrow(axis, size - 2, 1)
        padded = torch.cat([first, images, last], axis)
        both = padded.narrow(axis, 0, size) + padded.narrow(axis, 2, size)
        images = both.mul_(side).add_(images * middle)
    return images


def halve_and_back(images: torch.Tensor) -> torch.Tensor:
    """Resizes float (N, C, H, W) to half the height and width, and back; bilinear."""
    height, width = images.shape[2:]
    small = _resample(_resample(images, 2, height // 2), 3, width // 2)
    return _resample(_resample(small, 2, height), 3, width)


def _resample(images: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    """Bilinear along one axis; the triangle is widened when shrinking, normalised at the border.

    torch's own `interpolate` rounds otherwise where its threads divide the work elsewhere.
    """
    total: torch.Tensor | None = None
    shape = [1, 1, -1, 1] if axis == 2 else [1, 1, 1, -1]
    for indices, weights in _taps(images.shape[axis], size):
        part = images.index_select(axis, indices).mul_(weights.view(shape))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


@lru_cache
def _taps(before: int, after: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of int64 (after,) indices and float32 (after,) weights, whose products add up."""
    step = before / after
    reach = max(step, 1.0)
    centres = (np.arange(after)[:, None] + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(before) + 0.5 - centres) / reach)
    weights /= weights.sum(1, keepdims=True)
    first = (weights > 0).argmax(1)
    taps = []
    for tap in range(int((weights > 0).sum(1).max())):
        indices = np.minimum(first + tap, before - 1)
        # Past the border the last pixel is met again: it counts once.
        chosen = np.where(first + tap < before, weights[np.arange(after), indices], 0)
        taps.append((torch.from_numpy(indices), torch.from_numpy(chosen.astype(np.float32))))
    return taps
