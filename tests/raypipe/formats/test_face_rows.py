"""A face set as a source: what is kept of it, with where it came from."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.formats import DamagedError, Record, open_reader
from raypipe.formats.face_rows import FaceRowsReader
from raypipe.identities import SCHEMA, Identity, Image
from raypipe.images import encode_jpeg


def picture(seed: int) -> bytes:
    return encode_jpeg(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8))


def person(number: int) -> Identity:
    rng = np.random.default_rng(number)
    images = [
        Image(
            image_id=f"{k}.jpg",
            data=picture(100 * number + k),
            source=f"somewhere/{k}",
            parent="0.jpg" if k else None,
            generator="vec2face" if k else None,
            weights="ab" * 32 if k else None,
            seed=k if k else None,
            embedding=rng.standard_normal(4).astype(np.float32) if k != 1 else None,
            rejected="clean:other_person" if k == 2 else None,
        )
        for k in range(4)
    ]
    if number == 4:
        for image in images:
            image.rejected = "clean:inconsistent"
    return Identity(
        identity_id=f"new/{number}",
        index=10 * number,
        source="new",
        images=images if number != 5 else [],
        rejected="screen:in_gallery" if number == 2 else None,
    )


PEOPLE = [person(number) for number in range(8)]
# Number 2 is rejected, 4 has no kept image, 5 has none at all.
KEPT = [PEOPLE[number] for number in (0, 1, 3, 6, 7)]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """Files in another order than the identities, as after a resumed run."""
    for name, numbers in (("a", (3, 4)), ("b", (0, 1, 2)), ("c", (7, 5, 6))):
        write_rows(str(tmp_path), f"{name}.parquet", [PEOPLE[number] for number in numbers])
    return str(tmp_path)


def opened(path: str) -> FaceRowsReader:
    found = open_reader(path, source="made")
    assert isinstance(found, FaceRowsReader)
    return found


def read_all(reader: FaceRowsReader) -> tuple[list[Record], DamagedError | None]:
    found: list[Record] = []
    try:
        for record in reader.records():
            found.append(record)
    except DamagedError as error:
        return found, error
    return found, None


def test_kept_images_of_kept_identities_labelled_by_index(rows):
    labels = {item.identity_id: label for label, item in enumerate(KEPT)}
    found = list(opened(rows).records())
    assert [record.identity for record in found[::3]] == ["new/3", "new/0", "new/1", "new/7",
                                                          "new/6"]  # fmt: skip
    people = {item.identity_id: item for item in PEOPLE}
    for start in range(0, len(found), 3):
        kept = people[found[start].identity].kept
        for record, image in zip(found[start : start + 3], kept, strict=True):
            assert record.image == image.data
            assert record.image_id == image.image_id
            assert record.label == labels[record.identity]
            assert (record.feature is None) == (image.embedding is None)
            if image.embedding is not None:
                assert np.array_equal(record.feature, image.embedding)


def test_survey_counts_them_and_sees_the_order(rows, tmp_path):
    survey = opened(rows).survey()
    assert (survey.images, survey.in_order) == (15, False)
    assert survey.labels.tolist() == [0, 1, 2, 3, 4]
    assert survey.counts.tolist() == [3] * 5
    write_rows(str(tmp_path / "ordered"), "a.parquet", PEOPLE)
    assert opened(str(tmp_path / "ordered")).survey().in_order


def test_ingest_takes_the_provenance_along(rows):
    reader = opened(rows)
    listed = list(reader.identities())
    assert [x.identity.identity_id for x in listed] == ["new/3", "new/0", "new/1", "new/7", "new/6"]
    reader = pickle.loads(pickle.dumps(reader))
    people = {item.identity_id: item for item in PEOPLE}
    for listing in listed:
        identity = reader.read(listing.identity)
        assert (identity.source, identity.rejected) == ("made", None)
        kept = people[identity.identity_id].kept
        for image, original in zip(identity.images, kept, strict=True):
            assert (image.data, image.image_id) == (original.data, original.image_id)
            for name in ("parent", "generator", "weights", "prompt", "seed"):
                assert getattr(image, name) == getattr(original, name)
            assert image.embedding is None
            assert image.source.rpartition("/")[0].startswith(("a.parquet@", "b.parq", "c.parq"))
    assert listed[2].identity.images[2].source == "b.parquet@1/3"


def test_an_image_that_cannot_be_decoded_is_rejected_with_its_origin(tmp_path):
    people = [person(0)]
    people[0].images[3].data = b"\xff\xd8\xffnothing"
    write_rows(str(tmp_path), "a.parquet", people)
    reader = opened(str(tmp_path))
    found = reader.read(next(iter(reader.identities())).identity)
    assert [image.rejected for image in found.images] == [None, None, "ingest:corrupt"]
    assert found.images[2].generator == "vec2face"


def test_a_file_that_is_cut_off_is_damage_and_the_rest_is_read(rows):
    path = Path(rows) / "rows" / "b.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    found, error = read_all(opened(rows))
    assert "rows/b.parquet: byte" in str(error)
    assert "the file is cut off" in str(error)
    assert {(record.identity, record.label) for record in found} == {
        ("new/3", 0), ("new/6", 1), ("new/7", 2),
    }  # fmt: skip


def test_two_identities_of_one_index_are_refused(tmp_path):
    people = [person(0), person(1)]
    people[1].index = 0
    write_rows(str(tmp_path), "a.parquet", people)
    with pytest.raises(UserError, match="two identities of it have one index"):
        opened(str(tmp_path)).survey()


@pytest.mark.parametrize("column", ["identity_id", "index", "rejected", "images"])
def test_rows_without_what_is_needed_are_no_face_set(rows, column):
    path = Path(rows) / "rows" / "a.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([column]), path)
    with pytest.raises(UserError, match=r"a\.parquet: not a face set"):
        opened(rows).survey()


def test_images_of_another_type_are_no_face_set(rows):
    kind = pa.struct([field for field in SCHEMA.field("images").type.value_type
                      if field.name != "data"])  # fmt: skip
    path = Path(rows) / "rows" / "a.parquet"
    table = pa.table({"identity_id": ["x"], "index": [1], "rejected": pa.nulls(1, pa.string()),
                      "images": pa.array([[]], pa.list_(kind))})  # fmt: skip
    pq.write_table(table, path)
    with pytest.raises(UserError, match="images have no 'data' as expected"):
        opened(rows).survey()


def test_places_outside_the_set_are_refused(rows):
    reader = opened(rows)
    assert reader.fetch(["b.parquet@0/1"]) == [PEOPLE[0].images[1].data]
    for source in (
        "../b.parquet@0/1",
        "b.parquet@9/0",
        "b.parquet@0",
        "b.parquet",
        "b.parquet@0/x",
    ):
        with pytest.raises(UserError, match="no file|no row"):
            reader.fetch([source])
    assert "no bytes of an image" in str(reader.fetch(["b.parquet@0/7"])[0])


@pytest.mark.slow
def test_a_bucket_gives_the_same(s3_bucket, rows):
    root = f"{s3_bucket}/formats/faces"
    for path in FaceSet(rows).files():
        write_rows(root, path.rpartition("/")[2], list(FaceSet(rows).iter_identities([path])))
    there, here = list(opened(root).records()), list(opened(rows).records())
    assert [record[:4] for record in there] == [record[:4] for record in here]
    reader = opened(root)
    identity = next(iter(reader.identities())).identity
    assert [image.data for image in reader.read(identity).images] == [
        image.data for image in PEOPLE[3].kept
    ]
