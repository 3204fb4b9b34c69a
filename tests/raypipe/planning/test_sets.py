"""Bytes of sets, against sets that are written."""

from dataclasses import replace

import numpy as np
import pytest

from raypipe import storage
from raypipe.faceset import write_rows
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg, resize
from raypipe.planning.sets import (
    Group,
    counted,
    embedding_bytes,
    face_set_bytes,
    training_set_bytes,
)
from raypipe.training_set import FLAT, to_parquet, to_tar

PEOPLE, IMAGES, DIMENSION = 32, 12, 128
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def people():
    def image(number):
        rgb = resize(RNG.integers(0, 256, (14, 14, 3), np.uint8), (112, 112))
        vector = RNG.standard_normal(DIMENSION).astype(np.float32)
        name = f"{number:03d}.jpg"
        return Image(image_id=name, data=encode_jpeg(rgb), source=name, embedding=vector)

    return [
        Identity(
            identity_id=f"base/{index:06d}",
            index=index,
            source="base",
            images=[image(number) for number in range(IMAGES)],
        )
        for index in range(PEOPLE)
    ]


def group(people, **changes):
    sizes = [len(image.data) for person in people for image in person.images]
    found = Group(
        identities=len(people),
        kept=len(people),
        images=len(sizes),
        images_kept=len(sizes),
        image_bytes=float(np.mean(sizes)),
        embedded=len(sizes),
    )
    return replace(found, **changes)


@pytest.mark.parametrize("files", [1, 4])
def test_a_face_set_is_as_large_as_said(people, files, tmp_path):
    each = PEOPLE // files
    for number in range(files):
        write_rows(str(tmp_path), f"{number}.parquet", people[number * each : (number + 1) * each])
    written = sum(entry.size for entry in storage.listdir(str(tmp_path / "rows")))
    expected = face_set_bytes([group(people)], DIMENSION, each)
    assert expected == pytest.approx(written, rel=0.08)


def test_an_embedding_beyond_the_dictionary_takes_its_floats():
    assert embedding_bytes(1e9, 512) == pytest.approx(4 * 512, rel=0.01)
    # Under it, an index of 15 bits beside each.
    assert embedding_bytes(2**15, 128) == 128 * (4 + 15 / 8)


def test_a_training_set_is_as_large_as_said(people):
    import pyarrow as pa

    rows = [
        {
            "key": f"{person.index:07d}_{number:04d}", "data": image.data, "label": person.index,
            "identity_id": person.identity_id, "image_id": image.image_id, "source": "base",
            "phase": 0, "position": person.index * IMAGES + number, "origin": image.source,
            "similarity": 0.5,
        }
        for person in people
        for number, image in enumerate(person.images)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=FLAT)
    written = len(to_parquet(table)) + len(to_tar(table))
    expected = training_set_bytes(len(rows), group(people).image_bytes)
    assert expected == pytest.approx(written, rel=0.05)


def test_losing_and_adding():
    before = Group(
        identities=100, kept=80, images=1000, images_kept=800, image_bytes=10, embedded=900
    )
    after = before.lose(people=0.25, images=0.5)
    assert (after.identities, after.kept, after.images, after.images_kept) == (100, 60, 1000, 300)
    grown = after.with_images(1000, 30, embedded=True)
    assert (grown.images, grown.images_kept, grown.image_bytes, grown.embedded) == (
        2000, 1300, 20, 1900,
    )  # fmt: skip


def test_a_manifest_takes_the_place_of_estimates():
    estimate = Group(
        identities=100, kept=90, images=1000, images_kept=900, image_bytes=10, embedded=500
    )
    found = counted({"identities": 50, "identities_kept": 40, "images": 500}, estimate)
    assert (found.identities, found.kept, found.images, found.images_kept) == (50, 40, 500, 0)
    assert found.embedded == 250 and found.image_bytes == 10
