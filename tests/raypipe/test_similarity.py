import numpy as np
import pytest

from raypipe import similarity
from raypipe.errors import UserError
from raypipe.expansion import reference
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import NO_PICTURE, Identity, Image
from raypipe.templates import template, unit


def at(degrees: float, length: float = 3.0) -> np.ndarray:
    angle = np.radians(degrees)
    return np.array([length * np.cos(angle), length * np.sin(angle)], np.float32)


def image(name: str, degrees: float | None, **values: str | None) -> Image:
    embedding = None if degrees is None else at(degrees)
    return Image(image_id=name, data=b"x", source="s", embedding=embedding, **values)


def person(*images: Image, number: int = 0) -> Identity:
    return Identity(identity_id=f"p{number}", index=number, source="base", images=list(images))


def degrees(identity: Identity) -> list[float]:
    """Angles to the centre; -1 where there is no similarity."""
    found = np.degrees(np.arccos(similarity.similarities(identity).astype(np.float64)))
    return np.nan_to_num(found, nan=-1).round(1).tolist()


def test_the_centre_is_the_template_of_what_came_into_the_job():
    found = person(
        image("a", -30),
        image("b", 30),
        image("c", 0),
        image("d", 90, rejected="clean:other_person"),
    )
    assert degrees(found) == [30, 30, 0, -1]
    kept = np.stack([one.embedding for one in found.kept])
    assert similarity.similarities(found)[:3] == pytest.approx(unit(kept) @ template(kept))
    # Marks of this job change nothing.
    before = similarity.similarities(found).tolist()
    found.images[0].rejected, found.images[1].rejected = "assemble:surplus", "assemble:out_of_band"
    assert similarity.similarities(found)[:3].tolist() == before[:3]
    # The length of an embedding does not matter, nor what a job wrote as its similarity.
    found.images[0].embedding = at(-30, 0.1)
    found.images[0].similarity = 0.99
    assert degrees(found) == [30, 30, 0, -1]


@pytest.mark.parametrize("rejected", [None, NO_PICTURE])
def test_what_was_made_of_one_is_measured_to_that_one(rejected):
    one = person(
        image("ref", 0, rejected=rejected),
        image("made-0", 40, parent="ref"),
        image("made-1", 60, parent="ref", rejected="expand:not_the_person"),
        image("made-2", 50, parent="ref"),
    )
    assert degrees(one) == [-1 if rejected else 0, 40, -1, 50]
    assert reference(one).image_id == "ref"
    # Also after the reference itself was filtered out, and with augmented images.
    one.images[0].rejected = rejected or "assemble:out_of_band"
    one.images.append(image("augment-000", None, parent="made-2"))
    assert degrees(one) == [-1 if rejected else 0, 40, -1, 50, 50]


def test_originals_that_were_added_to_keep_their_common_centre():
    one = person(image("a", -20), image("b", 20), image("made", 10, parent="a"))
    assert degrees(one)[0] == pytest.approx(23.5, abs=0.1)


def test_images_without_an_embedding():
    one = person(image("a", 0), image("augment-000", None, parent="a"), image("b", None))
    assert degrees(one) == [0, 0, -1]
    with pytest.raises(UserError, match="'b' of identity 'p0' has no embedding.*raypipe embed"):
        similarity.of_kept(one)
    assert np.isnan(similarity.similarities(person(image("a", None)))).all()
    assert similarity.of_kept(person()).tolist() == []


def test_the_band_has_both_ends_and_loses_nothing():
    one = person(*(image(str(k), angle) for k, angle in enumerate([0, 0, 0, 20, -20, 60, -60])))
    before = similarity.similarities(one).tolist()
    similarity.reject_outside(one, (float(before[5]), float(before[3])))
    reasons = [found.rejected for found in one.images]
    assert reasons == [similarity.OUT_OF_BAND] * 3 + [None] * 4
    assert similarity.similarities(one).tolist() == before
    whole = person(*(image(str(k), angle) for k, angle in enumerate([0, 180, 90])))
    similarity.reject_outside(whole, (-1.0, 1.0))
    assert len(whole.kept) == 3


def test_a_whole_set_by_labels_whatever_the_files(tmp_path):
    people = [
        person(
            *(image(str(k), 7.0 * k * n, rejected="assemble:surplus" if k == n else None)
              for k in range(4)),
            number=n,
        )
        for n in range(4)
    ]  # fmt: skip
    labels = {"p2": 0, "p0": 1, "p3": 2}
    expected = np.concatenate([similarity.of_kept(people[n]) for n in (2, 0, 3)])
    for files in (1, 3):
        root = str(tmp_path / str(files))
        for number in range(files):
            write_rows(root, f"{number}.parquet", people[number::files])
        found = similarity.of_set(FaceSet(root), labels, 3)
        assert found.dtype == np.float32
        assert found.tolist() == expected.tolist()


def test_the_nearest_other_identity_is_that_of_a_plain_search(tmp_path):
    people = [
        person(image("a", 0), image("b", 10), number=0),
        person(image("a", 70), image("b", 80, rejected="clean:other_person"), number=1),
        person(image("a", 40), number=2),
        person(image("a", 41), number=3),
    ]
    write_rows(str(tmp_path), "0.parquet", people)
    # p3 is not in the set, so p2 has only p0 (5°) and p1 (70°) beside it.
    labels = {"p0": 1, "p1": 0, "p2": 2}
    found = similarity.to_nearest(FaceSet(str(tmp_path)), labels)
    assert np.degrees(np.arccos(found.astype(np.float64))) == pytest.approx([30, 35, 30], abs=0.1)
    twins = {"p2": 0, "p3": 1}
    assert similarity.to_nearest(FaceSet(str(tmp_path)), twins).tolist() == pytest.approx(
        [np.cos(np.radians(1))] * 2, abs=1e-6
    )


def test_an_identity_without_embeddings_has_no_nearest(tmp_path):
    write_rows(
        str(tmp_path), "0.parquet", [person(image("a", None)), person(image("a", 3), number=1)]
    )
    with pytest.raises(UserError, match=r"assemble\.nearest: identity 'p0' has no embedding"):
        similarity.to_nearest(FaceSet(str(tmp_path)), {"p0": 0, "p1": 1})
