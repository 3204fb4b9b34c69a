"""Faces as data URIs, within a budget, so that the report stays small enough to be mailed."""

import base64

from raypipe.images import ImageError, decode, encode_jpeg, extension, resize
from raypipe.report.blocks import Face, Tone

_MIME = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "bmp": "image/bmp"}
_ORIGINAL = 16_384  # bytes: an aligned 112×112 face has 4 to 12 KB; anything larger is shrunk
_SIDE = 112  # pixels, the longer side of what is shrunk


class Album:
    """Turns encoded images into data URIs.

    The original bytes are shown while they are small and the budget lasts; a larger picture, and
    every picture once half the budget is spent, becomes a JPEG of at most 112 pixels.

    Args:
        budget: bytes of encoded images the report may hold.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.spent = 0

    def _encoded(self, data: bytes, source: str) -> tuple[str, bytes] | None:
        try:
            rgb = decode(data, source=source)
        except ImageError:
            return None
        mime = _MIME.get(extension(data) or "")
        if mime and len(data) <= _ORIGINAL and self.spent + len(data) <= self.budget // 2:
            return mime, data
        height, width = rgb.shape[:2]
        scale = min(1.0, _SIDE / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        # A strip of 1×50,000 pixels is a valid image; what it shrinks to is never large.
        return "image/jpeg", encode_jpeg(resize(rgb, size), quality=80)

    def face(
        self, data: bytes, *, alt: str, caption: tuple[str, ...] = (), tone: Tone = "plain"
    ) -> Face:
        """A face to show; bytes that no decoder reads give a frame without a picture."""
        found = self._encoded(data, alt)
        src = None
        if found is not None and self.spent + len(found[1]) <= self.budget:
            mime, encoded = found
            self.spent += len(encoded)
            src = f"data:{mime};base64,{base64.b64encode(encoded).decode()}"
        return Face(src=src, alt=alt, caption=caption, tone=tone)
