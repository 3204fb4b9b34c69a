"""WebDataset tars: what others write, what is broken, what we write."""

import hashlib
import io
import json
import pickle
import random
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import webdataset

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats import DamagedError, Record, open_reader, open_writer
from raypipe.formats.webdataset import SHARD_SIZE, TarReader
from raypipe.images import encode_jpeg, encode_png

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 12, 12, 3), np.uint8)
JPEGS = [encode_jpeg(rgb) for rgb in PIXELS]
PNG = encode_png(PIXELS[0])
BLOCK = 512


def add(tar: tarfile.TarFile, name: str, data: bytes, **more: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for key, value in more.items():
        setattr(member, key, value)
    tar.addfile(member, io.BytesIO(data))


def make(path: Path, members: list[tuple[str, bytes]], format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            add(tar, name, data)
    return path


def sample(key: str, image: bytes, label: int, **about: object) -> list[tuple[str, bytes]]:
    members = [(f"{key}.cls", str(label).encode()), (f"{key}.jpg", image)]
    return members + ([(f"{key}.json", json.dumps(about).encode())] if about else [])


def read(path: Path | str, **more: int) -> tuple[list[Record], list[str]]:
    """Records of all ways to read, which have to agree, and the damages."""
    found: list[Record] = []
    reader = open_reader(str(path), **more)
    assert isinstance(reader, TarReader)
    try:
        for record in reader.records():
            found.append(record)
        damages = []
    except DamagedError as error:
        damages = [f"{Path(d.path).name}:{d.offset}: {d.what}" for d in error.damages]
    entries = [row for part in reader.parts() for row in reader.entries(part).to_pylist()]
    kept = [row for row in entries if row["rejected"] is None]
    assert len(entries) - len(kept) == len(damages)
    listed = [(r["image_id"], r["identity"], r["label"]) for r in kept]
    assert listed == [(r.image_id, r.identity, r.label) for r in found]
    assert reader.survey().images == len(found)
    fetched = pickle.loads(pickle.dumps(reader)).fetch([row["source"] for row in kept])
    assert fetched == [record.image for record in found]
    assert [row["bytes"] for row in kept] == [len(record.image) for record in found]
    return found, damages


def headers(path: Path) -> dict[str, int]:
    with tarfile.open(path) as tar:
        return {member.name: member.offset for member in tar}


def records(count: int, per_label: int) -> list[Record]:
    images = [*JPEGS, PNG]
    return [
        Record(images[i % 25], i // per_label, f"idé/{i // per_label}", f"{i % per_label}.jpg")
        for i in range(count)
    ]


def write(path: Path | str, some: list[Record]) -> None:
    with open_writer(str(path), "webdataset") as writer:
        assert not writer.by_label
        for record in some:
            writer.write(record)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_labels_and_identities_from_cls_and_json(tmp_path: Path, format: int) -> None:
    long = "x" * 70 + "/" + "y" * 120 + "é"
    path = make(
        tmp_path / "a.tar",
        [
            *sample("a/0", JPEGS[0], 7),
            *sample("a/1", JPEGS[1], 7, identity="Ana"),
            *sample("b/0", JPEGS[2], 8, identity_id="Bo", identity="no"),
            ("b/1.json", b'{"label": 8, "identity": 12}'),
            ("b/1.seg.png", b"no image"),
            ("b/1.PNG", PNG),
            ("__meta__/set.json", b"{}"),
            ("c/2.cls", b" 9\n"),
            ("c/2.webp", JPEGS[3]),  # an image is known by its bytes
            ("README", b"no sample"),
            ("d.jpg", JPEGS[4]),
            ("d.json", b'{"cls": 3}'),
            *(sample(long, JPEGS[5], 4) if format != tarfile.USTAR_FORMAT else []),
        ],
        format,
    )
    found, damages = read(path)
    assert damages == []
    assert [r[1:4] for r in found[:6]] == [
        (7, "7", "a/0"),
        (7, "Ana", "a/1"),
        (8, "Bo", "b/0"),
        (8, "12", "b/1"),
        (9, "9", "c/2"),
        (3, "3", "d"),
    ]
    assert [r.image for r in found[:6]] == [*JPEGS[:3], PNG, *JPEGS[3:5]]
    assert [r.image_id for r in found[6:]] == ([long] if format != tarfile.USTAR_FORMAT else [])


def test_what_gnu_tar_writes(tmp_path: Path) -> None:
    folder = tmp_path / "in" / ("deep" * 20)
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(JPEGS[0])
    (folder / "0.cls").write_text("5")
    (folder / "0.txt").symlink_to("0.jpg")
    for format in ("gnu", "posix", "ustar"):
        path = tmp_path / f"{format}.tar"
        command = ["tar", f"--format={format}", "--sort=name", "-C", str(tmp_path / "in")]
        subprocess.run([*command, "-cf", str(path), "."], check=True)
        found, damages = read(path)
        assert [r[:4] for r in found] == [(JPEGS[0], 5, "5", f"./{'deep' * 20}/0")]
        assert damages == []


def test_keys_that_repeat_as_those_of_sota_fr_are_samples_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "web4m-000000.tar"
    with webdataset.TarWriter(str(path)) as tar:
        for label in range(3):
            for image in range(2):
                data = JPEGS[label * 2 + image]
                tar.write(
                    {"__key__": f"{image:03d}" if label else "000", "jpg": data, "cls": label}
                )
    found, damages = read(path)
    assert damages == []
    assert [r.label for r in found] == [0, 0, 1, 1, 2, 2]
    assert [r.image for r in found] == JPEGS[:6]
    images = next(iter(open_reader(str(path)).identities())).identity.images
    assert [image.image_id for image in images] == ["000", f"000 ({images[1].source})"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", JPEGS[0])], "a.tar:0: sample a: no label"),
        ([("a.cls", b"1")], "a.tar:0: sample a: no image (cls)"),
        ([("a.cls", b"1"), ("a.jpg", b"words")], "a.tar:0: sample a: no image (cls, jpg)"),
        ([("a.cls", b"1"), ("a.jpg", JPEGS[0]), ("a.png", PNG)], "sample a: 2 images (cls, jpg"),
        ([("a.cls", b"Ana"), ("a.jpg", JPEGS[0])], "label b'Ana' is no class number"),
        ([("a.cls", b"-1"), ("a.jpg", JPEGS[0])], "label b'-1' is no class number"),
        ([("a.cls", b"9" * 30), ("a.jpg", JPEGS[0])], "is no class number"),
        ([("a.cls", b"9" * 5000), ("a.jpg", JPEGS[0])], "is no class number"),
        ([("a.json", b'{"label": true}'), ("a.jpg", JPEGS[0])], "label True is no class number"),
        ([("a.json", b"[" * 100_000), ("a.jpg", JPEGS[0])], "no label"),
        ([("a.json", b'{"label": ' + b"1" * 9999 + b"}"), ("a.jpg", JPEGS[0])], "no label"),
    ],
)
def test_a_sample_that_is_not_one_image_with_a_label_is_damage(
    tmp_path: Path, members: list[tuple[str, bytes]], message: str
) -> None:
    path = make(tmp_path / "a.tar", [*members, *sample("b", JPEGS[1], 2)])
    found, (damage,) = read(path)
    assert message in damage
    assert [(r.label, r.image) for r in found] == [(2, JPEGS[1])]


def test_odd_identities_are_written_down(tmp_path: Path) -> None:
    names: list[object] = ["\ud800", "", ".", True, 1.5, None, ["a"]]
    members = [
        m for n, name in enumerate(names) for m in sample(str(n), JPEGS[n], n, identity=name)
    ]
    found, damages = read(make(tmp_path / "a.tar", members))
    assert damages == []
    assert [r.identity for r in found] == ["\\ud800", "1", "2", "3", "4", "5", "6"]


@pytest.fixture
def twelve(tmp_path: Path) -> tuple[Path, list[tuple[int, bytes]]]:
    members = [m for i in range(12) for m in sample(f"{i:02d}", JPEGS[i], i, identity=f"p{i}")]
    return make(tmp_path / "twelve.tar", members), [(i, JPEGS[i]) for i in range(12)]


@pytest.mark.parametrize("member", ["00.cls", "05.cls", "05.jpg", "05.json", "11.json"])
@pytest.mark.parametrize("how", ["bytes", "zeros", "size", "magic"])
def test_a_damaged_header_costs_no_more_than_its_sample(
    twelve: tuple[Path, list], member: str, how: str
) -> None:
    path, expected = twelve
    at = headers(path)[member]
    data = bytearray(path.read_bytes())
    if how == "bytes":
        data[at : at + 100] = RNG.bytes(100)
    elif how == "zeros":
        data[at : at + BLOCK] = bytes(BLOCK)
    elif how == "magic":
        data[at + 257 : at + 262] = b"xxxxx"
    else:
        header = tarfile.TarInfo.frombuf(bytes(data[at : at + BLOCK]), "utf-8", "strict")
        header.size = 7 * 2**30  # with a valid checksum
        data[at : at + BLOCK] = header.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)
    found, damages = read(path)
    number = int(member[:2])
    whole = member.endswith("json") or how == "none"
    rest = [pair for pair in expected if whole or pair[0] != number]
    assert [(r.label, r.image) for r in found if whole or r.label != number] == rest
    assert len(damages) == 1 and damages[0].startswith(f"twelve.tar:{at}: ")


def test_a_tar_cut_off_anywhere_gives_what_is_whole(twelve: tuple[Path, list]) -> None:
    path, expected = twelve
    whole = path.read_bytes()
    places = headers(path)
    ends = [places[f"{i:02d}.json"] + 2 * BLOCK for i in range(12)]
    for cut in [*range(1, len(whole), 997), *ends, ends[-1] + 100, 512, 0]:
        for zeros in (0, 2 * BLOCK):
            if cut == ends[-1] and zeros:
                continue  # that is the whole tar
            path.write_bytes(whole[:cut] + bytes(zeros))
            reader = TarReader(str(path), source="base", max_bytes=10**6)
            found = []
            try:
                for record in reader.records():
                    found.append((record.label, record.image))
                damaged = False
            except DamagedError:
                damaged = True
            complete = sum(end <= cut for end in ends)
            assert found[:complete] == expected[:complete]
            assert len(found) <= complete + 1  # an image whole, and its .json cut
            # Zeros after the end of a member look like a tar that ends there.
            at_border = zeros and any(
                cut <= place < cut + BLOCK for place in [*places.values(), ends[-1]]
            )
            assert damaged or at_border or cut > ends[-1]


def test_damage_is_told_where_tarfile_is_silent(twelve: tuple[Path, list]) -> None:
    path, _ = twelve
    data = bytearray(path.read_bytes())
    at = headers(path)["05.jpg"]
    data[at : at + BLOCK] = b"\xff" * BLOCK
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 16
    with pytest.raises(DamagedError, match=rf"twelve.tar: byte {at}: .*everything else was read"):
        list(open_reader(str(path)).records())
    identities = [listing.identity for listing in open_reader(str(path)).identities()]
    rejected = {i.identity_id: i.rejected for i in identities if i.rejected}
    assert rejected == {".": "ingest:damaged"}
    assert sum(len(i.images) for i in identities) == 12


def test_links_devices_and_folders_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("0.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        for name, data in sample("../../../0", JPEGS[0], 3):
            add(tar, name, data)
    found, damages = read(path)
    assert damages == []
    assert [(r.image, r.image_id) for r in found] == [(JPEGS[0], "../../../0")]


@pytest.mark.parametrize(
    "source",
    ["../b.tar@0+9", "/b.tar@0+9", "..@0+9", ".@0+9", "a.tar@-1+9", "a.tar@0", "", "a.tar@x+9"],
)
@pytest.mark.parametrize("folder", [True, False])
def test_a_place_outside_the_set_is_refused(tmp_path: Path, source: str, folder: bool) -> None:
    (tmp_path / "set").mkdir()
    make(tmp_path / "b.tar", sample("0", JPEGS[0], 0))
    path = make(tmp_path / "set" / "a.tar", sample("0", JPEGS[0], 0))
    reader = TarReader(str(path.parent if folder else path), source="base", max_bytes=10**6)
    with pytest.raises(UserError, match="no place in it"):
        reader.fetch([source])


def test_a_place_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", sample("0", JPEGS[0], 0))
    reader = open_reader(str(path))
    (listing,) = reader.identities()
    listing.identity.images[0].source = f"a.tar@1024+{10**17}"
    assert reader.read(listing.identity).images[0].rejected == "ingest:damaged"
    listing.identity.images[0].source = "b.tar@1024+10"
    with pytest.raises(UserError, match="no tar of this set"):
        reader.read(listing.identity)


def test_an_image_over_the_limit_is_not_read(tmp_path: Path) -> None:
    big = JPEGS[0] + bytes(5_000_000)
    path = make(tmp_path / "a.tar", [*sample("0", big, 0), *sample("1", JPEGS[1], 0)])
    found, (damage,) = read(path, max_bytes=10_000)
    assert [r.image for r in found] == [JPEGS[1]]
    assert damage.startswith(f"a.tar:{3 * BLOCK}: sample 0: an image of {len(big):,} bytes")
    reader = open_reader(str(path), max_bytes=10_000)
    (listing,) = reader.identities()
    reasons = [image.rejected for image in reader.read(listing.identity).images]
    assert reasons == ["ingest:file_too_large", None]


def test_a_folder_is_read_in_natural_order_whatever_lies_there(tmp_path: Path) -> None:
    for number in (10, 9):
        make(tmp_path / f"part-{number}.tar", sample("0", JPEGS[number], number))
    make(tmp_path / "part-11", sample("0", JPEGS[11], 11))
    (tmp_path / "index.json").write_text("{}")
    (tmp_path / ".hidden.tar").write_bytes(b"x")
    found, damages = read(tmp_path)
    assert damages == []
    assert [r.label for r in found] == [9, 10, 11]
    stamp = open_reader(str(tmp_path)).stamp()
    assert open_reader(str(tmp_path)).stamp() == stamp
    make(tmp_path / "part-10.tar", [*sample("0", JPEGS[0], 0), *sample("1", JPEGS[0], 0)])
    assert open_reader(str(tmp_path)).stamp() != stamp


def test_a_tar_whose_beginning_is_damaged_is_not_passed_over(tmp_path: Path) -> None:
    for number in range(2):
        members = [*sample("0", JPEGS[0], 0), *sample("1", JPEGS[1], 1)]
        path = make(tmp_path / f"{number}.tar", members)
    data = path.read_bytes()
    path.write_bytes(b"\xff" * 600 + data[600:])
    for place, count in ((tmp_path, 3), (path, 1)):
        found, (damage,) = read(place)
        assert damage.startswith("1.tar:0: ")
        assert [r.label for r in found] == [0, 1, 1][3 - count :]


def test_compressed_tars_are_named(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", sample("0", JPEGS[0], 0))
    subprocess.run(["gzip", str(path)], check=True)
    for place in (path.with_suffix(".tar.gz"), tmp_path):
        with pytest.raises(UserError, match=r"compressed with gzip; unpack .*gunzip"):
            open_reader(str(place))
    make(tmp_path / "b.tar", sample("0", JPEGS[0], 0))
    with pytest.raises(UserError, match=r"a.tar.gz: compressed"):
        open_reader(str(tmp_path)).survey()


def test_round_trip(tmp_path: Path) -> None:
    some = records(60, 4)
    write(tmp_path / "out", some)
    found, damages = read(tmp_path / "out")
    assert damages == []
    assert [r[:3] for r in found] == [r[:3] for r in some]
    assert [r.image_id for r in found[:5]] == [
        "0000000_0000",
        "0000000_0001",
        "0000000_0002",
        "0000000_0003",
        "0000001_0000",
    ]


def test_keys_are_unique_in_any_order_of_labels(tmp_path: Path) -> None:
    some = [Record(JPEGS[0], label, "", "") for label in (3, 1, 3, 12_345_678, 1, 3)]
    write(tmp_path / "out", some)
    assert [r.image_id for r in read(tmp_path / "out")[0]] == [
        "0000003_0000",
        "0000001_0000",
        "0000003_0001",
        "12345678_0000",
        "0000001_0001",
        "0000003_0002",
    ]


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        write(tmp_path / name, records(30, 3))
        digests.append(
            {
                path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (tmp_path / name).iterdir()
            }
        )
    assert digests[0] == digests[1]
    with tarfile.open(tmp_path / "a" / "shard-000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in tar} == {
            (0, 0, 0, 0o444, "bigdata")
        }


def test_the_webdataset_package_and_torch_read_what_is_written(tmp_path: Path) -> None:
    import torch

    some = records(30, 3)
    write(tmp_path / "out", some)
    url = str(tmp_path / "out" / "shard-000000.tar")
    read_back = list(webdataset.WebDataset(url, shardshuffle=False))
    assert [s.get("jpg", s.get("png")) for s in read_back] == [r.image for r in some]
    assert [int(s["cls"]) for s in read_back] == [r.label for r in some]
    assert len({s["__key__"] for s in read_back}) == 30
    about = json.loads(read_back[4]["json"])
    assert about == {"identity_id": "idé/1", "image_id": "1.jpg", "label": 1}
    dataset = webdataset.WebDataset(url, shardshuffle=False).decode("torchrgb")
    pairs = dataset.to_tuple("jpg;png", "cls")
    batches = list(torch.utils.data.DataLoader(pairs, batch_size=10))
    assert [tuple(images.shape) for images, _ in batches] == [(10, 3, 12, 12)] * 3
    assert torch.cat([labels for _, labels in batches]).tolist() == [r.label for r in some]


def test_a_record_that_is_no_image_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an image"):
        write(tmp_path / "out", [Record(b"words", 0, "a", "b")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_ten_thousand_images_a_shard_and_more_of_one_label(tmp_path: Path) -> None:
    count = SHARD_SIZE + 5
    tiny = b"\xff\xd8\xff"
    with open_writer(str(tmp_path / "out"), "webdataset") as writer:
        for _ in range(count):
            writer.write(Record(tiny, 1, "a", "b"))
    index = storage.read_json(str(tmp_path / "out" / "index.json"))
    assert index == {
        "wids_version": 1,
        "shardlist": [
            {"url": "shard-000000.tar", "nsamples": SHARD_SIZE},
            {"url": "shard-000001.tar", "nsamples": 5},
        ],
    }
    reader = open_reader(str(tmp_path / "out"))
    keys = [record.image_id for record in reader.records()]
    assert len(set(keys)) == count
    assert keys[9_999:10_001] == ["0000001_9999", "0000001_10000"]
    assert [len(reader.entries(part)) for part in reader.parts()] == [SHARD_SIZE, 5]


def outcome(path: Path) -> list[str]:
    """Errors of all ways to read a set; no other may come of it than those for the user."""
    said = []
    for way in ("records", "survey", "identities"):
        reader = TarReader(str(path), source="base", max_bytes=10**6)
        try:
            found = getattr(reader, way)()
            if way == "records":
                for _ in found:
                    pass
            elif way == "identities":
                for listing in found:
                    reader.read(listing.identity)
        except UserError as error:
            said.append(str(error))
    return said


def mutated(data: bytes, dice: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(changed))
        block = at // BLOCK * BLOCK
        match dice.randrange(6):
            case 0:
                changed[at] = dice.randrange(256)
            case 1:
                del changed[at:]
                changed += bytes(BLOCK - len(changed) % BLOCK)
            case 2:  # a header with another type or a huge size, its checksum valid
                header = bytearray(changed[block : block + BLOCK].ljust(BLOCK, b"\0"))
                header[257:265] = b"ustar\00000"
                header[156] = dice.choice(b"0123456LKxgS\0\xff")
                if dice.random() < 0.7:
                    size = dice.choice([b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12])
                    header[124:136] = size if dice.random() < 0.5 else b"00000001000\0"
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % sum(header)
                changed[block : block + BLOCK] = header
            case 3:
                other = dice.randrange(len(changed)) // BLOCK * BLOCK
                changed[block : block + BLOCK], changed[other : other + BLOCK] = (
                    changed[other : other + BLOCK],
                    changed[block : block + BLOCK],
                )
            case 4:
                changed[block : block + BLOCK] = bytes(BLOCK)
            case 5:
                changed[at:at] = dice.randbytes(dice.choice([1, 511, 512]))
    return bytes(changed)


@pytest.mark.slow
def test_fuzz(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.tar"
    seeds = []
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        names = ["0", "1", "é" * 90 if format != tarfile.USTAR_FORMAT else "2"]
        members = [m for n in names for m in sample(n, JPEGS[0], 1, identity="Ana")]
        seeds.append(make(path, members, format).read_bytes())
    dice, said = random.Random(5), []
    tracemalloc.start()
    try:
        for turn in range(120):
            path.write_bytes(mutated(seeds[turn % 3], dice))
            said += outcome(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert len(said) > 50 and not any("\n" in text for text in said)


def hostile(kind: str) -> bytes:
    """16 MB made to keep a reader busy."""
    header = tarfile.TarInfo("0.jpg")
    header.size = 2**33
    huge = header.tobuf(tarfile.GNU_FORMAT)
    header.size = 0
    good = header.tobuf(tarfile.USTAR_FORMAT)
    damaged = good[:10] + b"xx" + good[12:]
    pattern = {
        "sizes": huge,
        "magic": b"ustar" * 102 + b"us",
        "broken": damaged,
        "turns": damaged + good,
        "zeros": bytes(BLOCK) + good,
        "samples": good,
    }[kind]
    return pattern * (16 * 2**20 // len(pattern))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sizes", "magic", "broken", "turns", "zeros", "samples"])
def test_a_hostile_tar_takes_time_and_memory_in_proportion(tmp_path: Path, kind: str) -> None:
    import time

    path = tmp_path / "a.tar"
    path.write_bytes(hostile(kind))
    reader = TarReader(str(path), source="base", max_bytes=10**6)
    start = time.process_time()
    with pytest.raises(DamagedError):
        list(reader.records())
    reader.entries(reader.parts()[0])
    assert time.process_time() - start < 10


@pytest.mark.slow
def test_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    some = records(60, 4)
    place = f"{s3_bucket}/tars/out"
    write(place, some)
    found, damages = read(place)
    assert damages == []
    assert [r[:3] for r in found] == [r[:3] for r in some]
    one, _ = read(f"{place}/shard-000000.tar")
    assert one == found
    write(tmp_path / "out", some)
    for entry in storage.listdir(place):
        assert storage.read_bytes(entry.path) == (tmp_path / "out" / entry.name).read_bytes()
    (first, *_) = open_reader(place).identities()
    assert [i.data for i in open_reader(place).read(first.identity).images] == [
        r.image for r in some[:4]
    ]
