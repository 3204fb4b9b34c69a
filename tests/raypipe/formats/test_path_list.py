"""Lists of images in every layout, and folders as we write them."""

import os
import pickle
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import DamagedError, Record, open_reader, open_writer
from raypipe.formats.image_folder import ImageFolder
from raypipe.formats.keyed import Part
from raypipe.formats.list_lines import MOST
from raypipe.formats.path_list import ListReader
from raypipe.images import encode_jpeg, encode_png
from raypipe.reasons import explain

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), np.uint8)
JPEGS = [encode_jpeg(rgb) for rgb in PIXELS]
PNG = encode_png(PIXELS[0])
PEOPLE = ["10", "2", "Ana B"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three people with two images each."""
    for person, name in enumerate(PEOPLE):
        for image in range(2):
            path = tmp_path / "set" / name / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(JPEGS[2 * person + image])
    return tmp_path / "set"


def listed(root: Path, text: str | bytes) -> Path:
    path = root / "list.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path | str, **more: int) -> tuple[list[Record], list[str]]:
    """Records of all ways to read, which have to agree, and the damages."""
    reader = open_reader(str(path), **more)
    assert isinstance(reader, ListReader)
    found, damages = [], []
    try:
        for record in reader.records():
            found.append(record)
    except DamagedError as error:
        damages = [f"{d.offset}: {d.what}" for d in error.damages]
    images = {}
    for listing in pickle.loads(pickle.dumps(reader)).identities():
        # By another reader, as on a worker.
        for image in open_reader(str(path), **more).read(listing.identity).images:
            if image.rejected is None:
                image_id = image.image_id.removesuffix(f" ({image.source})")
                images[image.source] = (listing.identity.identity_id, image_id, image.data)
    places = sorted(images, key=lambda source: int(source.rpartition("@")[2].partition("+")[0]))
    assert [images[s] for s in places] == [(r.identity, r.image_id, r.image) for r in found]
    return found, damages


LAYOUTS = {
    "absolute": "".join(f"{{root}}/{p}/{i}.jpg\n" for p in PEOPLE for i in (0, 1)),
    "relative": "".join(f"./{p}/{i}.jpg\r\n" for p in PEOPLE for i in (0, 1)),
    "space label": "".join(f"{p}/{i}.jpg {n}\n" for n, p in enumerate(PEOPLE) for i in (0, 1)),
    "space name": "".join(f"{p}/{i}.jpg n{p[0]}\n" for p in PEOPLE for i in (0, 1)),
    "tab label": "".join(f"{p}/{i}.jpg\t{n}\n" for n, p in enumerate(PEOPLE) for i in (0, 1)),
    "tab name": "".join(f"{p}/{i}.jpg\tp {p}\n" for p in PEOPLE for i in (0, 1)),
    "im2rec": "".join(
        f"{2 * n + i}\t{n}.000000\t{p}/{i}.jpg\n" for n, p in enumerate(PEOPLE) for i in (0, 1)
    ),
    "im2rec, labels": "".join(
        f"{i}\t{n}.000000\t0.5\t-1\t{p}/{i}.jpg\n" for n, p in enumerate(PEOPLE) for i in (0, 1)
    ),
    "insightface": "".join(
        f"1\t{p}/{i}.jpg\t{n}\t3\t4\n" for n, p in enumerate(PEOPLE) for i in (0, 1)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("end", ["", "\n \n"])
def test_layouts(root: Path, layout: str, end: str) -> None:
    text = LAYOUTS[layout].format(root=root)
    path = listed(root, "\ufeff" + text.rstrip() + end)
    found, damages = read(path)
    assert damages == []
    assert [r.image for r in found] == JPEGS[:6]
    if layout in ("absolute", "relative", "tab name"):
        assert [r.label for r in found] == [1, 1, 0, 0, 2, 2]  # "2" comes before "10"
        before = "p " if layout == "tab name" else ""
        assert [r.identity for r in found] == [before + p for p in PEOPLE for _ in range(2)]
    elif layout == "space name":
        assert [(r.label, r.identity) for r in found[::2]] == [(0, "n1"), (1, "n2"), (2, "nA")]
    else:
        assert [(r.label, r.identity) for r in found[::2]] == [(0, "0"), (1, "1"), (2, "2")]
    survey = open_reader(str(path)).survey()
    assert (survey.images, survey.labels.tolist()) == (6, [0, 1, 2])
    assert survey.in_order == (layout not in ("absolute", "relative", "tab name"))


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("2/0.jpg 1", "2/1.jpg one"),
        ("2/0.jpg 1", "2/1.jpg"),
        ("2/0.jpg 1", "2/1.jpg -1"),
        ("2/0.jpg", "2/1.jpg 1"),
        ("2/0.jpg", "2/1.jpg\t1"),
        ("2/0.jpg", "1.jpg"),
        ("2/0.jpg\t1", "2/1.jpg\t1\t1"),
        ("0\t1\t2/0.jpg", "1\t1.5\t2/1.jpg"),
        ("1\t2/0.jpg\t0", "2\t2/1.jpg\t0"),
        ("2/0.jpg\tAna", "2/1.jpg\t"),
    ],
)
def test_a_line_that_does_not_fit_is_named(root: Path, first: str, other: str) -> None:
    # The layout is found by fewer than 8,000 lines.
    place = 8_000 if other == "2/1.jpg one" else 2
    path = listed(root, f"{first}\n" * (place - 1) + f"{other}\n{first}\n")
    message = f"list.txt: line {place:,}: '{other.replace(chr(9), chr(92) + 't')}' is not "
    reader = open_reader(str(path))
    with pytest.raises(UserError) as error:
        reader.survey()
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["hello\n", "a\tb\tc\td\n", "\n\n", "name.jpg\n"])
def test_a_text_that_is_no_list_is_named(root: Path, text: str) -> None:
    with pytest.raises(UserError, match="list.txt: line 1: .* names no image; expected NUMBER"):
        read(listed(root, text))


@pytest.mark.parametrize("before", [0, 5])
def test_a_line_longer_than_a_path_is_an_error(root: Path, before: int) -> None:
    path = listed(root, "2/0.jpg 1\n" * before + "x" * 9_000_000)
    message = f"line {before + 1:,}: longer than {MOST:,} bytes"
    reader = ListReader(str(path), source="base", max_bytes=10**6)
    tracemalloc.start()
    try:
        for start in (0, 4_000_000, 8_000_000):
            with pytest.raises(UserError, match=message):
                reader.entries(Part(str(path), start, start + 4_000_000))
        with pytest.raises(UserError, match=message):
            open_reader(str(path)).survey()
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_what_cannot_be_read_is_rejected_and_the_rest_is_read(root: Path) -> None:
    (root.parent / "secret.jpg").write_bytes(JPEGS[7])
    (root / "2" / "words.jpg").write_text("words")
    (root / "2" / "big.jpg").write_bytes(JPEGS[0] + bytes(100_000))
    (root / "2" / "out.jpg").symlink_to("../../secret.jpg")
    (root / "out").symlink_to(root.parent)
    (root / "2" / "in.jpg").symlink_to("../10/0.jpg")
    (root / "2" / "ring.jpg").symlink_to("ring.jpg")
    os.mkfifo(root / "2" / "pipe.jpg")
    expected = {
        "2/0.jpg": None,
        "2/none.jpg": "ingest:missing",
        "2/0.jpg/0.jpg": "ingest:missing",
        "../secret.jpg": "ingest:outside",
        "2/../../secret.jpg": "ingest:outside",
        "2/out.jpg": "ingest:outside",
        "out/secret.jpg": "ingest:outside",
        "s3://faces/0.jpg": "ingest:outside",
        "2/in.jpg": None,
        "2/ring.jpg": "ingest:unreadable",
        "2/pipe.jpg": "ingest:unreadable",
        "10": "ingest:unreadable",
        "2/words.jpg": "ingest:not_an_image",
        "2/big.jpg": "ingest:file_too_large",
        str(root / "2" / "1.jpg"): None,
        str(root.parent / "secret.jpg"): None,
        str(root / "2" / "nul\0.jpg"): "ingest:unreadable",
    }
    path = listed(root, "".join(f"{path}\t5\n" for path in ["2/0.jpg"] * 600 + list(expected)))
    found, damages = read(path, max_bytes=50_000)
    good = [JPEGS[2]] * 601 + [JPEGS[0], JPEGS[3], JPEGS[7]]
    assert [r.image for r in found] == good
    said = [f"{name}: {explain(reason)}" for name, reason in expected.items() if reason]
    assert [damage.partition(": ")[2] for damage in damages] == said
    reader = open_reader(str(path), max_bytes=50_000)
    (listing,) = reader.identities()
    rejected = {image.image_id: image.rejected for image in reader.read(listing.identity).images}
    assert {name: rejected[name] for name in expected} == expected


def test_names_that_are_not_utf8_are_rejected(root: Path) -> None:
    (root / "2" / os.fsdecode(b"\xff.jpg")).write_bytes(JPEGS[0])
    path = listed(root, b"2/0.jpg caf\xe9\n2/\xff.jpg caf\xe9\n2/0.jpg Ana\n")
    reader = open_reader(str(path))
    identities = [reader.read(listing.identity) for listing in reader.identities()]
    assert [(i.identity_id, [g.rejected for g in i.images]) for i in identities] == [
        ("caf\\xe9", ["ingest:bad_name"] * 2),
        ("Ana", [None]),
    ]


def test_a_link_put_in_place_after_the_listing_is_refused(root: Path) -> None:
    (root.parent / "secret.jpg").write_bytes(JPEGS[7])
    reader = open_reader(str(listed(root, "2/0.jpg 1\n2/1.jpg 1\n")))
    (listing,) = reader.identities()
    (root / "2" / "0.jpg").unlink()
    (root / "2" / "0.jpg").symlink_to(root.parent / "secret.jpg")
    (root / "2" / "1.jpg").unlink()
    found = reader.read(listing.identity)
    assert [i.rejected for i in found.images] == ["ingest:outside", "ingest:missing"]
    assert [i.data for i in found.images] == [b"", b""]


@pytest.mark.parametrize(
    "source", ["list.txt@0", "list.txt@1+8", "list.txt@10+8", "list.txt@0+19", "x.txt@0+9", "/@0+9"]
)
def test_a_place_that_is_no_line_is_refused(root: Path, source: str) -> None:
    reader = ListReader(str(listed(root, "2/0.jpg 1\n2/1.jpg 1\n")), source="b", max_bytes=9999)
    assert reader.fetch(["list.txt@10+9", "list.txt@0+9"]) == [JPEGS[3], JPEGS[2]]
    with pytest.raises(UserError, match=r"no line"):
        reader.fetch([source])


def test_the_same_image_twice_is_two_images(root: Path) -> None:
    found, damages = read(listed(root, "2/0.jpg 1\n2/0.jpg 1\n"))
    assert (len(found), damages) == (2, [])


@pytest.mark.slow
def test_parts_join_whatever_lines_they_cut(root: Path) -> None:
    names = [f"{'d' * (n % 200)}/{n}.jpg" for n in range(60_000)]
    reader = open_reader(
        str(listed(root, "".join(f"{name} {n}\n" for n, name in enumerate(names))))
    )
    assert isinstance(reader, ListReader)
    parts = reader.parts()
    assert len(parts) == 2
    found = [row for part in parts for row in reader.entries(part)["image_id"].to_pylist()]
    assert found == names


def test_the_fingerprint_follows_the_list_and_the_images(root: Path) -> None:
    def fingerprints(text: str) -> list[str]:
        reader = open_reader(str(listed(root, text)))
        assert reader.stamp() is None
        return [listing.fingerprint for listing in reader.identities()]

    first = fingerprints("2/0.jpg 1\n10/0.jpg 2\n")
    assert fingerprints("2/0.jpg 1\n10/0.jpg 2\n") == first
    (root / "2" / "0.jpg").write_bytes(JPEGS[0] + b"x")
    second = fingerprints("2/0.jpg 1\n10/0.jpg 2\n")
    assert (second[0] != first[0], second[1]) == (True, first[1])
    assert fingerprints("2/1.jpg 1\n10/0.jpg 2\n")[0] != second[0]


def records(count: int, per_label: int) -> list[Record]:
    images = [*JPEGS, PNG]
    return [Record(images[i % 9], i // per_label, f"p{i}", f"{i}") for i in range(count)]


def test_a_folder_reads_back_as_it_was_written(tmp_path: Path) -> None:
    some = records(60, 5)
    with open_writer(str(tmp_path / "out"), "folder") as writer:
        assert writer.by_label
        for record in some:
            writer.write(record)
    reader = open_reader(str(tmp_path / "out"))
    assert isinstance(reader, ImageFolder)
    found = list(reader.records())
    assert [r[:2] for r in found] == [r[:2] for r in some]
    assert (found[8].identity, found[8].image_id) == ("0000001", "0003.png")
    # Classes and images as torchvision's ImageFolder finds them: in the order of their names.
    classes = sorted(os.listdir(tmp_path / "out"))
    named = [
        (rank, (tmp_path / "out" / folder / name).read_bytes())
        for rank, folder in enumerate(classes)
        for name in sorted(os.listdir(tmp_path / "out" / folder))
    ]
    assert named == [(r.label, r.image) for r in some]


def test_a_record_that_is_no_image_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^7\.jpg: not an image"):
        with open_writer(str(tmp_path / "out"), "folder") as writer:
            writer.write(Record(b"GIF89a", 0, "a", "7.jpg"))
    assert list(tmp_path.iterdir()) == []


def test_fuzz(root: Path) -> None:
    seeds = [text.format(root=root).encode() for text in LAYOUTS.values()]
    dice, said = random.Random(3), []
    tracemalloc.start()
    try:
        for turn in range(150):
            data = bytearray(seeds[turn % len(seeds)])
            for _ in range(dice.randint(1, 5)):
                at = dice.randrange(len(data) + 1)
                piece = dice.choice([b"\n", b"\t", b" ", b"\r", b"..", b"/", b"\0", b"9" * 400])
                data[at : at + dice.choice([0, 1, 30])] = dice.choice([piece, dice.randbytes(3)])
            reader = ListReader(str(listed(root, bytes(data))), source="base", max_bytes=10**6)
            for way in (reader.records, reader.survey, reader.identities):
                try:
                    found = way()
                    if way == reader.records:
                        list(found)
                    elif way == reader.identities:
                        for listing in found:
                            reader.read(listing.identity)
                except UserError as error:
                    said.append(str(error))
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert len(said) > 50 and not any("\n" in text for text in said)


@pytest.mark.slow
def test_a_bucket(root: Path, s3_bucket: str) -> None:
    import boto3

    place = f"{s3_bucket}/lists"
    for person, name in enumerate(PEOPLE):
        for image in range(2):
            key, data = f"lists/{name}/{image}.jpg", JPEGS[2 * person + image]
            boto3.client("s3").put_object(Bucket="faces", Key=key, Body=data)
    more = "../secret.jpg 3\n/etc/passwd 3\n2/none.jpg 3\n"
    storage.write_bytes(f"{place}/list.txt", (LAYOUTS["space label"] + more).encode())
    found, damages = read(f"{place}/list.txt")
    assert [(r.image, r.label) for r in found] == [(JPEGS[i], i // 2) for i in range(6)]
    outside, missing = explain("ingest:outside"), explain("ingest:missing")
    assert [damage.partition(": ")[2] for damage in damages] == [
        f"../secret.jpg: {outside}",
        f"/etc/passwd: {outside}",
        f"2/none.jpg: {missing}",
    ]
    with open_writer(f"{s3_bucket}/folder", "folder") as writer:
        for record in records(20, 5):
            writer.write(record)
    back = open_reader(f"{s3_bucket}/folder").records()
    assert [r[:2] for r in back] == [r[:2] for r in records(20, 5)]
