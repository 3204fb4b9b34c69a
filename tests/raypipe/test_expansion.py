"""What is made of an identity: how many images, which vectors, and the same every time."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from raypipe import estimators
from raypipe.attributes import AttributeControl
from raypipe.config.embed import EmbedderConfig
from raypipe.config.expand import ExpandConfig, PerturbationConfig
from raypipe.dial import Curve
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.expansion import Expander, reference
from raypipe.generator_losses import FaceFeatures
from raypipe.identities import NO_PICTURE, Identity, Image, ScreenEvidence, row_digest
from raypipe.images import decode, encode_jpeg
from raypipe.models.cemiface import CemiFace
from raypipe.models.cemiface import Sizes as DiffusionSizes
from raypipe.models.dcgan import DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import Vec2Face
from raypipe.models.vec2face_sizes import SMALL
from raypipe.models.vec2face_small import start_from_dcgan
from raypipe.painters import CemiFacePainter, Order, Vec2FacePainter
from raypipe.recheck import NOT_THE_PERSON, OUT_OF_BAND, Others, Thresholds

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


@pytest.fixture(scope="module")
def diffusion() -> CemiFace:
    """Untrained: it paints noise."""
    torch.manual_seed(0)
    sizes = DiffusionSizes(
        vector=128, side=16, channels=(32, 32), attention=(1,), head=32, condition=16
    )
    return CemiFace(sizes).prepare("cpu")


@pytest.fixture
def expander(network, diffusion, embedder):
    def make(
        thresholds: Thresholds = LOOSE, seed: int = 3, curves: Sequence[Curve] = (), **settings
    ) -> Expander:
        company = Others(["vec/0"], VECTOR[None], [], thresholds)
        config = ExpandConfig(**{"images": 4, **settings})
        common = {"weights": "0f" * 32, "device": torch.device("cpu"), "seed": seed}
        painters = []
        for painter in config.painters:
            if painter.kind == "cemiface":
                painters.append(CemiFacePainter(painter, diffusion, **common))
                continue
            control = None
            if painter.attributes:
                estimator = estimators.load(painter.attributes.goals[0], "cpu")
                control = AttributeControl(
                    painter.attributes, network, FaceFeatures(embedder), [estimator], spread=0.04
                )
            painters.append(
                Vec2FacePainter(painter, network, scale=0.04, attributes=control, **common)
            )
        return Expander(
            config, painters, embedder=embedder, others=company, seed=seed, curves=curves
        )

    return make


def person(name: str = "vec/0", rejected: str | None = NO_PICTURE, data: bytes = b"") -> Identity:
    image = Image(
        image_id="first", data=data, source="drawn", embedding=VECTOR.copy(), rejected=rejected
    )
    return Identity(identity_id=name, index=0, source="vec", images=[image])


def order(identity: Identity, numbers, **more) -> Order:
    given = {"count": len(numbers), "attempt": 0, **more}
    return Order(identity=identity, origin=identity.images[0], numbers=numbers, **given)


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


def test_directed_images_stay_on_their_side_of_the_bisector(network) -> None:
    identity = person()
    identity.screen = ScreenEvidence(nearest="vec/9", nearest_similarity=0.98)
    painter = Vec2FacePainter(
        ExpandConfig(perturbation=PerturbationConfig(kind="directed")),
        network,
        weights="",
        device=torch.device("cpu"),
        scale=0.04,
        seed=3,
    )
    vectors = painter.vary(order(identity, range(50))).astype(np.float64)
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


MIXED = {
    "steps": 2,
    "kind": "cemiface",
    "weights": "stands for `diffusion`",
    "similarity": (-0.5, 0.5),
    "mix": [
        {"share": 0.3, "perturbation": {"kind": "reference"}},
        {"share": 0.2, "perturbation": {"kind": "directed"}},
    ],
}


def test_several_generators_share_the_images_of_an_identity(expander) -> None:
    identity, again, other = person(), person(), person("vec/1")
    for one in (identity, again, other):
        expander(images=10, **MIXED).expand(one)
    assert row_digest(identity) == row_digest(again)
    made = identity.images[1:]
    assert [int(image.image_id[-4:]) for image in made] == list(range(10))
    for image in made:
        assert image.image_id.rpartition("-")[0] == image.generator == image.source
        assert image.parent == "first" and image.similarity is not None
    makers = [[image.generator for image in one.images[1:11]] for one in (identity, other)]
    assert all(sorted(each) == ["cemiface"] * 5 + ["vec2face"] * 5 for each in makers)
    assert makers[0] != makers[1]
    assert len({image.data for image in made}) == 10


def test_a_refused_image_is_drawn_again_by_its_generator(expander) -> None:
    identity = person()
    expander(STRICT, images=10, attempts=2, **MIXED).expand(identity)
    first, second = identity.images[1:11], identity.images[11:]
    assert [f"{image.image_id}.1" for image in first] == [image.image_id for image in second]
    assert not {image.data for image in first} & {image.data for image in second}


@pytest.mark.parametrize("kind", ["vec2face", "cemiface"])
def test_the_dial_of_a_painter_changes_its_images(kind, network, diffusion) -> None:
    common = {"weights": "", "device": torch.device("cpu"), "seed": 3}
    config = ExpandConfig(kind=kind, weights="stands for a network here")
    painter = (
        CemiFacePainter(config, diffusion, **common)
        if kind == "cemiface"
        else Vec2FacePainter(config, network, scale=0.04, **common)
    )
    assert (painter.name, painter.features) == (kind, 128)
    low, high = painter.dials
    dials = np.array([low, high, low])
    faces, reached = painter.paint(order(person(), [0, 0, 0], dials=dials))
    assert (faces.shape, faces.dtype, reached) == ((3, 112, 112, 3), np.uint8, [True] * 3)
    assert (faces[0] == faces[2]).all() and (faces[0] != faces[1]).any()
    alone, _ = painter.paint(order(person(), [0], dials=dials[:1]))
    assert np.abs(alone[0].astype(int) - faces[0]).max() <= 1  # rounding by the batch
    free, _ = painter.paint(order(person(), [0, 1]))
    assert (free[0] != free[1]).any()


def test_the_wanted_similarity_of_cemiface_is_fixed_or_uniform(diffusion, monkeypatch) -> None:
    told = []
    # What the network is told cannot be read off what an untrained one paints.
    monkeypatch.setattr(
        diffusion,
        "sample",
        lambda vectors, similarity, noise, steps: (
            told.append((vectors, similarity, noise, steps)),
            torch.zeros(len(noise), 3, 112, 112),
        )[1],
    )
    common = {"weights": "", "device": torch.device("cpu"), "seed": 3}
    for similarity in (-0.25, (-0.5, 0.25)):
        config = ExpandConfig(kind="cemiface", weights="x", similarity=similarity, steps=7)
        CemiFacePainter(config, diffusion, **common).paint(order(person(), range(200)))
    (vectors, fixed, noise, steps), (_, spread, same_noise, _) = told
    assert (fixed == -0.25).all() and steps == 7
    assert (vectors == torch.from_numpy(VECTOR)).all()
    assert -0.5 <= spread.min() < -0.45 and 0.2 < spread.max() < 0.25
    assert noise.std() == pytest.approx(1, abs=0.02) and (noise == same_noise).all()


def curve_of(made: Expander, identity: Identity) -> Curve:
    (curve,) = made.measure([identity])
    assert len(identity.images) == 1, "what is painted to measure is no image of the set"
    return curve


def test_the_curve_of_a_generator_is_measured_and_monotone(expander) -> None:
    curve = curve_of(expander(), person())
    assert (curve.dials[0], curve.dials[-1], len(curve.dials)) == (0, 2, 11)
    assert list(curve.fitted) == sorted(curve.fitted, reverse=True)
    assert all(-1 <= value <= 1 for value in curve.means)
    assert curve == curve_of(expander(), person())


def test_images_outside_the_band_are_refused_and_drawn_again(expander) -> None:
    curve = curve_of(expander(), person())
    low, high = np.quantile(curve.means, [0.2, 0.8])
    assert low < high
    identity = person()
    made = expander(band=(low, high), curves=[curve], images=12, attempts=4)
    made.expand(identity)
    assert {image.rejected for image in identity.images[1:]} == {None, OUT_OF_BAND}
    for image in identity.images[1:]:
        assert (image.rejected is None) == (low <= image.similarity <= high)
    again = person()
    made.expand(again)
    assert row_digest(again) == row_digest(identity), "nothing is learnt from one for another"


def test_a_band_aims_no_image_at_what_would_not_pass(expander, monkeypatch) -> None:
    curve = Curve(dials=[0, 1], means=[1, 0], spreads=[0, 0], fitted=[1, 0])
    made = expander(replace(LOOSE, own=0.5), band=(0.2, 0.8), curves=[curve], images=50, attempts=1)
    asked = []
    paint = Vec2FacePainter.paint
    # Paints as ever; the values that it was asked for leave no trace in the images.
    monkeypatch.setattr(
        Vec2FacePainter, "paint", lambda *both: asked.append(both[1].dials) or paint(*both)
    )
    made.expand(person())
    assert np.sort(asked[0]) == pytest.approx(np.linspace(0.203, 0.497, 50), abs=0.004)


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
