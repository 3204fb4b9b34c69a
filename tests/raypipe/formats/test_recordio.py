"""RecordIO: what mxnet wrote, what we write, and what is left of a damaged file."""

import hashlib
import itertools
import json
import pickle
import random
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import Damage, DamagedError, Reader, Record, open_reader, open_writer
from raypipe.formats.record_chunks import HEADER, MAX_LABEL, PAIR, decode, encode
from raypipe.formats.recordio import RecordReader
from raypipe.identities import from_table, to_table
from raypipe.images import encode_jpeg

DATA = Path(__file__).parents[2] / "data" / "formats"
TRUTH = json.loads((DATA / "truth.json").read_text())
MAGIC = bytes.fromhex("0a23d7ce")
CUT = 83_484  # where the record begins that truncated.rec is cut off in

# Images with what RecordIO must split at, at every alignment.
bodies = st.lists(
    st.sampled_from([MAGIC, b"\0", b"\xff\xd8\xff", bytes(40)]) | st.binary(max_size=9), max_size=12
).map(b"".join)


def reader(path: Path, part_bytes: int = 1 << 27) -> RecordReader:
    return RecordReader(str(path), source="base", max_bytes=10**7, part_bytes=part_bytes)


def taken(found: Reader) -> tuple[list[Record], list[Damage]]:
    """What comes out, and what is told at the end."""
    records: list[Record] = []
    try:
        for record in found.records():
            records.append(record)
    except DamagedError as error:
        return records, error.damages
    return records, []


def plain(body: bytes, label: float, key: int) -> bytes:
    return encode(HEADER.pack(0, label, key, 0) + body)


def build(folder: Path, records: Iterable[bytes], keys: Iterable[int] | None = None) -> Path:
    """A file of encoded records, and its index where there are keys."""
    records = list(records)
    path = folder / "set.rec"
    path.write_bytes(b"".join(records))
    if keys is not None:
        starts = offsets(records)
        (folder / "set.idx").write_text(
            "".join(f"{key}\t{start}\n" for key, start in zip(keys, starts, strict=True))
        )
    return path


def offsets(records: list[bytes]) -> list[int]:
    return [0, *itertools.accumulate(map(len, records))][:-1]


def write(path: Path, format: str, records: list[Record]) -> Path:
    with open_writer(str(path), format) as writer:
        for record in records:
            writer.write(record)
    return path


def faces(identities: int, each: int, side: int = 16) -> list[Record]:
    rng = np.random.default_rng(3)
    return [
        Record(
            encode_jpeg(rng.integers(0, 256, (side, side, 3), np.uint8)),
            label,
            f"person {label}",
            f"{label}-{i}",
        )
        for label in range(identities)
        for i in range(each)
    ]


def listed(found: Reader) -> list[tuple[str, str, bytes, str | None]]:
    """What `ingest` gets: the listing goes through a table, and another reader reads."""
    table = to_table([listing.identity for listing in found.identities()])
    other = pickle.loads(pickle.dumps(found))
    return [
        (identity.identity_id, image.image_id, image.data, image.rejected)
        for identity in map(other.read, from_table(table))
        for image in identity.images
    ]


@pytest.mark.parametrize("indexed", [True, False])
def test_what_mxnet_wrote_is_read_with_and_without_index(tmp_path: Path, indexed: bool) -> None:
    path = shutil.copy(DATA / "train.rec", tmp_path)
    if indexed:
        shutil.copy(DATA / "train.idx", tmp_path)
    found = open_reader(path)
    records = list(found.records())
    assert [hashlib.sha256(record.image).hexdigest() for record in records] == TRUTH["sha256"]
    assert [record.label for record in records] == TRUTH["labels"]
    assert [record.identity for record in records] == [str(label) for label in TRUTH["labels"]]
    assert [record.image_id for record in records] == [str(i) for i in range(1, 25)]
    survey = found.survey()
    assert (survey.images, survey.labels.tolist(), survey.in_order) == (24, list(range(6)), True)
    assert [row[2] for row in listed(found)] == [record.image for record in records]


def test_a_cut_off_file_gives_all_but_the_record_it_is_cut_in() -> None:
    found = open_reader(str(DATA / "truncated.rec"))
    records, damages = taken(found)
    digests = [hashlib.sha256(record.image).hexdigest() for record in records]
    assert digests == TRUTH["sha256"][:23]
    assert [damage[:2] for damage in damages] == [(str(DATA / "truncated.rec"), CUT)]
    assert "past the end" in damages[0].what
    rejected = [row for row in listed(found) if row[3]]
    assert rejected == [(".", "24", b"", "ingest:damaged")]


def test_an_index_tells_which_keys_a_cut_took(tmp_path: Path) -> None:
    path = shutil.copy(DATA / "truncated.rec", tmp_path / "train.rec")
    shutil.copy(DATA / "train.idx", tmp_path)
    records, damages = taken(reader(path))
    assert [record.image_id for record in records] == [str(i) for i in range(1, 24)]
    assert [damage.offset for damage in damages] == [CUT, *range(87_180, 87_381, 40)]
    assert "key 25" in damages[1].what


def test_a_file_is_written_as_mxnet_writes_it(tmp_path: Path) -> None:
    records = list(open_reader(str(DATA / "train.rec")).records())
    made = write(tmp_path / "made", "insightface", records)
    for name in ("train.rec", "train.idx", "property"):
        assert (made / name).read_bytes() == (DATA / name).read_bytes()
    assert (made / "train.lst").read_text().startswith("1\t0.000000\t0/1\n2\t0.000000\t0/2\n")


@pytest.mark.parametrize(("format", "first"), [("insightface", 1), ("im2rec", 0)])
def test_names_labels_order_and_keys_come_back(tmp_path: Path, format: str, first: int) -> None:
    records = faces(5, 4)
    if format == "im2rec":
        random.Random(5).shuffle(records)
    made = open_reader(str(write(tmp_path / "made", format, records)))
    expected = [
        record._replace(image_id=str(first + i), feature=None) for i, record in enumerate(records)
    ]
    assert list(made.records()) == expected
    assert made.survey().in_order == (format == "insightface")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(bodies, st.integers(0, 9)), max_size=20),
    st.sampled_from(["insightface", "im2rec"]),
    st.sampled_from([1, 100, 1 << 27]),
    st.booleans(),
)
def test_any_bytes_come_back_whatever_the_parts(
    tmp_path_factory: pytest.TempPathFactory,
    images: list[tuple[bytes, int]],
    format: str,
    part_bytes: int,
    indexed: bool,
) -> None:
    if format == "insightface":
        images = sorted(images, key=lambda image: image[1])
    folder = tmp_path_factory.mktemp("any") / "made"
    write(folder, format, [Record(body, label, str(label), "") for body, label in images])
    if not indexed:
        (folder / "train.idx").unlink()
    first = 1 if format == "insightface" else 0
    found = reader(folder / "train.rec", part_bytes)
    assert [record[:4] for record in found.records()] == [
        (body, label, str(label), str(first + i)) for i, (body, label) in enumerate(images)
    ]
    tables = [found.entries(part) for part in found.parts()]
    sources = [source for table in tables for source in table["source"].to_pylist()]
    assert found.fetch(sources) == [body for body, _ in images]
    assert [size for table in tables for size in table["bytes"].to_pylist()] == [
        len(body) for body, _ in images
    ]


@settings(max_examples=200, deadline=None)
@given(bodies)
def test_chunks_hold_no_magic_word_but_their_own(body: bytes) -> None:
    chunks = encode(body)
    assert decode(chunks) == body
    assert len(chunks) % 4 == 0
    words = np.frombuffer(chunks, "<u4")
    at, starts = 0, []
    while at < len(words):
        starts.append(at)
        at += 2 + ((int(words[at + 1]) & 0x1FFFFFFF) + 3) // 4
    assert np.flatnonzero(words == 0xCED7230A).tolist() == starts


@pytest.mark.parametrize("part_bytes", [1, 4_000, 20_000, 1 << 27])
@pytest.mark.parametrize("indexed", [True, False])
def test_every_record_is_in_one_part(tmp_path: Path, part_bytes: int, indexed: bool) -> None:
    path = shutil.copy(DATA / "train.rec", tmp_path)
    if indexed:
        shutil.copy(DATA / "train.idx", tmp_path)
    found = reader(path, part_bytes)
    parts = found.parts()
    assert (len(parts) == 1) == (part_bytes > 10**6)
    # Each part by a reader that knows nothing of the others, as on a cluster.
    keys = [
        key
        for part in parts
        for key in reader(path, part_bytes).entries(part)["image_id"].to_pylist()
    ]
    assert keys == [str(i) for i in range(1, 25)]
    assert [r.image_id for part in parts for r in found.part_records(part)] == keys


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("mean", [1_000, 100_000])  # headers are skipped to where images are large
def test_records_larger_than_what_is_read_at_once(tmp_path: Path, mean: int, indexed: bool) -> None:
    choose = random.Random(2)
    sizes = [choose.randrange(2 * mean) for _ in range(5_000_000 // mean)]
    images = [choose.randbytes(size) for size in [*sizes, 3_000_000, 5, 2_097_000, 6]]
    images[3] = images[3][:40] + MAGIC + images[3][40:]
    images[-4] += MAGIC * 9
    records = [plain(image, i // 9, i) for i, image in enumerate(images)]
    path = build(tmp_path, records, range(len(images)) if indexed else None)
    for part_bytes in (700_000, 1 << 27):
        found = reader(path, part_bytes)
        assert [record.image for record in found.records()] == images
        entries = pa.concat_tables([found.entries(part) for part in found.parts()])
        assert entries["bytes"].to_pylist() == [len(image) for image in images]
        assert entries["image_id"].to_pylist() == [str(i) for i in range(len(images))]
        assert found.fetch(entries["source"].to_pylist()) == images
    path.write_bytes(path.read_bytes()[:-40_000])
    out, damages = taken(reader(path))
    assert [record.image for record in out] == images[:-2]
    assert damages[0].offset == offsets(records)[-2]


def test_several_labels_give_the_first_and_the_image_after_them(tmp_path: Path) -> None:
    records = [
        encode(HEADER.pack(n, 0, i, 0) + struct.pack(f"<{n}f", 7, *[9] * (n - 1)) + b"image")
        for i, n in enumerate([1, 2, 3, 70, 1])
    ]
    found = reader(build(tmp_path, records))
    assert [record[:2] for record in found.records()] == [(b"image", 7)] * 5


def test_keys_come_from_the_index_in_any_order(tmp_path: Path) -> None:
    records = [plain(b"%d" % i, i, i) for i in range(5)]
    lines = [f"{900 - i}\t{start}\n" for i, start in enumerate(offsets(records))]
    path = build(tmp_path, records)
    (tmp_path / "set.idx").write_text("".join(reversed(lines)))
    assert [(r.image, r.image_id) for r in reader(path).records()] == [
        (b"%d" % i, str(900 - i)) for i in range(5)
    ]


def test_more_images_than_float32_counts(tmp_path: Path) -> None:
    # Glint360K's first record says 17,091,658 where 17,091,659 is meant.
    images = 17_091_657 + 1
    keys = [0, 1, images - 1, images, images + 1, images + 2]
    ranges = [(images + 1, images + 3), (1, images - 1), (images - 1, images + 1)]
    boxes = [encode(HEADER.pack(2, 0, 0, 0) + struct.pack("<2f", *pair)) for pair in ranges]
    records = [boxes[0], *(plain(b"%d" % key, key > 1, key) for key in keys[1:4]), *boxes[1:]]
    found = reader(build(tmp_path, records, keys))
    assert [(r.image, r.image_id, r.label) for r in found.records()] == [
        (b"%d" % key, str(key), int(key > 1)) for key in keys[1:4]
    ]
    assert found.survey().images == 3


# Each takes the records of ten images and damages the fourth; what must come out follows.
ALL_BUT_FOURTH = [0, 1, 2, 4, 5, 6, 7, 8, 9]
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "magic": lambda data: b"\xff\xff\xff\xff" + data[4:],
    "header": lambda data: b"\xa5" * 8 + data[8:],
    "zeros": lambda data: bytes(8) + data[8:],
    "all": lambda data: b"\x5a" * len(data),
    "kind": lambda data: data[:7] + b"\x60" + data[8:],
    "far": lambda data: data[:4] + PAIR.pack(0, 0x1FFFFFFF)[4:] + data[8:],
    "long": lambda data: data[:4] + PAIR.pack(0, len(data) + 100)[4:] + data[8:],
    "over the next": lambda data: data[:4] + PAIR.pack(0, 2 * len(data) - 8)[4:] + data[8:],
    "short": lambda data: data[:4] + PAIR.pack(0, 100)[4:] + data[8:],
    "cut": lambda data: data[: len(data) // 2 // 4 * 4],
    "open": lambda data: data[:7] + b"\x20" + data[8:],
}


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_intact_comes_out_around_damage(tmp_path: Path, what: str, indexed: bool) -> None:
    rng = np.random.default_rng(1)
    noise = [rng.integers(1, 256, 400, np.uint8).tobytes() for _ in range(10)]
    images = [b"\xff\xd8\xff" + body + b"\xff\xd9" for body in noise]
    records = [plain(image, i, i) for i, image in enumerate(images)]
    # The index of the whole file does not fit one from which bytes are missing.
    path = build(tmp_path, records, range(10) if indexed and what != "cut" else None)
    at = offsets(records)[3]
    path.write_bytes(b"".join([*records[:3], DAMAGE[what](records[3]), *records[4:]]))
    for part_bytes in (1, 1 << 27):
        found = reader(path, part_bytes)
        out, damages = taken(found)
        assert [images.index(record.image) for record in out] == ALL_BUT_FOURTH
        assert [damage.offset for damage in damages] == [at]
        assert [int(record.image_id) for record in out] == ALL_BUT_FOURTH
        rows = listed(found)
        assert [
            images.index(row[2]) for row in rows if row[3] != "ingest:damaged"
        ] == ALL_BUT_FOURTH
        assert len([row for row in rows if row[3] == "ingest:damaged"]) == 1


@pytest.mark.parametrize(
    ("header", "what"),
    [
        (HEADER.pack(0, np.nan, 1, 0), "label nan"),
        (HEADER.pack(0, np.inf, 1, 0), "label inf"),
        (HEADER.pack(0, -1, 1, 0), "label -1"),
        (HEADER.pack(0, 0.5, 1, 0), "label 0.5"),
        (HEADER.pack(0, 2.0**25, 1, 0), "label 3.35544e\\+07"),
        (HEADER.pack(1, 0, 1, 0) + struct.pack("<f", np.nan), "label nan"),
        (HEADER.pack(2**31, 0, 1, 0), "2,147,483,648 labels in a record"),
        (b"short", "too short"),
        (b"", "too short"),
    ],
)
def test_a_header_that_makes_no_sense_is_damage_at_its_record(
    tmp_path: Path, header: bytes, what: str
) -> None:
    records = [plain(b"1", 1, 0), encode(header), plain(b"2", 2, 1)]
    found = reader(build(tmp_path, records, range(3)))
    out, damages = taken(found)
    assert [record.image for record in out] == [b"1", b"2"]
    assert [damage.offset for damage in damages] == [len(records[0])]
    with pytest.raises(DamagedError, match=f"set.rec: byte {len(records[0])}: .*{what}"):
        list(found.records())


def test_an_index_that_does_not_fit_is_told(tmp_path: Path) -> None:
    records = [plain(b"%d" % i, i, i) for i in range(4)]
    path = build(tmp_path, records)
    first, second, third, last = offsets(records)
    lines = [(10, first), (11, second + 4), (12, third), (13, 10**9), (14, last)]
    (tmp_path / "set.idx").write_text("".join(f"{key}\t{at}\n" for key, at in lines))
    found = reader(path)
    out, damages = taken(found)
    assert [record.image_id for record in out] == ["10", "12", "14"]
    assert [(damage.offset, damage.what.partition(" set.idx")[0][-9:]) for damage in damages]
    told = {damage.offset: damage.what for damage in damages}
    assert sorted(told) == [second, second + 4, 10**9]
    assert "does not list" in told[second]
    assert "key 11" in told[second + 4] and "key 13" in told[10**9]
    rejected = [row[1] for row in listed(found) if row[3] == "ingest:damaged"]
    assert rejected == [f"@{second}", "11", "13"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("0\t0\n0\t36\n", "key 0 is in it twice"),
        ("0\t0\n1\t0\n", "offset 0 is in it twice"),
        ("0\t0\none\t36\n", "Row #2"),
        ("0\t0\n1\n", "Row #2"),
        ("0\t0\n1\t\n", "Row #2"),
        ("0\t0\n1\t-36\n", "row #2: a negative number"),
        ("0\t0\n1\t99999999999999999999\n", "Row #2"),
        ("\0\xff" * 50, "Row #1|row #1"),
    ],
)
def test_a_line_of_the_index_that_makes_no_sense_is_named(
    tmp_path: Path, text: str, what: str
) -> None:
    path = build(tmp_path, [plain(b"0", 0, 0), plain(b"1", 1, 1)])
    (tmp_path / "set.idx").write_text(text)
    with pytest.raises(UserError, match=f"set.idx: .*({what}).*delete it"):
        list(reader(path).records())


@pytest.mark.parametrize(
    ("lines", "people"),
    [
        (["7\t1.0\tb/1.jpg", "3\t0\ta/1.jpg", "5\t1\tb/2.jpg"], "aabb"),
        (["1\t/sets/a/x.jpg\t0", "1\t/sets/b/x.jpg\t1"], "aabb"),  # InsightFace's older lists
        (["7\t1\t8\t9\tb/1.jpg", "7\t0\t8\t9\ta/1.jpg"], "aabb"),
        (['7\t1\t"b/1.jpg', "3\t0\ta'/1.jpg"], ["a'", "a'", '"b', '"b']),
        (["7\t1\timages/1.jpg", "3\t0\timages/2.jpg"], "0011"),  # folders are no people
        (["7\t1\t1.jpg", "3\t0\t2.jpg"], "0011"),
        (["3\t0\t1/1.jpg"], ["1", "1", "1'", "1'"]),  # digits that are somebody else's name
    ],
)
def test_the_list_says_who_a_label_is(tmp_path: Path, lines: list[str], people: list[str]) -> None:
    path = build(tmp_path, [plain(b"", label, 0) for label in (0, 0, 1, 1)])
    (tmp_path / "set.lst").write_text("\n".join(lines))
    found = reader(path)
    assert [record.identity for record in found.records()] == list(people)
    assert [row[0] for row in listed(found)] == list(people)


@pytest.mark.parametrize("text", ["1\t2\n", "1\t0\ta/b\n1\t0\n", "1\t0\ta/b\n1\t-1\ta/b\n"])
def test_a_list_that_makes_no_sense_is_named(tmp_path: Path, text: str) -> None:
    path = build(tmp_path, [plain(b"", 0, 0)])
    (tmp_path / "set.lst").write_text(text)
    with pytest.raises(UserError, match=r"set\.lst: .*delete it"):
        list(reader(path).records())


def test_names_that_a_list_cannot_hold_lose_what_it_cannot(tmp_path: Path) -> None:
    made = write(tmp_path / "made", "insightface", [Record(b"", 0, "a/b\tc\nd", "x/y\n")])
    (record,) = open_reader(str(made)).records()
    assert record.identity == "a_b_c_d"


def test_a_label_without_images_has_an_empty_range(tmp_path: Path) -> None:
    made = write(tmp_path / "made", "insightface", [Record(b"", k, "", "") for k in (1, 1, 3)])
    data = (made / "train.rec").read_bytes()
    ranges = [struct.unpack_from("<2f", data, at + 32) for at in (0, *range(136, 296, 40))]
    assert ranges == [(4, 8), (1, 1), (1, 3), (3, 3), (3, 4)]
    assert (made / "property").read_text() == "4,112,112\n"
    assert open_reader(str(made)).survey().labels.tolist() == [1, 3]


def test_property_has_the_height_and_width_of_the_images(tmp_path: Path) -> None:
    image = encode_jpeg(np.zeros((20, 30, 3), np.uint8))
    made = write(tmp_path / "made", "insightface", [Record(image, 0, "", "")])
    assert (made / "property").read_text() == "1,20,30\n"


def test_a_writer_refuses_what_the_format_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label 1 after 2"):
        write(tmp_path / "a", "insightface", [Record(b"", 2, "", ""), Record(b"", 1, "", "")])
    for format, label in itertools.product(("insightface", "im2rec"), (-1, MAX_LABEL + 1)):
        with pytest.raises(UserError, match="label"):
            write(tmp_path / "b", format, [Record(b"", label, "", "")])
    assert not list(tmp_path.iterdir())


def test_a_place_that_is_none_of_its_own_is_refused(tmp_path: Path) -> None:
    found = reader(build(tmp_path, [plain(b"0", 0, 0)]))
    assert found.fetch(["set.rec@0+36"]) == [b"0"]
    for source in ("../set.rec@0+36", "other.rec@0+36", "set.rec@-1+36", "set.rec@0", "set.rec"):
        with pytest.raises(UserError, match="no place in it"):
            found.fetch([source])
    (damage,) = found.fetch(["set.rec@4+999999999999"])
    assert isinstance(damage, Damage) and damage.offset == 4


def test_a_changed_file_has_another_stamp(tmp_path: Path) -> None:
    path = build(tmp_path, [plain(b"0", 0, 0)])
    stamps = {reader(path).stamp()}
    for name in ("set.idx", "set.lst", "property"):
        (tmp_path / name).write_text("0\t0\ta/b")
        stamps.add(reader(path).stamp())
    assert len(stamps) == 4


def mutated(data: bytes, choose: random.Random) -> bytes:
    """A file with some of it flipped, cut off, huge, or elsewhere."""
    made = bytearray(data)
    for _ in range(choose.randint(1, 4)):
        at = choose.randrange(len(made) or 1)
        match choose.randrange(6):
            case 0:
                made[at : at + 1] = choose.randbytes(1)
            case 1:
                del made[at:]
            case 2:
                at = at // 4 * 4
                made[at : at + 4] = PAIR.pack(0, choose.getrandbits(32))[4:]
            case 3:
                end = choose.randrange(at, len(made) + 1)
                made += made[at:end]
                del made[at:end]
            case 4:
                made[at // 4 * 4 : at // 4 * 4 + 4] = MAGIC
            case 5:
                at = made.find(MAGIC, at)
                made[at + 4 : at + 8] = struct.pack("<f", choose.choice([np.nan, 1e30, 0, 5]))
    return bytes(made)


def test_mutated_files_end_in_an_error_for_the_user_at_worst(tmp_path: Path) -> None:
    made = write(tmp_path / "made", "insightface", faces(4, 3, side=8))
    names = ("train.rec", "train.idx", "train.lst")
    originals = {name: (made / name).read_bytes() for name in names}
    choose = random.Random(11)
    whole = damaged = 0
    for i in range(100):
        for name in names:
            changed = name == names[i % 5 % 3] or i % 5 > 3
            (made / name).write_bytes(
                mutated(originals[name], choose) if changed else originals[name]
            )
        try:
            found = RecordReader(
                str(made / "train.rec"), source="base", max_bytes=10**5, part_bytes=i % 3 * 1000 + 1
            )
            survey = found.survey()
            records, damages = taken(found)
            rows = listed(found)
        except UserError:
            continue
        whole += not damages
        damaged += bool(damages)
        assert survey.images == len(records)
        assert len([row for row in rows if row[3] != "ingest:damaged"]) == len(records)
    assert whole > 5 and damaged > 20


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "many beginnings, one long tail": lambda n: b"".join(
        [PAIR.pack(0xCED7230A, 1 << 29 | 8 * (n // 2 - i) - 8) for i in range(n // 2)]
        + [PAIR.pack(0xCED7230A, 2 << 29)] * (n // 2)
    ),
    "beginnings that reach to the end": lambda n: b"".join(
        PAIR.pack(0xCED7230A, 8 * (n - i) - 8) for i in range(n)
    ),
    "empty records": lambda n: PAIR.pack(0xCED7230A, 0) * n,
    "no image": lambda n: plain(b"", 0, 0) * (n // 4),
    "one record in many parts": lambda n: (
        PAIR.pack(0xCED7230A, 1 << 29 | 24)
        + bytes(24)
        + PAIR.pack(0xCED7230A, 2 << 29) * n
        + PAIR.pack(0xCED7230A, 3 << 29)
    ),
    "magic words": lambda n: MAGIC * 2 * n,
    "zeros after a header": lambda n: PAIR.pack(0xCED7230A, 2**29 - 1) + bytes(8 * n),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_time_and_memory_are_bounded_by_the_file(tmp_path: Path, what: str) -> None:
    def measure(n: int) -> float:
        found = reader(build(tmp_path, [HOSTILE[what](n)]))
        start = time.process_time()
        taken(found)
        found.survey()
        return time.process_time() - start

    few, many = measure(250), measure(2_000)
    assert many < 20 * few + 0.2  # eight times the file
    tracemalloc.start()
    measure(1_500)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**18 + 24 * (tmp_path / "set.rec").stat().st_size


@pytest.mark.slow
def test_a_set_on_an_object_store(tmp_path: Path, s3_bucket: str) -> None:
    records = faces(6, 5)
    for format in ("insightface", "im2rec"):
        path = storage.join(s3_bucket, f"recordio-{format}")
        with open_writer(path, format) as writer:
            for record in records:
                writer.write(record)
        found = open_reader(path)
        assert [r.image for r in found.records()] == [record.image for record in records]
        assert [(row[0], row[2]) for row in listed(found)] == [
            (record.identity, record.image) for record in records
        ]
        storage.delete(storage.join(path, "train.idx"))
        assert [r.image for r in open_reader(path).records()] == [r.image for r in records]
