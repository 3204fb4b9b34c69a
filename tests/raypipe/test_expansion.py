"""What is made of an identity: how many images, which vectors, and the same every time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from raypipe import estimators
from raypipe.attributes import AttributeControl
from raypipe.config.embed import EmbedderConfig
from raypipe.config.expand import ExpandConfig, PerturbationConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.expansion import Expander, reference
from raypipe.faceset import NO_PICTURE, Identity, Image, ScreenEvidence, row_digest
from raypipe.generator_losses import FaceFeatures
from raypipe.images import decode, encode_jpeg
from raypipe.models.dcgan import DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import Vec2Face
from raypipe.models.vec2face_sizes import SMALL
from raypipe.models.vec2face_small import start_from_dcgan
from raypipe.recheck import NOT_THE_PERSON, Others, Thresholds

LOOSE = Thresholds(own=-1.0, other=1.1, galleries={})
STRICT = replace(LOOSE, own=1.1)
RNG = np.random.default_rng(0)
VECTOR = (0.12 * RNG.standard_normal(128)).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> Vec2Face:
    """Untrained but for its DCGAN: it paints faces, though not of anybody."""
    torch.manual_seed(0)
    made = Vec2Face(SMALL, position_std=1.0)
    dcgan = DCGANGenerator()
    load_into(dcgan, shipped("dcgan_digiface.safetensors"))
    start_from_dcgan(made.im_decoder, dcgan.eval())
    return made.prepare("cpu")


@pytest.fixture(scope="module")
def embedder():
    torch.set_num_threads(1)
    return open_embedder(EmbedderConfig(kind="dlib"), "cpu")


@pytest.fixture
def expander(network, embedder):
    def make(thresholds: Thresholds = LOOSE, seed: int = 3, **settings) -> Expander:
        company = Others(["vec/0"], VECTOR[None], [], thresholds)
        config = ExpandConfig(**{"images": 4, **settings})
        control = None
        if config.attributes:
            estimator = estimators.load(config.attributes.goals[0], "cpu")
            control = AttributeControl(
                config.attributes, network, FaceFeatures(embedder), [estimator], spread=0.04
            )
        return Expander(
            config,
            network,
            weights="0f" * 32,
            device=torch.device("cpu"),
            embedder=embedder,
            others=company,
            scale=0.04,
            seed=seed,
            attributes=control,
        )

    return make


def person(name: str = "vec/0", rejected: str | None = NO_PICTURE, data: bytes = b"") -> Identity:
    image = Image(
        image_id="first", data=data, source="drawn", embedding=VECTOR.copy(), rejected=rejected
    )
    return Identity(identity_id=name, index=0, source="vec", images=[image])


def test_a_vector_becomes_images_that_know_where_they_come_from(expander, embedder) -> None:
    identity = person()
    expander().expand(identity)
    assert [image.image_id for image in identity.kept] == [f"vec2face-000{k}" for k in range(4)]
    assert (identity.expand.wanted, identity.expand.drawn) == (4, 4)
    for image in identity.kept:
        face = decode(image.data, source="test")
        assert face.shape == (112, 112, 3)
        assert (image.parent, image.generator, image.weights) == ("first", "vec2face", "0f" * 32)
        again = embedder.embed(np.stack([face]))[0]
        assert np.allclose(again, image.embedding, atol=1e-4)
        cosine = again @ VECTOR / np.linalg.norm(again) / np.linalg.norm(VECTOR)
        assert image.similarity == pytest.approx(float(cosine), abs=1e-4)


def test_the_reference_picture_is_one_of_the_images_wanted(expander) -> None:
    data = encode_jpeg(np.zeros((112, 112, 3), np.uint8))
    identity = person(rejected=None, data=data)
    expander(perturbation=PerturbationConfig(kind="reference")).expand(identity)
    assert len(identity.kept) == 4
    assert identity.expand.wanted == 3
    assert identity.images[0].data == data


def test_refused_images_are_drawn_again_so_often_and_kept_with_their_reason(expander) -> None:
    identity = person()
    expander(STRICT, attempts=3, images=2).expand(identity)
    made = identity.images[1:]
    assert [image.image_id for image in made] == [
        f"vec2face-000{k}{suffix}" for suffix in ("", ".1", ".2") for k in range(2)
    ]
    assert {image.rejected for image in made} == {NOT_THE_PERSON}
    assert len({image.data for image in made}) == 6
    assert (identity.expand.wanted, identity.expand.drawn) == (2, 6)


def test_an_identity_is_the_same_whatever_else_is_expanded(expander) -> None:
    alone, other, beside = person(), person("vec/1"), person()
    expander().expand(alone)
    second = expander()
    second.expand(other)
    second.expand(beside)
    assert row_digest(alone) == row_digest(beside)
    assert alone.images[1].data != other.images[1].data
    reseeded = person()
    expander(seed=4).expand(reseeded)
    assert reseeded.images[1].data != alone.images[1].data


def test_directed_images_stay_on_their_side_of_the_bisector(expander) -> None:
    identity = person()
    identity.screen = ScreenEvidence(nearest="vec/9", nearest_similarity=0.98)
    made = expander(perturbation=PerturbationConfig(kind="directed"), images=50)
    vectors = made._vary(identity, VECTOR, range(50), 50, 0).astype(np.float64)
    cosines = vectors @ VECTOR / np.linalg.norm(vectors, axis=1) / np.linalg.norm(VECTOR)
    assert cosines.min() >= np.sqrt(1.98 / 2)
    assert cosines.max() - cosines.min() > 0.003


def test_images_that_do_not_show_what_was_asked_for_are_named(expander) -> None:
    goal = {"name": "quality", "estimator": "raypipe.estimators:face_quality", "goal": "at_least"}
    unreached = {}
    for value in (-100.0, 100.0):
        attributes = {"goals": [goal | {"value": value, "tolerance": 1}], "steps": 2}
        identity = person()
        expander(images=2, attributes=attributes | {"identity_distance": 2.0}).expand(identity)
        unreached[value] = identity.expand.unreached
        assert len(identity.kept) == 2
    assert unreached == {-100.0: [], 100.0: ["vec2face-0000", "vec2face-0001"]}


def test_what_cannot_be_expanded_says_why(expander, network, embedder) -> None:
    identity = person()
    identity.images[0].embedding = None
    with pytest.raises(UserError, match=r"identity 'vec/0' has no image with an embedding"):
        reference(identity)
    embedder.dimension = 64
    try:
        with pytest.raises(UserError, match="features of 128 numbers and the embedder makes 64"):
            expander()
    finally:
        embedder.dimension = 128
