"""Parquet sets: read in every layout people write, written so that others open them."""

import json
import pickle
import random
import struct
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.errors import UserError
from raypipe.formats import DamagedError, Record, open_reader, open_writer
from raypipe.formats.keyed import UNKNOWN
from raypipe.formats.parquet import ImageFile, ParquetReader
from raypipe.images import encode_jpeg

COUNT, EACH = 60, 5


def picture(seed: int) -> bytes:
    return encode_jpeg(np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8))


RECORDS = [Record(picture(i), i // EACH, f"p/{i // EACH}", f"é{i}.jpg") for i in range(COUNT)]
IMAGES = [record.image for record in RECORDS]
LABELS = [record.label for record in RECORDS]


def structs(images=IMAGES, paths=None) -> pa.StructArray:
    names = pa.array(paths or [f"{i}.jpg" for i in range(len(images))], pa.string())
    return pa.StructArray.from_arrays([pa.array(images, pa.binary()), names], ["bytes", "path"])


def write(path: Path, columns: dict, *, features: dict | None = None, rows=20, **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    pq.write_table(table, path, row_group_size=rows, **options)
    return str(path)


def reader(path: Path | str) -> ParquetReader:
    found = open_reader(str(path))
    assert isinstance(found, ParquetReader)
    return found


def read_all(found: ParquetReader) -> tuple[list[Record], DamagedError | None]:
    records: list[Record] = []
    try:
        for record in found.records():
            records.append(record)
    except DamagedError as error:
        return records, error
    return records, None


@pytest.fixture
def written(tmp_path: Path) -> Path:
    with open_writer(str(tmp_path / "set"), "parquet") as writer:
        for record in RECORDS:
            writer.write(record)
    return tmp_path / "set"


def test_what_is_written_is_read_in_order_byte_for_byte(written):
    assert list(reader(written).records()) == RECORDS
    survey = reader(written).survey()
    assert (survey.images, survey.in_order) == (COUNT, True)
    assert survey.counts.tolist() == [EACH] * (COUNT // EACH)


def test_the_same_records_give_the_same_files(written, tmp_path):
    other = tmp_path / "other place"
    with open_writer(str(other), "parquet") as writer:
        for record in RECORDS:
            writer.write(record)
    files = [p.relative_to(written) for p in sorted(written.rglob("*")) if p.is_file()]
    assert [str(name) for name in files] == [
        "README.md", "croissant.json", "data/train-00000-of-00001.parquet",
    ]  # fmt: skip
    for name in files:
        assert (written / name).read_bytes() == (other / name).read_bytes()


def test_files_are_numbered_and_say_how_many_there_are(tmp_path):
    path = tmp_path / "set"
    with open_writer(str(path), "parquet") as writer:
        for number in range(50_001):
            writer.write(Record(b"%d" % number, number % 7, "x", "y"))
    names = sorted(p.name for p in (path / "data").iterdir())
    assert names == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    found = pq.ParquetFile(path / "data" / names[0]).metadata
    assert found.num_rows == 50_000
    assert found.row_group(0).num_rows == 1000
    assert found.row_group(0).column(0).compression == "UNCOMPRESSED"
    parts = reader(path).parts()
    assert [part.path for part in parts] == names
    assert [record.image for record in reader(path).records()][-2:] == [b"49999", b"50000"]


def test_an_empty_set_has_its_columns(tmp_path):
    with open_writer(str(tmp_path / "set"), "parquet"):
        pass
    table = pq.read_table(tmp_path / "set/data/train-00000-of-00001.parquet")
    assert table.column_names == ["image", "label", "identity", "image_id"]
    assert reader(tmp_path / "set").survey().images == 0


def test_class_names_are_identities(tmp_path):
    names = [f"person {i}" for i in range(10)]
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    path = write(tmp_path / "a.parquet", {"image": structs(), "label": LABELS}, features=features)
    found = list(reader(path).records())
    assert [record.label for record in found] == LABELS
    # Two labels have no name: digits stand for it.
    assert [found[0].identity, found[49].identity, found[50].identity] == [
        "person 0", "person 9", "10",
    ]  # fmt: skip
    assert [record.image_id for record in found[:2]] == ["0.jpg", "1.jpg"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_plain_bytes_and_labels_in_words(tmp_path, kind):
    names = [f"id{9 - i // 6}" for i in range(COUNT)]
    columns = {"picture": pa.array(IMAGES, kind), "label": names}
    found = list(reader(write(tmp_path / "a.parquet", columns)).records())
    assert [record.image for record in found] == IMAGES
    assert [record.identity for record in found] == names
    assert [record.label for record in found] == [9 - i // 6 for i in range(COUNT)]
    assert [record.image_id for record in found] == [str(i) for i in range(COUNT)]


def test_words_are_numbered_over_all_files(tmp_path):
    half = COUNT // 2
    for number, (part, names) in enumerate([(IMAGES[:half], "cab"), (IMAGES[half:], "dbe")]):
        identity = [names[i * 3 // half] for i in range(half)]
        columns = {"img": part, "identity": pa.array(identity).dictionary_encode()}
        write(tmp_path / f"sub{number}" / "x.parquet", columns)
    (tmp_path / "README.md").write_text("not a part of it")
    found = reader_of_folder(tmp_path)
    assert [record.label for record in found.records()][::10] == [2, 0, 1, 3, 1, 4]
    assert [record.image_id for record in found.records()] == [str(i) for i in range(COUNT)]
    listed = list(found.identities())
    assert [listing.identity.identity_id for listing in listed] == list("cabde")
    assert found.survey().labels.tolist() == [0, 1, 2, 3, 4]


def reader_of_folder(path: Path) -> ParquetReader:
    return ParquetReader(str(path), source="base", max_bytes=10**7)


def test_integers_here_and_words_there_are_refused(tmp_path):
    write(tmp_path / "a.parquet", {"image": structs(), "label": LABELS})
    write(tmp_path / "b.parquet", {"image": structs(), "label": [str(x) for x in LABELS]})
    with pytest.raises(UserError, match="integers in some files, strings in others"):
        reader(tmp_path).survey()


def test_rows_without_image_or_label_are_damage(tmp_path):
    images, labels = list(IMAGES), list(LABELS)
    images[3], images[25], labels[7], labels[40] = None, None, None, -1
    path = write(tmp_path / "a.parquet", {"image": structs(images), "label": labels})
    found, error = read_all(reader(path))
    gone = {3, 7, 25, 40}
    assert [record.image for record in found] == [x for i, x in enumerate(IMAGES) if i not in gone]
    assert [str(damage).split(": ", 1)[1] for damage in error.damages] == [
        "byte 4: row 3: no bytes of an image, which must be in the file and not beside it",
        "byte 4: row 7: no label",
        f"byte {ImageFile(path).groups[1].offset}: row 25: no bytes of an image, which must be in "
        "the file and not beside it",
        f"byte {ImageFile(path).groups[2].offset}: row 40: no label",
    ]
    assert all(damage.path == path for damage in error.damages)
    assert reader(path).survey().images == COUNT - 4
    listed = {x.identity.identity_id: reader(path).read(x.identity) for x in
              reader(path).identities()}  # fmt: skip
    assert listed[UNKNOWN].rejected == "ingest:damaged"
    assert [image.source for image in listed[UNKNOWN].images] == ["a.parquet@7", "a.parquet@40"]
    assert [image.rejected for image in listed["0"].images] == [None] * 3 + ["ingest:damaged", None]
    kept = sum(len(identity.kept) for identity in listed.values())
    assert kept == COUNT - 4


def test_a_missing_image_without_statistics_is_found_when_it_is_read(tmp_path):
    images = list(IMAGES)
    images[3] = None
    columns = {"image": structs(images), "label": LABELS}
    path = write(tmp_path / "a.parquet", columns, write_statistics=False)
    assert reader(path).survey().images == COUNT
    found = reader(path).read(next(iter(reader(path).identities())).identity)
    assert [image.rejected for image in found.images] == [None] * 3 + ["ingest:damaged", None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": pa.array([{"path": "a.jpg"}]), "label": [1]}, "holds no image bytes"),
        ({"image": ["a.jpg"], "label": [1]}, "holds no image bytes"),
        ({"a": [b"x"], "b": [b"y"], "label": [1]}, r"which column holds the images.*a \(binary\)"),
        ({"image": [b"x"], "score": [0.5]}, r"no column of labels.*score \(double\)"),
        ({"image": [b"x"], "label": [0.5]}, "no column of labels"),
    ],
)
def test_a_set_of_another_kind_is_refused_by_name(tmp_path, columns, message):
    with pytest.raises(UserError, match=message):
        reader(write(tmp_path / "a.parquet", columns)).survey()


def test_names_that_are_not_utf8_or_far_too_long(tmp_path):
    names = [b"a", b"\xff\xfe", b"x" * 5000, b"b"]
    column = pa.array(names, pa.binary())
    columns = {"image": pa.array(IMAGES[:4]), "identity": column, "label": [0, 1, 2, 3]}
    columns["key"] = pa.array([b"\xc3", b"k", b"l", b"y" * 9999], pa.binary())
    found = list(reader(write(tmp_path / "a.parquet", columns)).records())
    assert [record.identity for record in found] == ["a", "\\xff\\xfe", "2", "b"]
    assert [record.image_id for record in found] == ["\\xc3", "k", "l", "3"]


def test_images_are_fetched_from_anywhere_in_any_order(written):
    found = pickle.loads(pickle.dumps(reader(written)))
    entries = found.entries(found.parts()[0])
    order = np.random.default_rng(0).permutation(COUNT)
    sources = [entries["source"][int(i)].as_py() for i in order]
    assert sources[0] == f"train-00000-of-00001.parquet@{order[0]}"
    assert found.fetch(sources) == [IMAGES[i] for i in order]


def test_a_cursor_goes_back_and_on_in_a_row_group_of_many_batches(tmp_path):
    images = [bytes([i]) * 300_000 for i in range(150)]
    columns = {"image": pa.array(images), "label": list(range(150))}
    path = write(tmp_path / "a.parquet", columns, rows=150, use_dictionary=False)
    assert ImageFile(path).groups[0].batch == 55
    order = [0, 149, 3, 60, 59, 148]
    got = reader(path).fetch([f"a.parquet@{row}" for row in order])
    assert got == [images[row] for row in order]


@pytest.mark.parametrize(
    "source",
    ["../secret.parquet@0", "/etc/passwd@0", "b.parquet@0", "a.parquet@x", "a.parquet",
     "a.parquet@-1", "a.parquet@" + "9" * 30, "a.parquet@60", "./a.parquet@0"],
)  # fmt: skip
def test_places_outside_the_set_are_refused(tmp_path, source):
    write(tmp_path / "secret.parquet", {"image": structs(), "label": LABELS})
    path = write(tmp_path / "set/a.parquet", {"image": structs(), "label": LABELS})
    with pytest.raises(UserError, match="no file|no row"):
        reader(path).fetch([source])


def test_the_stamp_is_that_of_the_files(tmp_path):
    path = tmp_path / "s" / "a.parquet"
    write(path, {"image": structs(), "label": LABELS})
    before = reader(path).stamp()
    assert reader(path.parent).stamp() == before
    time.sleep(0.01)
    write(path, {"image": structs(), "label": LABELS})
    assert reader(path).stamp() != before


def test_a_file_that_is_cut_off_leaves_the_others(tmp_path):
    half = COUNT // 2
    for name, rows in (("a", slice(0, half)), ("b", slice(half, COUNT))):
        columns = {"image": structs(IMAGES[rows]), "label": LABELS[rows]}
        write(tmp_path / f"{name}.parquet", columns)
    cut = tmp_path / "a.parquet"
    data = cut.read_bytes()
    cut.write_bytes(data[:-40])
    found, error = read_all(reader(tmp_path))
    assert [record.image for record in found] == IMAGES[half:]
    assert len(error.damages) == 1
    assert error.damages[0].path == str(cut)
    assert error.damages[0].offset == len(data) - 40
    entries = pa.concat_tables([reader(tmp_path).entries(p) for p in reader(tmp_path).parts()])
    assert entries["rejected"].to_pylist() == ["ingest:damaged"] + [None] * half
    assert entries["source"][0].as_py() == f"a.parquet@{len(data) - 40}"
    with pytest.raises(UserError, match=r"a\.parquet: byte \d+: the file is cut off"):
        reader(cut).survey()


def heads(path: Path) -> list[int]:
    """Offsets of the pages of the first column of a file, which is not compressed."""
    found = []
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    data = path.read_bytes()
    start = column.data_page_offset
    end = start + column.total_compressed_size
    # A head begins with its type (a data page), then its two sizes, which are one and the same.
    for place in range(start, end):
        if data[place : place + 3] == b"\x15\x00\x15":
            first = data[place + 3 : place + 5]
            if data[place + 5 : place + 8] == b"\x15" + first:
                found.append(place)
    return found


def test_a_damaged_page_costs_the_rest_of_its_row_group(tmp_path):
    """Rows before the page and row groups after it come out; its byte offset is named."""
    columns = {"image": pa.array(IMAGES), "label": LABELS}
    options = {"compression": "none", "use_dictionary": False, "data_page_size": 1, "rows": 30}
    path = Path(write(tmp_path / "a.parquet", columns, write_batch_size=4, **options))
    data = path.read_bytes()
    # The image is the first of its page, after its length, the levels, and the head of the page.
    head = max(page for page in heads(path) if page < data.index(IMAGES[12]))
    path.write_bytes(data[:head] + b"\xff" * 6 + data[head + 6 :])
    found, error = read_all(reader(path))
    assert [record.image for record in found] == IMAGES[:12] + IMAGES[30:]
    assert [(d.path, d.offset) for d in error.damages] == [(str(path), head)]
    assert error.damages[0].what.startswith("rows 12 to 29: ")
    got = reader(path).fetch([f"a.parquet@{row}" for row in (2, 20, 11, 40, 12, 5)])
    assert [got[i] for i in (0, 2, 3, 5)] == [IMAGES[i] for i in (2, 11, 40, 5)]
    assert [(got[i].offset, got[i].path) for i in (1, 4)] == [(head, str(path))] * 2


def test_a_wrong_checksum_is_noticed(tmp_path):
    columns = {"image": pa.array(IMAGES), "label": LABELS}
    path = Path(
        write(tmp_path / "a.parquet", columns, compression="none", write_page_checksum=True)
    )
    data = path.read_bytes()
    place = data.index(IMAGES[25]) + 100
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    found, error = read_all(reader(path))
    assert [record.image for record in found] == IMAGES[:20] + IMAGES[40:]
    assert "CRC" in error.damages[0].what


def allocated(action) -> int:
    """Bytes that pyarrow held at its largest while something ran."""
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    try:
        action()
    finally:
        pa.set_memory_pool(usual)
    return pool.max_memory()


def test_a_bomb_is_not_unpacked(tmp_path):
    columns = {"image": pa.array([bytes(10**6)] * 60), "label": list(range(60))}
    path = write(tmp_path / "a.parquet", columns, rows=60, compression="zstd",
                 use_dictionary=False)  # fmt: skip
    assert Path(path).stat().st_size < 10**6
    damage = []
    assert allocated(lambda: damage.append(read_all(reader(path)))) < 10e6
    found, error = damage[0]
    assert not found
    assert "claim to unpack to 60," in str(error)


def test_one_picture_in_every_row_is_not_held_in_every_row(tmp_path):
    """A dictionary of one picture, and 150 rows that name it: 105 MB at once."""
    columns = {"image": pa.array([bytes(700_000)] * 150), "label": list(range(150))}
    path = write(tmp_path / "a.parquet", columns, rows=150, compression="none")
    assert Path(path).stat().st_size < 2e6
    count = []
    assert allocated(lambda: count.append(sum(1 for _ in reader(path).records()))) < 100e6
    assert count == [150]


@pytest.mark.slow
def test_mutated_files_give_records_or_a_users_error(tmp_path):
    tables = [
        {"image": structs(), "label": LABELS},
        {"image": pa.array(IMAGES), "label": [str(x) for x in LABELS], "key": ["k"] * COUNT},
    ]
    sound = []
    for number, options in enumerate(
        [{"compression": "none"}, {"write_page_checksum": True}, {"data_page_version": "2.0"},
         {"compression": "zstd", "use_dictionary": False}]
    ):  # fmt: skip
        path = write(tmp_path / "sound.parquet", tables[number % 2], **options)
        sound.append(Path(path).read_bytes())
    path = tmp_path / "set" / "a.parquet"
    path.parent.mkdir()
    start = time.perf_counter()
    outcomes: Counter[str] = Counter()
    for seed in range(150):
        path.write_bytes(mutated(random.Random(seed), sound[seed % len(sound)]))
        held = allocated(lambda: outcomes.update([attempt(path)]))
        assert held < 4e6, f"{held} bytes, seed {seed}"
    assert min(outcomes.values()) > 15
    assert time.perf_counter() - start < 30


def attempt(path: Path) -> str:
    """Does all that can be done with a file."""
    try:
        found = ParquetReader(str(path), source="base", max_bytes=10**6)
        assert sum(1 for _ in found.records()) <= 10 * COUNT
        found.survey()
        for listing in found.identities():
            found.read(listing.identity)
    except UserError:
        return "refused"
    return "whole"


def mutated(rng: random.Random, data: bytes) -> bytes:
    """A file with some of its bytes changed, more often in its footer and heads than elsewhere."""
    found = bytearray(data)
    footer = len(found) - 8 - struct.unpack("<I", found[-8:-4])[0]
    for _ in range(rng.choice([1, 1, 2, 8])):
        low = footer if rng.random() < 0.6 else 4
        place = rng.randrange(low, len(found))
        match rng.randrange(6):
            case 0 | 1:
                found[place] = rng.choice([0, 127, 128, 255, found[place] ^ 1 << rng.randrange(8)])
            case 2:
                found[place : place + 4] = b"\xff" * rng.choice([4, 5])
            case 3:
                del found[place : place + rng.randrange(1, 20)]
            case 4:
                other = rng.randrange(4, len(found))
                found[place : place + 30] = found[other : other + 30]
            case 5:
                found = found[: max(place, 16)] + found[-8:]
        footer = min(footer, len(found) - 1)
    return bytes(found)


@pytest.mark.slow
def test_a_bucket_is_read_like_a_folder(s3_bucket, written):
    with open_writer(f"{s3_bucket}/formats/parquet-set", "parquet") as writer:
        for record in RECORDS:
            writer.write(record)
    found = pickle.loads(pickle.dumps(reader(f"{s3_bucket}/formats/parquet-set")))
    assert list(found.records()) == RECORDS
    local = list(reader(written).identities())
    listed = list(found.identities())
    assert [x.identity for x in listed] == [x.identity for x in local]
    assert [image.data for image in found.read(listed[3].identity).images] == IMAGES[15:20]


@pytest.mark.slow
def test_datasets_and_duckdb_open_the_set(written, tmp_path):
    import datasets
    import duckdb

    found = datasets.load_dataset(str(written), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.features["image"] == datasets.Image()
    assert found.features["label"] == datasets.Value("int64")
    assert found["label"][:] == LABELS
    assert found[7]["image"].size == (8, 9)
    raw = found.cast_column("image", datasets.Image(decode=False))
    assert [row["image"]["bytes"] for row in raw] == IMAGES
    assert [row["image_id"] for row in raw] == [record.image_id for record in RECORDS]
    rows = duckdb.sql(
        f"SELECT label, min(identity), count(*), sum(octet_length(image.bytes)) "
        f"FROM '{written}/data/*.parquet' GROUP BY label ORDER BY label"
    ).fetchall()
    assert rows == [
        (k, f"p/{k}", EACH, sum(map(len, IMAGES[k * EACH : k * EACH + EACH])))
        for k in range(COUNT // EACH)
    ]
    exported = tmp_path / "exported.parquet"
    found.cast_column("label", datasets.ClassLabel(names=[f"n{k}" for k in range(12)])).to_parquet(
        str(exported)
    )
    again = list(reader(exported).records())
    assert [(r.image, r.label, r.identity) for r in again] == [
        (r.image, r.label, r.identity) for r in RECORDS
    ]
