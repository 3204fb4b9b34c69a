"""The embedding actor: every kept image has its vector, whatever its neighbours are."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from actors.embed import EmbedActor
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import open_embedder
from raypipe.identities import Identity, Image
from raypipe.images import decode, encode_jpeg, encode_png, resize


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The actor sets the threads of its process; here that is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def picture(seed: int, side: int = 112) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return resize(coarse, (side, side))


def identity(index: int, datas: list[bytes]) -> Identity:
    images = [Image(image_id=str(k), data=data, source=f"s/{k}") for k, data in enumerate(datas)]
    return Identity(identity_id=f"id{index}", index=index, source="base", images=images)


def pngs(index: int, count: int) -> list[bytes]:
    return [encode_png(picture(100 * index + k)) for k in range(count)]


def vectors(one: Identity) -> np.ndarray:
    return np.stack([image.embedding for image in one.images if image.embedding is not None])


def test_embeddings_are_the_embedders_own_and_raw() -> None:
    out = EmbedActor({"kind": "dlib"}, device="cpu")([identity(0, pngs(0, 3))])
    crops = np.stack([decode(data, source="") for data in pngs(0, 3)])
    expected = open_embedder(EmbedderConfig(kind="dlib"), "cpu").embed(crops)
    assert np.array_equal(vectors(out[0]), expected)
    assert expected.dtype == np.float32
    assert np.abs(np.linalg.norm(expected, axis=1) - 1).min() > 0.05


def test_same_bytes_alone_in_company_and_in_another_order() -> None:
    actor = EmbedActor({"kind": "dlib"}, device="cpu")
    alone = [vectors(actor([identity(k, pngs(k, 2 + k))])[0]) for k in range(3)]
    together = actor([identity(k, pngs(k, 2 + k)) for k in (2, 0, 1)])
    assert [one.identity_id for one in together] == ["id2", "id0", "id1"]
    for one in together:
        assert np.array_equal(vectors(one), alone[one.index])


def test_a_large_identity_takes_several_batches() -> None:
    whole = vectors(EmbedActor({"kind": "dlib"}, device="cpu")([identity(0, pngs(0, 5))])[0])
    parts = vectors(
        EmbedActor({"kind": "dlib"}, images_per_batch=2, device="cpu")([identity(0, pngs(0, 5))])[0]
    )
    assert parts.shape == (5, 128)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_what_cannot_be_embedded_stays_with_its_reason() -> None:
    good = pngs(0, 2)
    one = identity(
        0,
        [
            good[0],
            encode_jpeg(picture(1))[:-300],
            b"no image",
            good[1],
            good[1],
            encode_png(picture(2))[:60],
        ],
    )
    one.images[4].rejected = "ingest:truncated"
    refused = identity(1, good)
    refused.rejected = "screen:not_unique"
    empty = identity(2, [b"no image"])
    out = EmbedActor({"kind": "dlib"}, device="cpu")([one, refused, empty])
    reasons = [image.rejected for image in out[0].images]
    assert reasons[:5] == [None, "embed:truncated", "embed:not_an_image", None, "ingest:truncated"]
    assert reasons[5] in ("embed:truncated", "embed:corrupt")
    assert [image.embedding is not None for image in out[0].images] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    clean = EmbedActor({"kind": "dlib"}, device="cpu")([identity(0, good)])
    assert np.array_equal(vectors(out[0]), vectors(clean[0]))
    assert all(image.embedding is None for image in out[1].images)
    assert out[2].images[0].rejected == "embed:not_an_image"


def test_another_size_is_resized() -> None:
    large = picture(7, 300)
    out = EmbedActor({"kind": "dlib"}, device="cpu")(
        [identity(0, [encode_png(large)]), identity(1, [encode_png(resize(large, (112, 112)))])]
    )
    assert np.array_equal(vectors(out[0]), vectors(out[1]))


def test_threads_are_the_ones_given() -> None:
    EmbedActor({"kind": "dlib"}, threads=2, device="cpu")
    assert torch.get_num_threads() == 2
