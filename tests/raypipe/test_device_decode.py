"""On the CPU, where the same code runs with the same library; a GPU was not at hand."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from raypipe import device_decode
from raypipe.batch_decode import decode_faces
from raypipe.device_decode import DeviceDecoder, pack
from raypipe.errors import UserError
from raypipe.images import encode_jpeg, encode_png, resize

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (112, 112, 3), dtype=np.uint8)
SMOOTH = resize(RNG.integers(0, 256, (14, 14, 3), dtype=np.uint8), (112, 112))


@pytest.fixture(scope="module", params=[1, 2])
def decoder(request):
    return DeviceDecoder(CPU, request.param)


def encode(pixels, kind="JPEG", mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def turned():
    """Orientation in an EXIF tag: a quarter turn, which is not to be done."""
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


# JFIF in three channels: the library's.
FACES = {
    f"{name}, {kind}": encode(pixels, **options)
    for name, pixels in {"noise": NOISE, "smooth": SMOOTH}.items()
    for kind, options in {
        "4:4:4": {"quality": 95, "subsampling": 0},
        "4:2:2": {"quality": 95, "subsampling": 1},
        "4:2:0": {"quality": 95, "subsampling": 2},
        "quality 30": {"quality": 30},
        "progressive": {"quality": 95, "progressive": True},
        "turned": {"quality": 95, "exif": turned()},
        "restart markers": {"quality": 95, "restart_marker_blocks": 3},
    }.items()
}
# All others: Pillow's.
OTHERS = {
    "PNG": encode_png(NOISE),
    "WebP": encode(NOISE, "WEBP"),
    "BMP": encode(NOISE, "BMP"),
    "grey": encode(NOISE, mode="L"),
    "CMYK": encode(NOISE, mode="CMYK"),
    "RGB in JPEG": encode(NOISE, keep_rgb=True),
    "no JFIF": encode_jpeg(NOISE).replace(b"JFIF", b"AVI1", 1),
    "bytes after the end": encode_jpeg(NOISE) + b"more",
}


def as_arrays(blobs):
    return [np.frombuffer(blob, np.uint8) for blob in blobs]


def run(decoder, blobs):
    return decoder.decode(**pack(blobs), sources=[f"image {k}" for k in range(len(blobs))])


@pytest.mark.parametrize("name", FACES)
def test_pixels_are_those_of_pillow(decoder, name):
    (face,) = decoder.jpeg_faces(as_arrays([FACES[name]]))
    assert face is not None and face.dtype == torch.uint8
    assert torch.equal(face, decode_faces([FACES[name]], [""])[0])


@pytest.mark.parametrize("name", OTHERS)
def test_leaves_what_decoders_disagree_about_to_pillow(decoder, name):
    assert decoder.jpeg_faces(as_arrays([OTHERS[name]])) == [None]
    assert torch.equal(run(decoder, [OTHERS[name]]), decode_faces([OTHERS[name]], [""]))


def test_a_batch_of_all_kinds_keeps_its_order(decoder):
    blobs = [*FACES.values(), *OTHERS.values()]
    blobs = [blobs[k] for k in np.random.default_rng(1).permutation(len(blobs))]
    got = run(decoder, blobs)
    assert got.shape == (len(blobs), 112, 112, 3) and got.dtype == torch.uint8
    assert torch.equal(got, decode_faces(blobs, [""] * len(blobs)))


def test_takes_what_is_damaged_inside_as_pillow_does(decoder):
    whole = FACES["noise, 4:2:0"]
    middle = len(whole) // 2
    blobs = [
        whole[:middle] + b"\xff\xd9",
        whole[:middle] + bytes(20) + whole[middle + 20 :],
        whole[:middle] + whole[middle + 500 :],
    ]
    assert torch.equal(run(decoder, blobs), decode_faces(blobs, [""] * 3))


def test_a_result_outlives_the_batches_after_it(decoder):
    first = run(decoder, [FACES["noise, 4:4:4"]] * 3)
    before = first.clone()
    for _ in range(20):
        run(decoder, [FACES["smooth, 4:2:0"]] * 3)
    assert torch.equal(first, before)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (b"", "image 5: not a readable image; run `raypipe verify`"),
        (encode_jpeg(NOISE)[:2000], "image 5: .*truncated.*run `raypipe verify`"),
        # An end, and no size before it.
        (encode_jpeg(NOISE)[:30] + b"\xff\xd9", "image 5: .*run `raypipe verify`"),
        (encode_jpeg(NOISE[:50, :60]), "image 5: 60×50 pixels, training needs 112×112"),
        (encode_png(NOISE[:50, :60]), "image 5: 60×50 pixels, training needs 112×112"),
    ],
)
def test_names_the_first_image_that_cannot_be_used(decoder, broken, message):
    blobs = [encode_jpeg(SMOOTH)] * 9
    blobs[5] = blobs[7] = broken
    with pytest.raises(UserError, match=message):
        run(decoder, blobs)


def test_packs_images_one_after_another():
    packed = pack([b"abc", b"", b"de"])
    assert bytes(packed["encoded"].numpy()) == b"abcde"
    assert packed["sizes"].tolist() == [3, 0, 2]


def test_a_device_that_decodes_otherwise_is_refused(monkeypatch):
    # A GPU may do so; this makes the library on the CPU do so, too.
    monkeypatch.setattr(device_decode, "_OPTIONS", ":fancy_upsampling=0")
    with pytest.raises(UserError, match=r"on cpu decodes a known picture 4.3 of 255 levels off"):
        DeviceDecoder(CPU, 1)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia", None)
    with pytest.raises(UserError, match=r"nvimgcodec is not installed.*pip install.*\[nvjpeg\]"):
        DeviceDecoder(CPU, 1)


@pytest.mark.slow
def test_a_library_without_a_decoder_for_the_device_is_refused(tmp_path):
    """As on a GPU without nvJPEG: the library finds none of its extensions, in a new process."""
    script = (
        "import os, torch\n"
        f"os.environ['NVIMGCODEC_EXTENSIONS_PATH'] = {str(tmp_path)!r}\n"
        "from raypipe.device_decode import DeviceDecoder\n"
        "DeviceDecoder(torch.device('cpu'), 1)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "UserError: train.decoder: nvimgcodec cannot decode JPEG on cpu" in result.stderr
