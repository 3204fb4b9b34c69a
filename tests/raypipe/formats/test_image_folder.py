"""What an image folder may hold, and what becomes of it."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from raypipe.errors import UserError
from raypipe.formats import open_reader
from raypipe.formats.image_folder import natural
from raypipe.identities import Identity, from_table, to_table
from raypipe.images import encode_jpeg, encode_png

LIMIT = 100_000


def jpeg(seed: int = 0, side: int = 24) -> bytes:
    return encode_jpeg(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8))


def bomb() -> bytes:
    """A PNG of 100 bytes whose header claims 50,000 × 50,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def ingest(root: Path, limit: int = LIMIT) -> list[Identity]:
    """Lists, sends the listing through Parquet as the job does, and reads."""
    reader = open_reader(str(root), source="base", max_bytes=limit)
    listed = [listing.identity for listing in reader.identities()]
    return [reader.read(identity) for identity in from_table(to_table(listed))]


def reasons(identity: Identity) -> dict[str, str | None]:
    return {image.image_id: image.rejected for image in identity.images}


def test_identities_come_in_natural_order_with_their_bytes(tmp_path: Path) -> None:
    for person in ("10", "2", "1"):
        for name in ("10.jpg", "9.jpg"):
            put(tmp_path / person / name, jpeg(int(person)))
    found = ingest(tmp_path)
    assert [(i.identity_id, i.index, i.source) for i in found] == [
        ("1", 0, "base"),
        ("2", 1, "base"),
        ("10", 2, "base"),
    ]
    assert [image.image_id for image in found[0].images] == ["9.jpg", "10.jpg"]
    assert found[1].images[0].data == jpeg(2)
    assert found[1].images[0].source == "2/9.jpg"
    assert len(found[2].kept) == 2


def test_one_level_of_folders_belongs_to_the_identity_and_deeper_is_counted(tmp_path: Path) -> None:
    put(tmp_path / "a" / "front" / "1.png", encode_png(np.zeros((8, 8, 3), np.uint8)))
    put(tmp_path / "a" / "side" / "deep" / "1.jpg", jpeg())
    (found,) = ingest(tmp_path)
    assert reasons(found) == {"front/1.png": None, "side/deep": "ingest:nested"}


def test_an_image_is_known_by_its_bytes_not_by_its_name(tmp_path: Path) -> None:
    put(tmp_path / "a" / "face", jpeg())
    put(tmp_path / "a" / "face.gz", jpeg(1))
    put(tmp_path / "a" / "notes.jpg", b"these are words")
    (found,) = ingest(tmp_path)
    assert reasons(found) == {"face": None, "face.gz": None, "notes.jpg": "ingest:not_an_image"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "ingest:not_an_image"),
        (b"a text", "ingest:not_an_image"),
        (jpeg()[: len(jpeg()) // 2], "ingest:truncated"),
        (encode_png(np.zeros((64, 64, 3), np.uint8))[:-30], "ingest:truncated"),
        (jpeg()[:3] + b"\x17\x2a" * 400, "ingest:corrupt"),
        (bomb(), "ingest:too_large"),
    ],
)
def test_a_broken_image_is_a_counted_rejection_with_its_bytes(
    tmp_path: Path, data: bytes, reason: str
) -> None:
    put(tmp_path / "a" / "0.jpg", jpeg())
    put(tmp_path / "a" / "1.jpg", data)
    (found,) = ingest(tmp_path)
    assert reasons(found) == {"0.jpg": None, "1.jpg": reason}
    assert found.images[1].data == data
    assert found.rejected is None


@pytest.mark.parametrize("when", ["listed", "grown since"])
def test_a_file_over_the_limit_is_not_read(tmp_path: Path, when: str) -> None:
    put(tmp_path / "a" / "0.jpg", jpeg())
    path = put(tmp_path / "a" / "1.jpg", jpeg() + bytes(LIMIT if when == "listed" else 0))
    reader = open_reader(str(tmp_path), source="base", max_bytes=LIMIT)
    (listing,) = reader.identities()
    put(path, jpeg() + bytes(LIMIT))
    found = reader.read(listing.identity)
    assert reasons(found) == {"0.jpg": None, "1.jpg": "ingest:file_too_large"}
    assert found.images[1].data == b""


def test_a_file_at_the_limit_is_read(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.jpg", jpeg())
    assert len(ingest(tmp_path, limit=len(jpeg()))[0].kept) == 1
    assert len(ingest(tmp_path, limit=len(jpeg()) - 1)[0].kept) == 0


@pytest.mark.parametrize("content", [[], [b"no image"]])
def test_an_identity_without_an_image_is_rejected(tmp_path: Path, content: list[bytes]) -> None:
    (tmp_path / "a").mkdir()
    for i, data in enumerate(content):
        put(tmp_path / "a" / f"{i}.jpg", data)
    put(tmp_path / "b" / "0.jpg", jpeg())
    empty, full = ingest(tmp_path)
    assert (empty.identity_id, empty.rejected, len(empty.images)) == (
        "a",
        "ingest:empty",
        len(content),
    )
    assert full.rejected is None


def test_files_beside_the_identities_are_one_rejected_identity(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.jpg", jpeg())
    put(tmp_path / "readme.txt", b"hello")
    put(tmp_path / "b.jpg", jpeg())
    found = ingest(tmp_path)
    assert [(i.identity_id, i.index, i.rejected) for i in found] == [
        ("a", 0, None),
        (".", 1, "ingest:stray"),
    ]
    assert reasons(found[1]) == {"b.jpg": "ingest:stray", "readme.txt": "ingest:stray"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "no such file or folder"),
        (lambda root: root.write_bytes(jpeg()), "no format that raypipe reads"),
        (lambda root: root.mkdir(), "no identity in it, only nothing"),
        (lambda root: put(root / "0.jpg", jpeg()), "no identity in it, only 1 loose files"),
    ],
)
def test_what_is_no_set_at_all_is_an_error(tmp_path: Path, make, message: str) -> None:
    make(tmp_path / "set")
    with pytest.raises(UserError, match=message) as error:
        ingest(tmp_path / "set")
    assert str(tmp_path / "set") in str(error.value)


def test_a_scheme_nobody_knows_is_an_error() -> None:
    with pytest.raises(UserError, match="nosuch://bucket/set"):
        open_reader("nosuch://bucket/set", source="base", max_bytes=LIMIT)


def test_names_that_are_not_utf8_are_escaped_and_rejected(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.jpg", jpeg())
    root = os.fsencode(tmp_path)
    os.mkdir(root + b"/caf\xe9")
    for name in (b"/caf\xe9/0.jpg", b"/a/\xff.jpg"):
        with open(root + name, "wb") as file:
            file.write(jpeg())
    put(tmp_path / r"caf\xe9" / "0.jpg", jpeg())  # a real folder that looks like the escaped name
    found = {identity.identity_id: identity for identity in ingest(tmp_path)}
    assert sorted(found) == ["a", r"caf\xe9", r"caf\xe9'"]
    assert found[r"caf\xe9"].rejected is None
    assert found[r"caf\xe9'"].rejected == "ingest:bad_name"
    assert reasons(found[r"caf\xe9'"]) == {"0.jpg": "ingest:bad_name"}
    assert reasons(found["a"]) == {"0.jpg": None, r"\xff.jpg": "ingest:bad_name"}
    assert found["a"].rejected is None


def test_links_that_climb_out_are_refused(tmp_path: Path) -> None:
    secret = put(tmp_path / "elsewhere" / "secret.jpg", jpeg())
    root = tmp_path / "set"
    put(root / "a" / "0.jpg", jpeg())
    put(root / "b" / "0.jpg", jpeg(1))
    (root / "a" / "1.jpg").symlink_to(secret)
    (root / "a" / "2.jpg").symlink_to("../../elsewhere/secret.jpg")
    (root / "a" / "3.jpg").symlink_to("../b/0.jpg")
    (root / "a" / "4").symlink_to(secret.parent)
    (root / "a" / "5.jpg").symlink_to("nowhere.jpg")
    (root / "c").symlink_to(secret.parent)
    found = ingest(root)
    assert reasons(found[0]) == {
        "0.jpg": None,
        "1.jpg": "ingest:outside",
        "2.jpg": "ingest:outside",
        "3.jpg": None,
        "4": "ingest:outside",
        "5.jpg": "ingest:unreadable",
    }
    assert found[0].images[3].data == jpeg(1)
    assert (found[2].identity_id, found[2].rejected) == ("c", "ingest:outside")
    assert found[2].images == []
    assert all(image.data != secret.read_bytes() for image in found[0].images[1:])


def test_a_link_put_in_place_after_the_listing_is_refused(tmp_path: Path) -> None:
    secret = put(tmp_path / "secret.jpg", jpeg())
    path = put(tmp_path / "set" / "a" / "0.jpg", jpeg(1))
    reader = open_reader(str(tmp_path / "set"), source="base", max_bytes=LIMIT)
    (listing,) = reader.identities()
    path.unlink()
    path.symlink_to(secret)
    found = reader.read(listing.identity)
    assert reasons(found) == {"0.jpg": "ingest:outside"}
    assert found.images[0].data == b""


@pytest.mark.parametrize(
    "source", ["a/../../secret.jpg", "../secret.jpg", "/secret.jpg", "a//0.jpg"]
)
def test_a_listing_that_climbs_out_is_refused(tmp_path: Path, source: str) -> None:
    put(tmp_path / "secret.jpg", jpeg())
    put(tmp_path / "set" / "a" / "0.jpg", jpeg(1))
    reader = open_reader(str(tmp_path / "set"), source="base", max_bytes=LIMIT)
    (listing,) = reader.identities()
    listing.identity.images[0].source = source
    assert reasons(reader.read(listing.identity)) == {"0.jpg": "ingest:outside"}


def test_a_pipe_and_a_ring_of_links_do_not_hang(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.jpg", jpeg())
    os.mkfifo(tmp_path / "a" / "1.jpg")
    (tmp_path / "a" / "2.jpg").symlink_to("2.jpg")
    (tmp_path / "a" / "up").symlink_to("..")
    (found,) = ingest(tmp_path)
    assert reasons(found) == {
        "0.jpg": None,
        "1.jpg": "ingest:unreadable",
        "2.jpg": "ingest:unreadable",
        "up": "ingest:outside",
    }


def test_a_file_that_is_gone_when_it_is_read_is_a_rejection(tmp_path: Path) -> None:
    put(tmp_path / "a" / "0.jpg", jpeg())
    path = put(tmp_path / "a" / "1.jpg", jpeg(1))
    reader = open_reader(str(tmp_path), source="base", max_bytes=LIMIT)
    (listing,) = reader.identities()
    path.unlink()
    assert reasons(reader.read(listing.identity)) == {"0.jpg": None, "1.jpg": "ingest:unreadable"}


def test_the_fingerprint_follows_the_files(tmp_path: Path) -> None:
    def fingerprints() -> list[str]:
        reader = open_reader(str(tmp_path), source="base", max_bytes=LIMIT)
        return [listing.fingerprint for listing in reader.identities()]

    path = put(tmp_path / "a" / "0.jpg", jpeg())
    put(tmp_path / "b" / "0.jpg", jpeg())
    first = fingerprints()
    assert fingerprints() == first
    os.utime(path, ns=(0, 1))
    later = fingerprints()
    assert later[0] != first[0]
    assert later[1] == first[1]


def test_three_hundred_folders_keep_their_order(tmp_path: Path) -> None:
    """More than are listed at one time."""
    for i in range(300):
        put(tmp_path / f"p{i}" / "0.jpg", b"x")
    reader = open_reader(str(tmp_path), source="base", max_bytes=LIMIT)
    found = [listing.identity for listing in reader.identities()]
    assert [identity.identity_id for identity in found] == [f"p{i}" for i in range(300)]
    assert [identity.index for identity in found] == list(range(300))


def test_every_format_pillow_is_allowed_to_read(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    for kind in ("jpeg", "png", "webp", "bmp", "ppm", "gif"):
        buffer = io.BytesIO()
        Pillow.fromarray(rgb).save(buffer, kind.upper())
        put(tmp_path / "a" / f"0.{kind}", buffer.getvalue())
    (found,) = ingest(tmp_path)
    rejected = {name for name, reason in reasons(found).items() if reason}
    assert rejected == {"0.gif"}


def test_natural_order_puts_numbers_by_value() -> None:
    names = ["10", "2", "a10b", "a2b", "02", "a", "1"]
    assert sorted(names, key=natural) == ["1", "02", "2", "10", "a", "a2b", "a10b"]
