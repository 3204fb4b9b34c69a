import numpy as np
import pytest

from raypipe import storage
from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import (
    CleanEvidence,
    Identity,
    Image,
    ScreenEvidence,
    from_table,
    row_digest,
    to_table,
)
from raypipe.manifest import Counts, Manifest, Origin, read_manifest, summarise, write_manifest


def person(number: int, images: int = 3) -> Identity:
    rng = np.random.default_rng(number)
    return Identity(
        identity_id=f"base/{number:03d}",
        index=number,
        source="base",
        images=[
            Image(
                image_id=f"{k}.jpg",
                data=rng.bytes(20),
                source="somewhere",
                embedding=rng.normal(size=8).astype(np.float32) if k else None,
                similarity=0.1 * k,
                rejected="clean:other_person" if k == 2 else None,
            )
            for k in range(images)
        ],
        clean=CleanEvidence(rule="share", threshold=0.6, cluster_sizes=[3, 1]),
        screen=ScreenEvidence(nearest="base/001", nearest_similarity=0.25) if number % 2 else None,
    )


def same(one: Identity, other: Identity) -> bool:
    return row_digest(one) == row_digest(other)


def test_rows_survive_the_table_exactly():
    people = [person(n, images) for n, images in enumerate((3, 0, 1))]
    back = from_table(to_table(people))
    assert all(same(a, b) for a, b in zip(people, back, strict=True))
    assert back[0].images[1].embedding.dtype == np.float32
    assert back[0].images[0].embedding is None and back[2].clean == people[2].clean


def test_a_slice_of_a_table_reads_like_the_rows_alone():
    people = [person(n) for n in range(6)]
    back = from_table(to_table(people).slice(2, 3))
    assert [item.identity_id for item in back] == ["base/002", "base/003", "base/004"]
    assert all(same(a, b) for a, b in zip(people[2:5], back, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda p: setattr(p, "rejected", "x:y"),
        lambda p: setattr(p.images[0], "data", b"other"),
        lambda p: setattr(p.images[1], "embedding", p.images[1].embedding + 1e-6),
        lambda p: setattr(p.clean, "threshold", 0.61),
        lambda p: p.images.reverse(),
    ],
)
def test_every_change_of_a_row_changes_its_digest(change):
    changed = person(1)
    change(changed)
    assert not same(person(1), changed)


def test_content_digest_does_not_depend_on_files_or_order(tmp_path):
    people = [person(n) for n in range(5)]
    write_rows(str(tmp_path / "a"), "x.parquet", people)
    write_rows(str(tmp_path / "b"), "1.parquet", people[3:][::-1])
    write_rows(str(tmp_path / "b"), "2.parquet", people[:3])
    (counts_a, digest_a), (counts_b, digest_b) = (summarise(str(tmp_path / x)) for x in "ab")
    assert digest_a == digest_b
    assert counts_a.images == counts_b.images == 15
    assert counts_a.images_kept == 10 and counts_a.rejected_images == {"clean:other_person": 5}


def test_an_identity_twice_is_an_error(tmp_path):
    write_rows(str(tmp_path), "x.parquet", [person(1), person(1)])
    with pytest.raises(UserError, match="base/001.*twice"):
        summarise(str(tmp_path))


def test_counts_of_tables_are_those_of_rows_one_by_one(tmp_path):
    people = [person(n, images) for n, images in enumerate((3, 0, 4, 1, 3, 5))]
    people[2].rejected = "clean:double"  # and one of its images for a reason of its own
    people[4].source = people[5].source = "new"
    people[5].rejected = "clean:double"
    one_by_one = Counts()
    for item in people:
        reasons = [image.rejected for image in item.images]
        one_by_one.add(item.source, item.rejected, reasons)
    write_rows(str(tmp_path), "x.parquet", people[:4])
    write_rows(str(tmp_path), "y.parquet", people[4:])
    found, _ = summarise(str(tmp_path))
    assert found.rejected_images == {"clean:other_person": 4, "clean:double": 7}
    one_by_one.bytes = found.bytes
    assert found == one_by_one


def test_named_rows_are_found_in_whatever_file_they_are(tmp_path):
    people = [person(n) for n in range(40)]
    write_rows(str(tmp_path), "x.parquet", people[::2])
    write_rows(str(tmp_path), "y.parquet", people[1::2])
    wanted = ["base/039", "base/000", "base/900", "base/020"]
    found = FaceSet(str(tmp_path)).read(wanted)
    assert [item.index for item in found] == [39, 0, 20]
    assert all(same(item, people[item.index]) for item in found)


def test_reading_by_id_and_embeddings_alone(tmp_path):
    people = [person(n) for n in range(5)]
    write_rows(str(tmp_path), "x.parquet", people)
    face_set = FaceSet(str(tmp_path))
    assert [p.identity_id for p in face_set.read(["base/004", "base/001"])] == [
        "base/004",
        "base/001",
    ]
    embedded = list(face_set.iter_embeddings())
    assert embedded[2].image_ids == ["1.jpg", "2.jpg"]
    assert embedded[2].image_rejected == [None, "clean:other_person"]
    np.testing.assert_array_equal(embedded[2].embeddings[0], people[2].images[1].embedding)


def test_a_folder_without_rows_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(UserError, match="not a face set"):
        FaceSet(str(tmp_path)).files()
    storage.write_bytes(str(tmp_path / "rows/x.parquet"), b"PAR1 nonsense")
    with pytest.raises(UserError, match="x.parquet"):
        list(FaceSet(str(tmp_path)).iter_identities())


def test_manifest_round_trip_and_what_changed(tmp_path):
    before = Origin(job="clean", settings={"a": {"b": 1}}, inputs={"ingest": "x"}, models={})
    write_manifest(str(tmp_path), Manifest(origin=before, counts={"n": 1}, content_digest="d"))
    manifest = read_manifest(str(tmp_path))
    assert manifest is not None and manifest.origin == before
    after = Origin(job="clean", settings={"a": {"b": 2}}, inputs={"ingest": "x"}, models={"w": "1"})
    assert after.changes(before) == ["settings.a.b 1 → 2", "models.w nothing → 1"]


def test_nobody_asked_for_is_nobody_read(tmp_path):
    row = Identity(identity_id="a", index=0, source="base", images=[])
    write_rows(str(tmp_path), "0.parquet", [row])
    assert FaceSet(str(tmp_path)).read([]) == []
    assert [found.identity_id for found in FaceSet(str(tmp_path)).read(["b", "a"])] == ["a"]
