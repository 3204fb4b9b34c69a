"""The reference actor: every picture becomes an embedded crop, or says why not and shrinks."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest
import torch

from actors.reference import ReferenceActor
from raypipe import orl
from raypipe.aligners import open_aligner
from raypipe.config.align import AlignerConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import open_embedder
from raypipe.identities import Identity, Image, SeedEvidence, Try
from raypipe.images import decode, encode_jpeg, encode_png, extension

ALIGNER = {"kind": "dlib", "margin": 0.25}
WALL = np.full((600, 400, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def actor() -> Iterator[ReferenceActor]:
    """The actor sets the threads of its process; here that is everybody's."""
    before, before_cv = torch.get_num_threads(), cv2.getNumThreads()
    yield ReferenceActor(aligner=ALIGNER, gates={}, embedder={"kind": "dlib"}, device="cpu")
    torch.set_num_threads(before)
    cv2.setNumThreads(before_cv)


def photograph(person: int) -> np.ndarray:
    photo = orl.photographs()[10 * person]
    with open(photo.path, "rb") as file:
        return decode(file.read(), source=photo.path)


def picture(number: int, data: bytes | np.ndarray, rejected: str | None = None) -> Image:
    data = data if isinstance(data, bytes) else encode_png(data)
    return Image(
        image_id=f"seed-{number:02d}", data=data, source="model", seed=7, rejected=rejected
    )


def second(data: np.ndarray, number: int = 0, rejected: str | None = None) -> Image:
    image = picture(number, data, rejected)
    image.image_id, image.parent = f"{image.image_id}-pose", image.image_id
    return image


def identity(index: int, *images: Image, tries: int = 0) -> Identity:
    evidence = SeedEvidence(prompt="a face", negative="", attributes={})
    evidence.tries += [Try(faces=0, rejected="seed:no_face") for _ in range(tries)]
    return Identity(
        identity_id=f"seed/{index:07d}",
        index=index,
        source="seed",
        images=list(images),
        seed=evidence,
    )


def tries(one: Identity) -> list[str | None]:
    assert one.seed is not None
    return [found.rejected for found in one.seed.tries]


def reasons(one: Identity) -> list[str | None]:
    return [image.rejected for image in one.images]


def test_a_face_becomes_its_embedded_crop(actor: ReferenceActor) -> None:
    shown = photograph(0)
    (out,) = actor([identity(0, picture(0, shown))])
    face = open_aligner(AlignerConfig(**ALIGNER)).align(shown)
    assert face is not None
    (image,) = out.images
    assert np.array_equal(decode(image.data, source=""), face.crop)
    assert extension(image.data) == "png"
    expected = open_embedder(EmbedderConfig(kind="dlib"), "cpu").embed(face.crop[None])[0]
    assert image.embedding is not None and np.array_equal(image.embedding, expected)
    assert (image.rejected, image.source, image.seed, out.rejected) == (None, "model", 7, None)
    (measured,) = out.seed.tries
    assert (measured.faces, measured.rejected) == (1, None)
    assert None not in (measured.size, measured.sharpness, measured.yaw, measured.flatness)


def test_what_is_refused_says_why_and_shrinks(actor: ReferenceActor) -> None:
    blurred = cv2.GaussianBlur(photograph(1), (0, 0), 3)
    people = np.concatenate([photograph(0), photograph(1)], axis=1)
    out = actor(
        [
            identity(0, picture(0, WALL)),
            identity(1, picture(0, blurred)),
            identity(2, picture(0, people)),
            identity(3, picture(0, b"no image")),
            identity(4, picture(0, encode_jpeg(photograph(2))[:-400])),
            identity(5, picture(0, np.zeros((64, 64, 3), np.uint8), "seed:safety_checker")),
        ]
    )
    assert [(*tries(one), *reasons(one)) for one in out] == [
        (reason, reason)
        for reason in (
            "seed:no_face",
            "seed:blurred",
            "seed:several_faces",
            "seed:not_an_image",
            "seed:truncated",
            "seed:safety_checker",
        )
    ]
    assert [one.seed.tries[0].faces for one in out] == [0, 1, 2, 0, 0, 0]
    assert all(one.images[0].embedding is None and one.rejected is None for one in out)
    shapes = [decode(one.images[0].data, source="").shape for one in out[:3]]
    assert shapes == [(256, 171, 3), (112, 92, 3), (112, 184, 3)]
    assert out[3].images[0].data == b"no image"


def test_only_the_newest_try_is_looked_at_and_only_once(actor: ReferenceActor) -> None:
    first = picture(0, WALL, "seed:no_face")
    (out,) = actor([identity(0, first, picture(1, photograph(0)), tries=1)])
    assert reasons(out) == ["seed:no_face", None]
    assert tries(out) == ["seed:no_face", None]
    assert out.images[0].data == encode_png(WALL)
    data, embedding = out.images[1].data, out.images[1].embedding
    (again,) = actor([out])
    assert again.images[1].data == data and again.images[1].embedding is embedding
    assert len(again.seed.tries) == 2


def test_others_pass_as_they_are(actor: ReferenceActor) -> None:
    given_up = identity(0, picture(0, photograph(0)))
    given_up.rejected = "seed:tries_used_up"
    base = identity(1, Image(image_id="1.png", data=encode_png(photograph(0)), source="folder"))
    base.seed, base.source = None, "base"
    out = actor([given_up, base])
    assert [one.images[0].embedding for one in out] == [None, None]
    assert [one.images[0].data for one in out] == [encode_png(photograph(0))] * 2


def test_embeddings_do_not_depend_on_the_company(actor: ReferenceActor) -> None:
    def some(*people: int) -> list[Identity]:
        return actor([identity(k, picture(0, photograph(k))) for k in people])

    together = some(3, 1, 2)
    for one in together:
        (alone,) = some(one.index)
        assert np.array_equal(one.images[0].embedding, alone.images[0].embedding)
        assert one.images[0].data == alone.images[0].data
        assert one.seed == alone.seed


def test_a_second_pass_that_passes_replaces_the_first(actor: ReferenceActor) -> None:
    (out,) = actor([identity(0, picture(0, photograph(0)))])
    of_first = out.seed.tries[0]
    out.images.append(second(photograph(1)))
    (out,) = actor([out])
    assert reasons(out) == ["seed:replaced_by_second_pass", None]
    assert tries(out) == [None]
    assert out.seed.tries[0] != of_first
    assert out.images[1].embedding is not None
    (again,) = actor([out])
    assert reasons(again) == ["seed:replaced_by_second_pass", None]
    (at_once,) = actor([identity(0, picture(0, photograph(0)), second(photograph(1)))])
    assert reasons(at_once) == reasons(out)
    assert at_once.seed == out.seed
    assert [image.data for image in at_once.images] == [image.data for image in out.images]


def test_a_second_pass_that_fails_fails_the_try(actor: ReferenceActor) -> None:
    (out,) = actor([identity(0, picture(0, photograph(0)))])
    out.images.append(second(WALL))
    blank = second(np.zeros((64, 64, 3), np.uint8), rejected="seed:safety_checker")
    out, blanked = actor([out, identity(1, picture(0, photograph(0)), blank)])
    assert reasons(out) == ["seed:no_face"] * 2
    assert tries(out) == ["seed:no_face"]
    assert reasons(blanked) == ["seed:safety_checker"] * 2
    assert tries(blanked) == ["seed:safety_checker"]


def test_a_second_pass_of_no_face_is_none(actor: ReferenceActor) -> None:
    (out,) = actor([identity(0, picture(0, WALL), second(photograph(1)))])
    assert reasons(out) == ["seed:no_face"] * 2
    assert tries(out) == ["seed:no_face"]
    assert out.images[1].embedding is None


def test_gates_are_those_of_the_configuration() -> None:
    strict = ReferenceActor(
        aligner=ALIGNER, gates={"min_size": 100}, embedder={"kind": "dlib"}, device="cpu"
    )
    assert tries(strict([identity(0, picture(0, photograph(0)))])[0]) == ["seed:small"]
