"""Encoded images in and out: bounded, and with a reason where it fails."""

import io

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

MAX_PIXELS = 50_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"BM", "bmp"),
    (b"P5", "pgm"),
    (b"P6", "ppm"),
)


class ImageError(ValueError):
    """An image that cannot be used.

    Attributes:
        reason: "not_an_image", "corrupt", "truncated" or "too_large".
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def extension(data: bytes) -> str | None:
    """File extension by the first bytes ("jpg", "png", ...), None for what is no image."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _MAGIC if data.startswith(magic)), None)


def decode(data: bytes, *, source: str) -> np.ndarray:
    """Decodes an image.

    The size is read from the header before a pixel is allocated, so a small file that claims to be
    huge is refused.

    Args:
        data: JPEG, PNG, WebP, BMP, PGM or PPM.
        source: what to call it in the error.

    Returns:
        uint8 array (height, width, 3), RGB.

    Raises:
        ImageError: with one of the reasons named there.
    """
    try:
        image = Pillow.open(io.BytesIO(data), formats=_FORMATS)
    except Pillow.DecompressionBombError as error:
        raise ImageError("too_large", f"{source}: {error}") from error
    except UnidentifiedImageError as error:
        reason = "corrupt" if extension(data) else "not_an_image"
        raise ImageError(reason, f"{source}: not a readable image") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError("corrupt", f"{source}: {error}") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too_large",
            f"{source}: {width}×{height} pixels, more than the {MAX_PIXELS:,} allowed",
        )
    try:
        rgb = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise ImageError(reason, f"{source}: {error}") from error
    return rgb


def encode_jpeg(rgb: np.ndarray, quality: int = 95) -> bytes:
    """JPEG bytes of a uint8 array (height, width, 3)."""
    buffer = io.BytesIO()
    Pillow.fromarray(rgb).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def encode_png(rgb: np.ndarray) -> bytes:
    """PNG bytes of a uint8 array (height, width, 3) or (height, width)."""
    buffer = io.BytesIO()
    Pillow.fromarray(rgb).save(buffer, "PNG")
    return buffer.getvalue()


def resize(rgb: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of a uint8 image to (width, height); shrinking widens the filter."""
    return np.asarray(Pillow.fromarray(rgb).resize(size, Pillow.Resampling.BILINEAR))


def centre_square(rgb: np.ndarray, side: int) -> np.ndarray:
    """Scales the short side of a uint8 image to `side`, and cuts the middle out of the long one."""
    height, width = rgb.shape[:2]
    short = min(height, width)
    top, left = (height - short) // 2, (width - short) // 2
    return resize(rgb[top : top + short, left : left + short], (side, side))
