import numpy as np
import pytest

from raypipe.errors import UserError
from raypipe.identities import Identity, Image, row_digest
from raypipe.images import decode, encode_jpeg, encode_png
from raypipe.refill import refill

SETTINGS = {"images_per_identity": 20, "seed": 1, "jpeg_quality": 95}


def person(count: int, *, rejected: int = 0, sizes: tuple[int, ...] = (24,)) -> Identity:
    rng = np.random.default_rng(count)
    images = [
        Image(
            image_id=f"augment-{k:03d}" if k == 1 else f"{k}.png",
            data=encode_png(rng.integers(0, 256, (sizes[k % len(sizes)], 24, 3), dtype=np.uint8)),
            source="in",
            rejected="clean:other_person" if k < rejected else None,
        )
        for k in range(count)
    ]
    return Identity(identity_id=f"p{count}", index=0, source="base", images=images)


def test_missing_images_are_augmented_ones_of_kept_parents():
    before = person(13, rejected=3)
    ids = [image.image_id for image in before.images]
    after = refill(person(13, rejected=3), **SETTINGS)
    assert [image.image_id for image in after.images[:13]] == ids
    assert [row.data for row in after.images[:13]] == [row.data for row in before.images]
    assert len(after.kept) == 20
    made = after.images[13:]
    assert len(made) == 10
    assert all(image.generator == image.source == "augment" for image in made)
    assert {image.parent for image in made} <= set(ids[3:])
    assert len({image.image_id for image in after.images}) == 23
    assert len({image.data for image in made}) == 10
    assert all(decode(image.data, source="x").shape == (24, 24, 3) for image in made)


def test_surplus_images_are_marked_and_stay():
    after = refill(person(30, rejected=2), **SETTINGS)
    reasons = [image.rejected for image in after.images]
    assert len(after.images) == 30
    assert reasons.count("assemble:surplus") == 8
    assert reasons.count("clean:other_person") == 2
    assert len(after.kept) == 20


def test_stratified_images_are_spread_over_their_similarity():
    def measured() -> Identity:
        one = person(30)
        for image, angle in zip(one.images, np.linspace(-1, 1, 30), strict=True):
            image.embedding = np.array([np.cos(angle), np.sin(angle)], np.float32)
        return one

    found = refill(measured(), **SETTINGS | {"images_per_identity": 5}, stratified=True)
    # The centre is between images 14 and 15. Images k and 29 - k are as far from it, and have the
    # ranks 2 k and 2 k + 1, rounding decides which; those taken are 0, 7, 14, 21 and 29.
    places = sorted(min(k, 29 - k) for k, image in enumerate(found.images) if not image.rejected)
    assert places == [0, 3, 7, 10, 14]
    again = refill(measured(), **SETTINGS | {"images_per_identity": 5, "seed": 2}, stratified=True)
    assert [image.rejected for image in again.images] == [image.rejected for image in found.images]
    with pytest.raises(UserError, match="raypipe embed"):
        refill(person(30), **SETTINGS, stratified=True)


def test_the_same_seed_gives_the_same_bytes_and_sizes_may_differ():
    one, again, other = (
        refill(person(5, sizes=(24, 16)), **{**SETTINGS, "seed": seed}) for seed in (1, 1, 2)
    )
    assert row_digest(one) == row_digest(again) != row_digest(other)
    heights = {image.image_id: decode(image.data, source="x").shape[0] for image in one.images}
    assert all(heights[image.image_id] == heights[image.parent] for image in one.images[5:])
    assert set(heights.values()) == {16, 24}


def test_a_kept_image_that_cannot_be_decoded_is_named():
    broken = person(3)
    broken.images[2].data = encode_jpeg(np.zeros((8, 8, 3), np.uint8))[:60]
    with pytest.raises(UserError, match=r"p3/2\.png"):
        refill(broken, **SETTINGS)
