"""Face LMDBs of others are read, ours open as theirs do, and damage is named."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import lmdb
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import DamagedError, Record, open_reader, open_writer
from raypipe.formats.hsface_lmdb import LmdbReader
from raypipe.formats.keyed import UNKNOWN, Part
from raypipe.formats.lmdb_pages import Pages
from raypipe.images import encode_jpeg

DATA = Path(__file__).parents[2] / "data" / "formats"
TRUTH = json.loads((DATA / "truth.json").read_text())


@pytest.fixture
def traced() -> Iterator[None]:
    """Memory is counted in a test; its peak is to be reset before what is measured."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def save(path: Path, array: object, **options: bool) -> str:
    np.save(path, np.asarray(array), **options)
    return str(path)


def records(count: int, size: int = 3000, *, feature: int = 0) -> list[Record]:
    """Records with bytes of their own, three a label."""
    draw = random.Random(count)
    return [
        Record(
            draw.randbytes(draw.randrange(size)),
            i // 3,
            str(i // 3),
            str(i),
            np.full(feature, i, np.float32) if feature else None,
        )
        for i in range(count)
    ]


def write(path: Path, some: Iterable[Record], format: str = "hsface") -> Path:
    some = list(some)
    with open_writer(str(path), format) as writer:
        assert writer.by_label
        for record in some:
            writer.write(record)
    return path


def put(path: Path, items: dict[bytes, bytes]) -> Path:
    """Adds to a file with the library, or makes it."""
    with lmdb.open(str(path), subdir=False, map_size=2**30, lock=False, sync=False) as env:
        with env.begin(write=True) as transaction:
            for key, value in items.items():
                transaction.put(key, value)
    return path


def same(found: Iterable[Record], expected: Iterable[Record]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one[:4] == other[:4]
        assert np.array_equal(one.feature, other.feature)  # None equals None


def rest(path: Path, mask: str | None = None) -> tuple[list[Record], list[str]]:
    """What comes out of a damaged file, and what is said of the rest."""
    found: list[Record] = []
    with pytest.raises(DamagedError) as caught:
        found.extend(open_reader(str(path), mask=mask).records())
    return found, [str(damage) for damage in caught.value.damages]


def test_the_file_of_the_published_script() -> None:
    reader = open_reader(str(DATA / "hsface.lmdb"))
    found = list(reader.records())
    assert [hashlib.sha256(record.image).hexdigest() for record in found] == TRUTH["sha256"]
    assert [record.label for record in found] == TRUTH["labels"]
    assert [record.image_id for record in found] == [str(i) for i in range(24)]
    assert [record.identity for record in found] == [str(label) for label in TRUTH["labels"]]
    survey = reader.survey()
    assert (survey.images, survey.labels.tolist(), survey.in_order) == (
        24,
        [0, 1, 2, 3, 4, 5],
        True,
    )
    identities = [reader.read(listing.identity) for listing in reader.identities()]
    assert [identity.identity_id for identity in identities] == list("012345")
    images = [image for identity in identities for image in identity.images]
    assert [hashlib.sha256(image.data).hexdigest() for image in images] == TRUTH["sha256"]
    assert [image.source for image in images] == [f"hsface.lmdb@{i}" for i in range(24)]
    assert all(image.rejected is None for image in images)


def test_a_mask_chooses_orders_and_closes_gaps_between_labels(tmp_path: Path) -> None:
    mask = save(tmp_path / "mask.npy", [21, 20, 4, 9, 23, 8])
    reader = open_reader(str(DATA / "hsface.lmdb"), mask=mask)
    found = list(reader.records())
    assert [record.image_id for record in found] == ["21", "20", "4", "9", "23", "8"]
    assert [record.label for record in found] == [2, 2, 0, 1, 2, 1]
    assert [record.identity for record in found] == ["5", "5", "1", "2", "5", "2"]
    shas = [hashlib.sha256(record.image).hexdigest() for record in found]
    assert shas == [TRUTH["sha256"][i] for i in (21, 20, 4, 9, 23, 8)]
    survey = reader.survey()
    assert survey.images == 6
    assert survey.labels.tolist() == [0, 1, 2]
    assert survey.counts.tolist() == [1, 2, 3]
    assert not survey.in_order
    listed = [listing.identity for listing in reader.identities()]
    assert {i.identity_id: [x.image_id for x in i.images] for i in listed} == {
        "5": ["21", "20", "23"],
        "1": ["4"],
        "2": ["9", "8"],
    }


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([1, 24], "entry 1 is 24, but the records have the numbers 0 to 23"),
        ([3, -1], "entry 1 is -1, but"),
        ([5, 6, 7, 6, 5], "entry 3 is 6 once more"),
        ([True, False], "no mask for this set; expected a .npy file with a 1-D array of whole"),
        ([0.0, 1.0], "no mask for this set"),
        ([[0, 1]], "no mask for this set"),
        (np.arange(100_000), "no mask for this set; .* at most 24"),
        (["a"], "no mask for this set"),
    ],
)
def test_a_wrong_mask_is_one_line(tmp_path: Path, mask: object, message: str) -> None:
    path = save(tmp_path / "mask.npy", mask)
    with pytest.raises(UserError, match=message) as caught:
        list(open_reader(str(DATA / "hsface.lmdb"), mask=path).records())
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_mask_that_is_a_pickle_or_missing_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.npy", np.array([{}], object), allow_pickle=True)
    for name in (path, str(DATA / "truth.json"), str(tmp_path / "none.npy")):
        with pytest.raises(UserError, match=name):
            open_reader(str(DATA / "hsface.lmdb"), mask=name).survey()


def test_only_an_lmdb_takes_a_mask(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a mask is for an LMDB"):
        open_reader(str(DATA / "train.rec"), mask=save(tmp_path / "mask.npy", [1]))


@pytest.mark.parametrize("kind", ["int32", "uint8", "uint64", ">i4"])
def test_masks_of_any_whole_numbers(tmp_path: Path, kind: str) -> None:
    mask = save(tmp_path / "mask.npy", np.array([7, 3], kind))
    found = open_reader(str(DATA / "hsface.lmdb"), mask=mask).records()
    assert [record.image_id for record in found] == ["7", "3"]


def test_fetching_reads_no_labels(tmp_path: Path) -> None:
    """A worker opens the set anew for each task, with a mask over all of it."""
    mask = save(tmp_path / "mask.npy", [5, 4])
    listed = list(open_reader(str(DATA / "hsface.lmdb"), mask=mask).identities())
    worker = pickle.loads(pickle.dumps(open_reader(str(DATA / "hsface.lmdb"), mask=mask)))
    os.unlink(mask)
    assert [image.image_id for image in worker.read(listed[0].identity).images] == ["5", "4"]


@pytest.mark.parametrize("feature", [0, 512])
def test_round_trip(tmp_path: Path, feature: int) -> None:
    format = "vec2face" if feature else "hsface"
    made = records(700, 6000, feature=feature)
    path = write(tmp_path / "set.lmdb", made, format)
    assert os.listdir(tmp_path) == ["set.lmdb"]
    same(open_reader(str(path)).records(), made)
    again = write(tmp_path / "again.lmdb", open_reader(str(path)).records(), format)
    assert again.read_bytes() == path.read_bytes()
    assert path.stat().st_blocks * 512 <= path.stat().st_size + 4096


@settings(max_examples=15, deadline=None)
@given(
    images=st.lists(st.binary(max_size=3000) | st.integers(0, 70_000).map(bytes), max_size=40),
    steps=st.lists(st.sampled_from([0, 0, 1, 200, 70_000]), min_size=40, max_size=40),
    feature=st.booleans(),
)
def test_any_records_round_trip(
    tmp_path_factory: pytest.TempPathFactory, images: list[bytes], steps: list[int], feature: bool
) -> None:
    labels = np.cumsum(steps).tolist()
    made = [
        Record(
            image, labels[i], str(labels[i]), str(i), np.ones(3, np.float32) if feature else None
        )
        for i, image in enumerate(images)
    ]
    path = tmp_path_factory.mktemp("any") / "set.lmdb"
    write(path, made, "vec2face" if feature else "hsface")
    same(open_reader(str(path)).records(), made)


@pytest.mark.parametrize("feature", [0, 8])
def test_our_files_open_as_their_loaders_open_them(tmp_path: Path, feature: int) -> None:
    """What the data loaders of SOTA-FR and of Vec2Face do."""
    made = records(300, feature=feature)
    path = str(write(tmp_path / "set.lmdb", made, "vec2face" if feature else "hsface"))
    options = {"readonly": True, "lock": False, "readahead": False, "meminit": False}
    env = lmdb.open(path, subdir=os.path.isdir(path), **options)
    with env.begin(write=False) as transaction:
        length = msgpack.loads(transaction.get(b"__len__"))
        keys = msgpack.loads(transaction.get(b"__keys__"))
        classes = msgpack.loads(transaction.get(b"__classnum__"))
    assert (length, classes) == (300, 100)
    assert keys == [str(i).encode("ascii") for i in range(300)]
    for index in range(length):
        with env.begin(write=False) as transaction:
            value = transaction.get(keys[index])
        unpacked = msgpack.loads(value)
        assert unpacked[0] == made[index].image
        assert unpacked[-1] == made[index].label
        assert value == msgpack.dumps(tuple(unpacked))
        if feature:
            array = np.load(io.BytesIO(unpacked[1]), allow_pickle=True)
            assert (array.dtype, array.tolist()) == (np.float32, [index] * feature)
    assert env.stat()["entries"] == 303
    env.close()


def test_a_writer_says_what_it_cannot_hold(tmp_path: Path) -> None:
    bare = Record(b"x", 0, "0", "first", None)
    with pytest.raises(UserError, match=r"record 0 \(first\) has no feature"):
        write(tmp_path / "a.lmdb", [bare], "vec2face")
    with pytest.raises(UserError, match=r"record 1 \(first\) has label 1 after 2"):
        write(tmp_path / "b.lmdb", [bare._replace(label=2), bare._replace(label=1)])
    with pytest.raises(UserError, match="labels must rise from 0"):
        write(tmp_path / "c.lmdb", [bare._replace(label=-1)])
    assert os.listdir(tmp_path) == []


def test_an_empty_set(tmp_path: Path) -> None:
    reader = open_reader(str(write(tmp_path / "set.lmdb", [])))
    assert list(reader.records()) == []
    assert reader.survey().images == 0
    assert list(reader.identities()) == []


@pytest.mark.slow
def test_a_file_that_outgrows_the_first_map(tmp_path: Path, traced: None) -> None:
    image = bytes(60 * 2**20)
    with open_writer(str(tmp_path / "set.lmdb"), "hsface") as writer:
        for i in range(10):
            writer.write(Record(image, i, str(i), str(i)))
    reader = open_reader(str(tmp_path / "set.lmdb"))
    assert sum(len(record.image) for record in reader.records()) == 10 * len(image)
    tracemalloc.reset_peak()
    table = pickle.loads(pickle.dumps(reader)).entries(Part(reader.path, 0, 10))
    assert table["bytes"].to_pylist() == [len(image)] * 10
    held, peak = tracemalloc.get_traced_memory()
    assert peak - held < 4 * 2**20  # no image was read


@pytest.mark.parametrize("pack", [{"use_bin_type": False}, {"use_bin_type": True}])
@pytest.mark.parametrize("size", [3, 40, 300, 70_000])
@pytest.mark.parametrize("label", [0, 127, 128, 65_535, 2**31, 2**62])
def test_every_code_of_msgpack(tmp_path: Path, pack: dict, size: int, label: int) -> None:
    """Old writers put bytes into strings."""
    value = msgpack.packb((b"j" * size, label), **pack)
    path = put(tmp_path / "set.lmdb", {b"0": value, b"__len__": msgpack.packb(1)})
    assert list(open_reader(str(path)).records()) == [Record(b"j" * size, label, str(label), "0")]
    signed = value[:-9] + b"\xd3" + value[-8:] if label == 2**62 else value
    path = put(tmp_path / "signed.lmdb", {b"0": signed})
    assert list(open_reader(str(path)).records()) == [Record(b"j" * size, label, str(label), "0")]


def test_without_a_length_the_entries_are_counted(tmp_path: Path) -> None:
    made = records(50)
    path = write(tmp_path / "set.lmdb", made)
    with lmdb.open(str(path), subdir=False, map_size=2**30, lock=False) as env:
        with env.begin(write=True) as transaction:
            transaction.delete(b"__len__")
    same(open_reader(str(path)).records(), made)


def test_what_is_no_face_set_is_one_error(tmp_path: Path) -> None:
    path = put(tmp_path / "set.lmdb", {b"image-000000001": b"x", b"label-000000001": b"y"})
    with pytest.raises(UserError, match="no face set: it has neither the key __len__ nor the key"):
        open_reader(str(path)).survey()
    path = put(tmp_path / "huge.lmdb", {b"0": b"x", b"__len__": msgpack.packb(2**60)})
    with pytest.raises(UserError, match="which do not fit into its"):
        list(open_reader(str(path)).records())


BAD = [
    b"",
    b"\x92",
    msgpack.packb(b"image"),
    msgpack.packb([b"image"]),
    msgpack.packb([b"image", -1]),
    msgpack.packb([b"image", 2**64 - 1]),
    msgpack.packb([b"image", 1.0]),
    msgpack.packb([b"image", "1"]),
    msgpack.packb([1, b"image"]),
    msgpack.packb([b"image", 1]) + b"\0",
    msgpack.packb([b"image", 300])[:-1],
    b"\x92\xc6\xff\xff\xff\xffimage\x01",
    msgpack.packb([b"image", b"feature", b"label"]),
    msgpack.packb([b"image", 1, 2]),
    msgpack.packb([b"image", b"feature", 2, 3]),
    b"\x93\xc4\x01i\xc6\xff\xff\xff\xff\x01",
    pickle.dumps((b"image", 1)),
]


@pytest.mark.parametrize("bad", BAD)
def test_a_value_of_another_kind_is_damage_with_its_offset(tmp_path: Path, bad: bytes) -> None:
    made = records(9)
    path = put(write(tmp_path / "set.lmdb", made), {b"4": bad})
    found, damages = rest(path)
    same(found, made[:4] + made[5:])
    (damage,) = damages
    assert damage.endswith("record 4 is not msgpack of [image, label] or [image, feature, label]")
    at = int(damage.removeprefix(f"{path}: byte ").partition(":")[0])
    assert path.read_bytes()[at : at + len(bad)] == bad
    table = open_reader(str(path)).entries(Part(str(path), 0, 9))  # type: ignore[attr-defined]
    assert table["rejected"].to_pylist() == [None] * 4 + ["ingest:damaged"] + [None] * 4
    assert (table["identity"][4].as_py(), table["source"][4].as_py()) == (UNKNOWN, f"set.lmdb@{at}")
    assert open_reader(str(path)).survey().images == 8
    listed = {x.identity.identity_id: x.identity for x in open_reader(str(path)).identities()}
    assert {name: identity.rejected for name, identity in listed.items()} == {
        **dict.fromkeys("012"),
        UNKNOWN: "ingest:damaged",
    }


def npy(array: object, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array), **options)
    return buffer.getvalue()


HUGE = npy(np.zeros(1, np.float32)).replace(b"(1,), }           ", b"(99999999999,), } ")


@pytest.mark.parametrize(
    "feature",
    [
        npy(np.zeros(4)),
        npy(np.zeros((2, 2), np.float32)),
        npy([{}], allow_pickle=True),
        npy(np.zeros(4, np.float32))[:-1],
        HUGE,
        b"\x93NUMPY\x01\0v\0" + b"(" * 118,
    ],
)
def test_a_feature_of_another_kind_is_damage(tmp_path: Path, feature: bytes) -> None:
    made = records(6, feature=4)
    value = msgpack.packb((b"image", feature, 1))
    path = put(write(tmp_path / "set.lmdb", made, "vec2face"), {b"3": value})
    found, damages = rest(path)
    same(found, made[:3] + made[4:])
    assert "record 3 has a feature that is not a .npy file of one float32 vector" in damages[0]


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    made = records(40)
    path = write(tmp_path / "set.lmdb", made)
    with lmdb.open(str(path), subdir=False, map_size=2**30, lock=False) as env:
        with env.begin(write=True) as transaction:
            transaction.delete(b"17")
    found, damages = rest(path)
    same(found, made[:17] + made[18:])
    assert len(damages) == 1
    assert damages[0].endswith("record 17 is missing")


@pytest.mark.parametrize("kept", [0.999, 0.9, 0.5, 0.1])
def test_of_a_cut_off_file_everything_intact_comes_out(tmp_path: Path, kept: float) -> None:
    made = records(900, 12_000)
    path = write(tmp_path / "set.lmdb", made)
    pages = Pages(str(path))
    size = int(pages.blob.size * kept)
    inside, lost = [], []
    for i in range(900):
        (leaf,) = pages.leaves([b"%d" % i], bytes)
        at, length = pages.lookup(b"%d" % i)
        if leaf.number * 4096 + 4096 > size:
            page = leaf.number * 4096
            lost.append(
                f"{path}: byte {page}: record {i} is lost with a page that is damaged or cut off"
            )
        elif at + length > size:
            lost.append(f"{path}: byte {at}: record {i} lies beyond the end of the file")
        else:
            inside.append(made[i])
    keys = f"{path}: byte {pages.lookup(b'__keys__')[0]}: __keys__ lies beyond the end of the file"
    assert pages.meta.depth == 2
    assert pages.meta.root * 4096 + 4096 <= size
    os.truncate(path, size)
    found, damages = rest(path)
    assert found == inside
    assert bool(lost) == (kept < 0.999)
    assert damages == [keys, *lost][:100]


def test_one_value_for_many_records_is_not_read_many_times(tmp_path: Path) -> None:
    """A small file that would be terabytes of images."""
    made = [Record(bytes(100_000), i, str(i), str(i)) for i in range(60)]
    path = write(tmp_path / "set.lmdb", made)
    pages, data = Pages(str(path)), bytearray(path.read_bytes())
    first = pages.lookup(b"0")[0] // 4096
    for i in range(1, 60):
        key = b"%d" % i
        (leaf,) = pages.leaves([key], bytes)
        number = (pages.lookup(key)[0] // 4096).to_bytes(8, "little")
        at = data.index(key + number, leaf.number * 4096) + len(key)
        data[at : at + 8] = first.to_bytes(8, "little")
    path.write_bytes(data)
    found, damages = rest(path)
    same(found, made[:1])
    assert len(damages) == 59
    assert all("has bytes that another record has too" in damage for damage in damages)


@pytest.mark.parametrize(
    "source", ["set.lmdb@../3", "../set.lmdb@3", "set.lmdb@-1", "set.lmdb@03", "set.lmdb@", "3", ""]
)
def test_a_place_that_is_none_is_refused(tmp_path: Path, source: str) -> None:
    path = write(tmp_path / "set.lmdb", records(5))
    reader = LmdbReader(str(path), source="base", max_bytes=10**6)
    bad, good, far = reader.fetch([source, "set.lmdb@3", "set.lmdb@999"])
    assert "is no place in this file" in str(bad)
    assert good == records(5)[3].image
    assert "record 999 is missing" in str(far)


@pytest.mark.slow
def test_parts_together_are_the_set(tmp_path: Path) -> None:
    """The parts of a file of 120,001 records, one after the other and each in a reader anew."""
    made = [Record(b"%d" % i, i // 50, str(i // 50), str(i)) for i in range(120_001)]
    path = write(tmp_path / "set.lmdb", made)
    reader = LmdbReader(str(path), source="base", max_bytes=10**6)
    parts = reader.parts()
    assert [(part.start, part.stop) for part in parts] == [
        (0, 50_000),
        (50_000, 100_000),
        (100_000, 120_001),
    ]
    found = []
    for part in parts:
        found += pickle.loads(pickle.dumps(reader)).part_records(part)
    assert found == made
    assert list(reader.records()) == made
    ids = np.concatenate([reader.entries(part)["image_id"].to_numpy() for part in parts])
    assert ids.tolist() == [str(i) for i in range(120_001)]
    assert reader.survey().counts.tolist() == [50] * 2400 + [1]


def test_a_file_that_the_library_packed_anew(tmp_path: Path) -> None:
    """In a copy values lie in the order of the keys, not of the numbers."""
    made = records(3000, 9000)
    path = write(tmp_path / "set.lmdb", made)
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as env:
        env.copy(str(tmp_path / "copy.lmdb"), compact=True)
    same(open_reader(str(tmp_path / "copy.lmdb")).records(), made)
    order = np.random.default_rng(0).permutation(3000)
    shuffled = open_reader(str(path), mask=save(tmp_path / "mask.npy", order)).records()
    same(shuffled, [made[i] for i in order])


def _digest(reader: LmdbReader) -> str:
    return hashlib.sha256(b"".join(record.image for record in reader.records())).hexdigest()


def test_two_processes_read_after_a_fork() -> None:
    reader = LmdbReader(str(DATA / "hsface.lmdb"), source="base", max_bytes=10**6)
    expected = _digest(reader)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def work() -> None:
        send.send([_digest(reader) for _ in range(20)])

    workers = [context.Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert {_digest(reader) for _ in range(20)} == {expected}
    assert receive.recv() == receive.recv() == [expected] * 20
    for worker in workers:
        worker.join()


@pytest.mark.slow
def test_mutated_files_end_in_records_or_one_error(tmp_path: Path, traced: None) -> None:
    image = encode_jpeg(np.zeros((16, 16, 3), np.uint8))
    made = [record._replace(image=image + record.image) for record in records(120, 6000, feature=4)]
    data = write(tmp_path / "set.lmdb", made, "vec2face").read_bytes()
    path, draw = tmp_path / "mutated.lmdb", random.Random(5)
    pages = [i for i in range(0, len(data), 4096) if data[i + 10] in (1, 2, 8)]
    for _ in range(12):
        changed = bytearray(data)
        for _ in range(draw.choice([1, 4, 40, 400])):
            at = draw.choice([*pages, draw.randrange(len(data))]) + draw.randrange(4096)
            width = draw.choice([1, 2, 8])
            changed[at : at + width] = draw.choice([b"\xff" * width, draw.randbytes(width)])
        if draw.random() < 0.3:  # two pages change places
            one, other = draw.choice(pages), draw.choice(pages)
            changed[one : one + 4096] = data[other : other + 4096]
        path.write_bytes(changed[: draw.choice([len(data), draw.randrange(len(data))])])
        tracemalloc.reset_peak()
        started = time.monotonic()
        for use in (_all_records, _all_identities):
            with suppress(UserError):
                use(str(path))
        assert tracemalloc.get_traced_memory()[1] < 4 * len(data) + 8 * 2**20
        assert time.monotonic() - started < 5


def _all_records(path: str) -> None:
    count = open_reader(path).survey().images
    assert sum(1 for _ in open_reader(path).records()) <= count


def _all_identities(path: str) -> None:
    reader = open_reader(path)
    for listing in reader.identities():
        reader.read(listing.identity)


@pytest.mark.slow
def test_on_an_object_store(tmp_path: Path, s3_bucket: str) -> None:
    made = records(300, 9000, feature=16)
    uri = storage.join(s3_bucket, "sets", "vec.lmdb")
    with open_writer(uri, "vec2face") as writer:
        for record in made:
            writer.write(record)
    reader = open_reader(uri)
    same(reader.records(), made)
    assert reader.survey().images == 300
    storage.write_bytes(storage.join(s3_bucket, "mask.npy"), npy([200, 7]))
    masked = open_reader(uri, mask=storage.join(s3_bucket, "mask.npy"))
    assert [record.image for record in masked.records()] == [made[200].image, made[7].image]
    (listing, _) = pickle.loads(pickle.dumps(masked)).identities()
    (source,) = (image.source for image in listing.identity.images)
    assert LmdbReader(uri, source="base", max_bytes=10**6).fetch([source]) == [made[200].image]


_PEAKS = """
import gc, sys, tracemalloc
from raypipe.formats import Record, open_reader, open_writer
path, count = sys.argv[1], int(sys.argv[2])
with open_writer(path + ".first", "hsface") as writer:
    writer.write(Record(b"0", 0, "0", "0"))
list(open_reader(path + ".first").records())  # what is imported on the way is not counted
tracemalloc.start()
with open_writer(path, "hsface") as writer:
    for i in range(count):
        writer.write(Record(b"%d" % i, i // 50, str(i // 50), str(i)))
print(tracemalloc.get_traced_memory()[1])
del writer
gc.collect()
gc.disable()  # what only the collector would free is seen
tracemalloc.reset_peak()
reader = open_reader(path)
assert all(record.image == record.image_id.encode() for record in reader.records())
print(*tracemalloc.get_traced_memory())
"""


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_records(tmp_path: Path) -> None:
    """But for 10 bytes a record of the list of keys, twice while it is written.

    In a process of its own: tracemalloc counts all threads, also those that other tests started.
    """
    command = [sys.executable, "-c", _PEAKS, str(tmp_path / "set.lmdb"), "200000"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    writing, held, reading = map(int, out.split())
    assert writing < 6 * 2**20
    assert held < 12 * 2**20  # pages of keys, at most 8 MB, and little else after four parts
    assert reading < 32 * 2**20  # with 16 MB that `Blob` may read at a time
