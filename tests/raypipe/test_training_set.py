import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from raypipe import exchange, storage, training_set
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.images import decode, encode_jpeg, encode_png

PER_IDENTITY = 4


def person(number: int) -> Identity:
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (PER_IDENTITY + 1, 8, 8, 3), dtype=np.uint8)
    images = [
        Image(
            image_id=f"{k}.jpg",
            data=encode_png(rgb) if k == 1 else encode_jpeg(rgb),
            source=f"in/{number}/{k}.jpg",
            parent="0.jpg" if k == 3 else None,
            generator="augment" if k == 3 else None,
            seed=7 if k == 3 else None,
            rejected="clean:other_person" if k == 2 else None,
        )
        for k, rgb in enumerate(pixels)
    ]
    return Identity(identity_id=f"idé/{number}", index=number, source="base", images=images)


PEOPLE = [person(n) for n in range(9)]
LABELS = {f"idé/{n}": (n, int(n > 3)) for n in range(8)}
POSITIONS = np.random.default_rng(1).permutation(8 * PER_IDENTITY)


def ordered() -> pa.Table:
    return training_set.to_rows(PEOPLE, LABELS, POSITIONS, PER_IDENTITY).sort_by("position")


def test_rows_are_the_kept_images_of_labelled_identities():
    rows = ordered()
    assert rows["position"].to_pylist() == list(range(8 * PER_IDENTITY))
    for row in rows.to_pylist():
        number, image = (int(part) for part in row["key"].split("_"))
        assert row["label"] == number
        kept = PEOPLE[number].kept[image]
        assert row["position"] == POSITIONS[number * PER_IDENTITY + image]
        for name, value in [
            ("data", kept.data),
            ("image_id", kept.image_id),
            ("origin", kept.source),
            ("parent", kept.parent),
            ("generator", kept.generator),
            ("seed", kept.seed),
            ("source", "base"),
            ("phase", LABELS[PEOPLE[number].identity_id][1]),
        ]:
            assert row[name] == value, name


def test_similarity_is_null_without_an_embedding_and_of_the_parent_where_augmented():
    one = person(0)
    for image, vector in zip(one.images[:2], np.eye(2, dtype=np.float32), strict=True):
        image.embedding = vector
    rows = training_set.to_rows([one], LABELS, POSITIONS, PER_IDENTITY)
    assert rows["image_id"].to_pylist() == ["0.jpg", "1.jpg", "3.jpg", "4.jpg"]
    half = np.float32(np.sqrt(0.5))
    assert rows["similarity"].to_pylist() == [pytest.approx(half)] * 3 + [None]
    sample = training_set.to_tar(rows)
    assert b'"similarity": null' in sample
    assert b"NaN" not in sample
    assert ordered()["similarity"].null_count == len(ordered())


def test_parquet_reads_back_with_images_hugging_face_can_show(tmp_path):
    data = training_set.to_parquet(ordered())
    table = pq.read_table(pa.BufferReader(data))
    assert table.schema.equals(training_set.SCHEMA, check_metadata=True)
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert list(features) == table.column_names
    for name in table.column_names[1:]:
        assert features[name]["dtype"] == str(table.schema.field(name).type)
    flat = ordered().to_pylist()
    for row, expected in zip(table.to_pylist(), flat, strict=True):
        assert row["image"]["bytes"] == expected["data"]
        suffix = "png" if expected["image_id"] == "1.jpg" else "jpg"
        assert row["image"]["path"] == f"{expected['key']}.{suffix}"
        assert row["label"] == expected["label"]
        assert decode(row["image"]["bytes"], source="x").shape == (8, 8, 3)
    assert training_set.to_parquet(ordered()) == data


def test_parquet_is_cut_into_row_groups_and_keeps_images_as_they_are():
    rows = pa.concat_tables([ordered()] * 40)
    found = pq.ParquetFile(pa.BufferReader(training_set.to_parquet(rows))).metadata
    assert [found.row_group(k).num_rows for k in range(found.num_row_groups)] == [1000, 280]
    image = found.row_group(0).column(0)
    assert image.path_in_schema == "image.bytes"
    assert image.compression == "UNCOMPRESSED"


def test_tar_reads_back_with_webdataset(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(training_set.to_tar(ordered()))
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    for sample, row in zip(samples, ordered().to_pylist(), strict=True):
        assert sample["__key__"] == row["key"]
        assert int(sample["cls"]) == row["label"]
        assert sample["png" if row["image_id"] == "1.jpg" else "jpg"] == row["data"]
        about = json.loads(sample["json"])
        assert about == {name: row[name] for name in about}
        assert about["identity_id"].startswith("idé/")
        assert about["position"] == row["position"]
    decoded = next(iter(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8")))
    assert decoded["cls"] == ordered()["label"][0].as_py()


def test_tar_has_nothing_of_the_machine_or_the_moment():
    data = training_set.to_tar(ordered())
    assert training_set.to_tar(ordered()) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
        assert len(members) == 3 * len(ordered())
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)
            assert member.uname == member.gname == "bigdata"


@pytest.mark.parametrize("files", [[9], [3, 3, 3], [1, 8]])
@pytest.mark.parametrize("shard_size", [5, 32, 100])
def test_exchange_gives_the_same_shards_whatever_the_files(tmp_path, files, shard_size):
    root, start = str(tmp_path), 0
    for number, count in enumerate(files):
        write_rows(root, f"{number}.parquet", PEOPLE[::-1][start : start + count])
        start += count
    groups = exchange.file_groups(FaceSet(root), group_bytes=1)
    assert [len(group) for group in groups] == [1] * len(files)
    shards = training_set.shard_ranges(len(POSITIONS), shard_size)
    for number, group in enumerate(groups):
        tables = (
            training_set.to_rows([identity], LABELS, POSITIONS, PER_IDENTITY)
            for identity in FaceSet(root).iter_identities(group)
        )
        exchange.spread(exchange.exchange_file(root, number), tables, shards)
    for shard, positions in enumerate(shards):
        expected = ordered().slice(shard * shard_size, shard_size)
        assert exchange.gather(root, len(groups), shard, positions).equals(expected)


@pytest.mark.slow
def test_a_bucket_gets_the_same_files(s3_bucket, tmp_path):
    held = training_set.shard_ranges(len(POSITIONS), 20)
    digests = []
    for root in (f"{s3_bucket}/work/assemble", str(tmp_path)):
        write_rows(root, "0.parquet", PEOPLE[:5])
        write_rows(root, "1.parquet", PEOPLE[5:])
        for number, path in enumerate(FaceSet(root).files()):
            rows = training_set.to_rows(
                FaceSet(root).iter_identities([path]), LABELS, POSITIONS, PER_IDENTITY
            )
            exchange.spread(exchange.exchange_file(root, number), [rows], held)
        for shard, positions in enumerate(held):
            gathered = exchange.gather(root, 2, shard, positions)
            digests.append(training_set.write_shard(root, shard, lambda rows=gathered: rows))
        training_set.remove_unfinished(root)
        assert training_set.finished_shards(root) == 2
    assert digests[:2] == digests[2:]


def test_groups_hold_about_their_bytes(tmp_path):
    for number in range(5):
        storage.write_bytes(str(tmp_path / f"rows/{number}.parquet"), b"x" * 10)
    storage.write_bytes(str(tmp_path / "rows/other.txt"), b"x")
    groups = exchange.file_groups(FaceSet(str(tmp_path)), 25)
    assert [[path[-9] for path in group] for group in groups] == [["0", "1"], ["2", "3"], ["4"]]


@pytest.mark.parametrize("missing", [0, 3, 9])
def test_a_missing_image_is_noticed(tmp_path, missing):
    rows = training_set.to_rows(PEOPLE[:8], LABELS, POSITIONS, PER_IDENTITY)
    holed = rows.filter(pa.compute.not_equal(rows["position"], missing))
    shards = training_set.shard_ranges(32, 10)
    assert shards[3] == range(30, 32)
    exchange.spread(exchange.exchange_file(str(tmp_path), 0), [holed], shards)
    with pytest.raises(AssertionError, match="shard 0"):
        exchange.gather(str(tmp_path), 1, 0, shards[0])
    assert len(exchange.gather(str(tmp_path), 1, 1, shards[1])) == 10


def test_shards_that_are_there_are_not_made_again(tmp_path):
    root = str(tmp_path)
    first = training_set.write_shard(root, 3, ordered)

    def never() -> pa.Table:
        raise AssertionError("made again")

    assert training_set.write_shard(root, 3, never) == first
    storage.delete(storage.join(root, "webdataset", "shard-000003.tar"))
    assert training_set.finished_shards(root) == 0
    assert training_set.write_shard(root, 3, ordered) == first
    assert training_set.finished_shards(root) == 1
    (tmp_path / "parquet/shard-000004.parquet.abc.tmp").write_bytes(b"half")
    training_set.remove_unfinished(root)
    names = [entry.name for entry in storage.listdir(root, recursive=True) if entry.is_file]
    assert names == ["shard-000003.parquet", "shard-000003.tar"]


def test_index_lists_the_tars(tmp_path):
    training_set.write_index(str(tmp_path), [10, 10, 3])
    index = storage.read_json(str(tmp_path / "webdataset/index.json"))
    assert index["wids_version"] == 1
    assert index["shardlist"][2] == {"url": "shard-000002.tar", "nsamples": 3}


def test_content_digest_is_over_the_files_in_order():
    one = training_set.content_digest(["a", "b", "c"])
    assert one == training_set.content_digest(iter(["a", "b", "c"]))
    others = [["b", "a", "c"], ["a", "b"], ["ab", "c"]]
    assert one not in [training_set.content_digest(digests) for digests in others]


def test_the_similarity_to_the_nearest_identity_is_in_every_row():
    nearest = np.linspace(0.1, 0.4, len(LABELS)).astype(np.float32)
    rows = training_set.to_rows(PEOPLE, LABELS, POSITIONS, PER_IDENTITY, nearest)
    assert rows["nearest"].to_numpy() == pytest.approx(nearest[rows["label"].to_numpy()])
    without = training_set.to_rows(PEOPLE, LABELS, POSITIONS, PER_IDENTITY)
    assert without["nearest"].null_count == len(without)
