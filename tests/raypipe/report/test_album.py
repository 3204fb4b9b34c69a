import base64
import io

import numpy as np
from PIL import Image as Pillow

from raypipe.images import encode_jpeg, encode_png
from raypipe.report.album import Album


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def content(src: str | None) -> tuple[str, bytes]:
    assert src is not None
    head, _, body = src.partition(",")
    return head, base64.b64decode(body)


def test_small_images_keep_their_bytes() -> None:
    data = encode_png(noise(40, 40))
    assert content(Album(10**6).face(data, alt="x").src) == ("data:image/png;base64", data)


def test_large_images_and_formats_no_browser_shows_become_small_jpegs() -> None:
    buffer = io.BytesIO()
    Pillow.fromarray(noise(60, 50)).save(buffer, "PPM")
    for data, size in ((encode_jpeg(noise(400, 200)), (56, 112)), (buffer.getvalue(), (50, 60))):
        head, shown = content(Album(10**6).face(data, alt="x").src)
        assert head == "data:image/jpeg;base64"
        assert Pillow.open(io.BytesIO(shown)).size == size


def test_what_is_no_image_has_no_picture_but_stays() -> None:
    face = Album(10**6).face(b"\xff\xd8\xffgarbage", alt="broken", caption=("corrupt",), tone="bad")
    assert face.src is None
    assert (face.alt, face.caption, face.tone) == ("broken", ("corrupt",), "bad")


def test_the_budget_is_never_exceeded() -> None:
    album = Album(30_000)
    faces = [album.face(encode_jpeg(noise(64, 64, seed)), alt=str(seed)) for seed in range(40)]
    shown = [content(face.src)[1] for face in faces if face.src]
    assert sum(map(len, shown)) == album.spent <= album.budget
    assert 0 < len(shown) < 40
