"""An image that was made is its identity's and nobody else's, or says why not."""

import numpy as np
import pytest

from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.recheck import (
    IN_GALLERY,
    NOT_THE_PERSON,
    SOMEBODY_ELSE,
    Others,
    Thresholds,
    calibrate,
    people_with_pictures,
)
from raypipe.templates import Gallery, unit

ANNA, BERTA, KNOWN = np.eye(3, 8, dtype=np.float32)
THRESHOLDS = Thresholds(own=0.5, other=0.9, galleries={"public": 0.95})


def others(*galleries: Gallery) -> Others:
    return Others(["anna", "berta"], np.stack([ANNA, BERTA]), galleries, THRESHOLDS)


def public() -> Gallery:
    return Gallery(
        name="public",
        names=["one", "two"],
        image_ids=["a", "b"],
        people=np.array([0, 1]),
        faces=np.stack([KNOWN, -KNOWN]),
    )


def checked(company: Others, *directions: np.ndarray) -> list[Image]:
    images = [
        Image(image_id=str(k), data=b"", source="", embedding=np.float32(3 * direction))
        for k, direction in enumerate(directions)
    ]
    company.check("anna", 20 * ANNA, images)
    return images


def test_who_is_refused_and_why() -> None:
    side = np.eye(8)[5]
    images = checked(
        others(public()),
        ANNA + side,  # 0.71 to her vector
        ANNA + 3 * side,  # 0.32
        ANNA + 0.1 * BERTA,
        ANNA + 1.01 * BERTA,  # 0.70, and 0.71 to the other one
        0.1 * ANNA + BERTA,
        0.1 * ANNA + KNOWN,
    )
    assert [image.rejected for image in images] == [
        None,
        NOT_THE_PERSON,
        None,
        SOMEBODY_ELSE,
        SOMEBODY_ELSE,
        IN_GALLERY,
    ]
    assert images[0].similarity == pytest.approx(0.5**0.5, abs=1e-6)
    assert (images[4].nearest, images[5].nearest) == ("berta", "gallery public: one")
    assert images[5].nearest_similarity == pytest.approx(1 / 1.01**0.5, abs=1e-6)


def test_who_is_alone_is_compared_with_nobody() -> None:
    alone = Others(["anna"], ANNA[None], [], THRESHOLDS)
    (image,) = checked(alone, ANNA)
    assert (image.rejected, image.nearest, image.nearest_similarity) == (None, None, None)


@pytest.fixture
def people(tmp_path) -> FaceSet:
    """120 people with five images each, one of them of somebody else and rejected."""
    rng = np.random.default_rng(0)
    rows = []
    for index, centre in enumerate(rng.standard_normal((120, 32))):
        vectors = centre + 0.4 * rng.standard_normal((5, 32))
        vectors[4] = 10
        images = [
            Image(
                image_id=str(k),
                data=b"",
                source="",
                embedding=np.float32(vector),
                rejected="clean:other_person" if k == 4 else None,
            )
            for k, vector in enumerate(vectors)
        ]
        rows.append(Identity(identity_id=f"p{index}", index=index, source="base", images=images))
    rows[7].rejected = "clean:inconsistent"
    write_rows(str(tmp_path), "0.parquet", rows)
    return FaceSet(str(tmp_path))


def test_thresholds_hold_their_rates_on_the_sets_own_faces(people: FaceSet) -> None:
    faces = people_with_pictures(people, 0)
    assert (len(faces.names), len(faces.faces)) == (119, 4 * 119)
    own, other = calibrate(faces, 0.01, 1e-4)
    centres = unit(np.stack([faces.faces[faces.people == k].sum(0) for k in range(119)]))
    similarity = centres @ faces.faces.T
    strangers = similarity[np.arange(119)[:, None] != faces.people]
    assert np.mean(strangers >= own.threshold) == pytest.approx(0.01, rel=0.05)
    assert own.threshold < other < 1
    assert own.recognised > 0.95


def test_a_set_too_small_for_the_rate_names_the_key(people: FaceSet) -> None:
    with pytest.raises(UserError, match=r"^expand: .* set expand\.false_match_rate to"):
        calibrate(people_with_pictures(people, 0), 1e-9, 1e-3)


def test_a_set_without_pictures_cannot_be_measured_on(tmp_path) -> None:
    row = Identity(identity_id="a", index=0, source="base", images=[])
    write_rows(str(tmp_path), "0.parquet", [row])
    with pytest.raises(UserError, match="no identity of .* has two images"):
        people_with_pictures(FaceSet(str(tmp_path)), 0)
