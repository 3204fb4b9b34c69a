import numpy as np
import pytest
import torch

from raypipe.batch_decode import decode_faces
from raypipe.errors import UserError
from raypipe.images import decode, encode_jpeg, encode_png


def pictures(count, shape=(112, 112, 3)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("threads", [1, 2, 3, 16])
def test_pixels_are_those_of_decode(threads):
    encode = [encode_jpeg, encode_png]
    blobs = [encode[k % 2](image) for k, image in enumerate(pictures(11))]
    got = decode_faces(blobs, [""] * 11, threads=threads)
    assert got.dtype == torch.uint8 and got.shape == (11, 112, 112, 3)
    for blob, image in zip(blobs, got.numpy(), strict=True):
        assert np.array_equal(image, decode(blob, source=""))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"", "image 5: not a readable image; run `raypipe verify`"),
        (encode_jpeg(pictures(1)[0])[:2000], "image 5: .*truncated.*run `raypipe verify`"),
        (encode_png(pictures(1, (50, 60, 3))[0]), "image 5: 60×50 pixels, training needs 112×112"),
    ],
)
def test_names_the_first_image_that_cannot_be_used(threads, broken, message):
    blobs = [encode_png(image) for image in pictures(9)]
    blobs[5] = blobs[7] = broken
    with pytest.raises(UserError, match=message):
        decode_faces(blobs, [f"image {k}" for k in range(9)], threads=threads)
