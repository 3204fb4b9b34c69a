"""Sheets: faces of an identity side by side on one image, each with a number under it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from raypipe.config.judge import SheetConfig
from raypipe.images import encode_jpeg, resize

_LABEL = 18  # pixels of the strip under a face
_QUALITY = 92  # of the JPEG; faces and numbers stay legible


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """An image to show to the model.

    Attributes:
        labels: number under each face, in reading order; face k of the identity has k + 1.
        anchors: those of them that stand on all sheets of the identity.
        data: JPEG bytes, the same for the same faces and Pillow.
    """

    labels: tuple[int, ...]
    anchors: frozenset[int]
    data: bytes


def layout(
    count: int, config: SheetConfig, central: Sequence[int]
) -> list[tuple[list[int], set[int]]]:
    """Which faces stand on which sheet.

    Args:
        count: faces of the identity.
        central: all of them, the most central first.

    Returns:
        For each sheet its faces, counted from 0, and the anchors among them, which come first. One
        sheet needs no anchors. Every other face stands on one sheet, and sheets differ by one face
        at most.
    """
    if count <= config.capacity:
        return [(list(range(count)), set())]
    anchors = list(central[: config.anchors])
    others = [k for k in range(count) if k not in anchors]
    number = -(-len(others) // (config.capacity - len(anchors)))
    return [
        (anchors + list(map(int, part)), set(anchors)) for part in np.array_split(others, number)
    ]


def size(faces: int, config: SheetConfig) -> tuple[int, int]:
    """Width and height in pixels of a sheet with so many faces."""
    rows = -(-faces // config.columns)
    return config.columns * config.face, rows * (config.face + _LABEL)


def draw(faces: Sequence[np.ndarray], config: SheetConfig, central: Sequence[int]) -> list[Sheet]:
    """The sheets of an identity.

    Args:
        faces: uint8 (H, W, 3) each, of any size.
        central: indices of all of them, the most central first.
    """
    tiles = [resize(face, (config.face, config.face)) for face in faces]
    return [
        Sheet(
            labels=tuple(k + 1 for k in shown),
            anchors=frozenset(k + 1 for k in anchors),
            data=_paint([tiles[k] for k in shown], [f"{k + 1:03d}" for k in shown], config),
        )
        for shown, anchors in layout(len(faces), config, central)
    ]


def _paint(tiles: list[np.ndarray], texts: list[str], config: SheetConfig) -> bytes:
    width, height = size(len(tiles), config)
    sheet = Pillow.new("RGB", (width, height), "white")
    pencil = ImageDraw.Draw(sheet)
    for place, (tile, text) in enumerate(zip(tiles, texts, strict=True)):
        row, column = divmod(place, config.columns)
        x, y = column * config.face, row * (config.face + _LABEL)
        sheet.paste(Pillow.fromarray(tile), (x, y))
        middle = (x + config.face / 2, y + config.face + _LABEL / 2)
        pencil.text(middle, text, fill="black", font=_font(), anchor="mm")
    return encode_jpeg(np.asarray(sheet), _QUALITY)


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=_LABEL - 2)  # the font inside Pillow: the same anywhere
