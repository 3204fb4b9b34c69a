"""The generators that paint images of a person: one contract, and a class for each.

Everything that is drawn depends on (seed, identity, image, attempt). A new generator is a class
with this contract, an entry in `open_painter`, its fields in `PainterConfig`, and words for it in
the dataset card (`raypipe.new_people`) and the report (`expansion_figures`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypedDict

import numpy as np
import torch

from raypipe import estimators, perturb
from raypipe.attributes import AttributeControl
from raypipe.config.expand import PainterConfig
from raypipe.embedders import Embedder
from raypipe.generator_losses import FaceFeatures
from raypipe.identities import Identity, Image
from raypipe.models.vec2face import Vec2Face, to_pixels
from raypipe.models.vec2face_sizes import INFERENCE
from raypipe.seeding import generator

if TYPE_CHECKING:
    from raypipe.models.cemiface import CemiFace


@dataclass(frozen=True, kw_only=True)
class Order:
    """Images of one identity that are to be painted.

    Attributes:
        identity: whose.
        origin: image, or vector without a picture, that they are made from.
        numbers: which of the identity's images, each in [0, count).
        count: images of the identity, whoever paints them.
        attempt: how often they were drawn before.
        dials: (n,) a value of the painter's dial for each; None: as its configuration says.
    """

    identity: Identity
    origin: Image
    numbers: Sequence[int]
    count: int
    attempt: int
    dials: np.ndarray | None = None

    @property
    def vector(self) -> np.ndarray:
        """float32 (D,), raw: the embedding of the origin."""
        assert self.origin.embedding is not None
        return self.origin.embedding


class Painter(Protocol):
    """Paints images of a person.

    Attributes:
        name: what images name as their generator.
        weights: hex SHA-256 of its file.
        features: numbers of the vectors that it takes.
        dials: the ends of its dial.
        rising: whether more of the dial gives more similarity.
    """

    @property
    def name(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def features(self) -> int: ...
    @property
    def dials(self) -> tuple[float, float]: ...
    @property
    def rising(self) -> bool: ...

    def paint(self, order: Order) -> tuple[np.ndarray, list[bool]]:
        """uint8 (n, 112, 112, 3), and for each image whether it shows what was asked for."""


class _Drawn(TypedDict):
    """From what a vector's noise is drawn."""

    seed: int
    identity_id: str
    attempt: int


class Vec2FacePainter:
    """Paints noisy vectors, moved to their attributes. The dial is the standard deviation of the
    noise, the same law for all images.

    Args:
        network: as `Vec2Face.prepare` makes it ready.
        weights: hex SHA-256 of its file.
        device: where the network is.
        scale: unit of the noise, unless the configuration states one.
        seed: of the run.
        attributes: moves vectors until their images show what `config.attributes` asks for.
    """

    name: ClassVar = "vec2face"
    # Twice the spread of the class means is noise in which no person is left.
    dials: ClassVar = (0.0, 2.0)
    rising: ClassVar = False

    def __init__(
        self,
        config: PainterConfig,
        network: Vec2Face,
        *,
        weights: str,
        device: torch.device,
        scale: float,
        seed: int,
        attributes: AttributeControl | None = None,
    ) -> None:
        self.weights = weights
        self.features = network.sizes.vector
        self._perturbation = config.perturbation
        self._scale = config.perturbation.scale or scale
        self._network = network
        self._device = device
        self._seed = seed
        self._attributes = attributes

    def paint(self, order: Order) -> tuple[np.ndarray, list[bool]]:
        """As the contract says."""
        tokens = self._network.sizes.side**2
        name = order.identity.identity_id
        drawn = [
            INFERENCE.draw(generator(self._seed, name, number, f"tokens:{order.attempt}"), tokens)
            for number in order.numbers
        ]
        noise = torch.from_numpy(np.stack([noise for noise, _ in drawn]))
        rates = torch.tensor([rate for _, rate in drawn], dtype=torch.float64)
        inputs = [torch.from_numpy(self.vary(order)), noise, rates]
        moved, noise, rates = (value.to(self._device) for value in inputs)
        reached = [True] * len(moved)
        if self._attributes is not None:
            person = torch.from_numpy(order.vector).to(self._device)
            wanted = moved.new_tensor(self._attributes.config.values_for(order.numbers))
            found = self._attributes.optimise(moved, person.expand_as(moved), wanted, noise, rates)
            moved, reached = found.vectors, found.converged.tolist()
        with torch.inference_mode():
            return to_pixels(self._network(moved, noise, rates)), reached

    def vary(self, order: Order) -> np.ndarray:
        """The vectors that images are painted from, float32 (n, D)."""
        identity, vector, numbers = order.identity, order.vector, order.numbers
        drawn = _Drawn(seed=self._seed, identity_id=identity.identity_id, attempt=order.attempt)
        if order.dials is not None:
            return perturb.noisy(vector, numbers, order.dials * self._scale, **drawn)
        if self._perturbation.kind == "mixture":
            return perturb.mixture(vector, numbers, count=order.count, scale=self._scale, **drawn)
        if self._perturbation.kind == "reference":
            return perturb.reference(vector, numbers, scale=self._scale, **drawn)
        near = identity.screen.nearest_similarity if identity.screen else None
        return perturb.directed(
            vector,
            numbers,
            lowest=self._perturbation.lowest,
            nearest=-1.0 if near is None else near,
            **drawn,
        )


class CemiFacePainter:
    """Paints by diffusion from the vector as the inquiry face, and a wanted similarity m: the dial.

    Args:
        network: as `CemiFace.prepare` makes it ready.
        weights: hex SHA-256 of its file.
        device: where the network is.
        seed: of the run.
    """

    name: ClassVar = "cemiface"
    dials: ClassVar = (-1.0, 1.0)
    rising: ClassVar = True

    def __init__(
        self,
        config: PainterConfig,
        network: "CemiFace",
        *,
        weights: str,
        device: torch.device,
        seed: int,
    ) -> None:
        self.weights = weights
        self.features = network.sizes.vector
        self._similarity = config.similarity
        self._steps = config.steps
        self._network = network
        self._device = device
        self._seed = seed

    def paint(self, order: Order) -> tuple[np.ndarray, list[bool]]:
        """As the contract says; an image shows nothing else than was asked for."""
        side = self._network.sizes.side
        name = order.identity.identity_id
        noises, drawn = [], []
        for number in order.numbers:
            rng = generator(self._seed, name, number, f"cemiface:{order.attempt}")
            noises.append(rng.standard_normal((3, side, side), dtype=np.float32))
            drawn.append(rng.random())
        if order.dials is not None:
            wanted = order.dials
        elif isinstance(self._similarity, tuple):
            low, high = self._similarity
            wanted = low + (high - low) * np.array(drawn)
        else:
            wanted = np.full(len(drawn), self._similarity)
        inputs = (
            np.tile(order.vector, (len(drawn), 1)),
            wanted.astype(np.float32),
            np.stack(noises),
        )
        vectors, similarity, noise = (torch.from_numpy(each).to(self._device) for each in inputs)
        with torch.inference_mode():
            faces = self._network.sample(vectors, similarity, noise, self._steps)
        return to_pixels(faces), [True] * len(drawn)


def open_painter(
    config: PainterConfig,
    path: str,
    *,
    weights: str,
    device: torch.device,
    embedder: Embedder,
    scale: float,
    centre: Sequence[float],
    seed: int,
) -> Painter:
    """The painter of a configuration, ready on a device.

    Args:
        path: of its weights.
        weights: their hex SHA-256.
        scale: spread of the set's class means.
        centre: mean of the set's class means, D numbers: what features of all people share.

    Raises:
        UserError: where the file is not a network of the kind.
    """
    if config.kind == "cemiface":
        from raypipe.models.cemiface import CemiFace  # diffusers takes seconds to import

        unet = CemiFace.from_checkpoint(path).prepare(device)
        return CemiFacePainter(config, unet, weights=weights, device=device, seed=seed)
    network = Vec2Face.from_checkpoint(path).prepare(device)
    attributes = None
    if config.attributes is not None:
        attributes = AttributeControl(
            config.attributes,
            network,
            FaceFeatures(embedder),
            [estimators.load(goal, device) for goal in config.attributes.goals],
            spread=config.perturbation.scale or scale,
            centre=torch.tensor(centre, device=device),
        )
    return Vec2FacePainter(
        config,
        network,
        weights=weights,
        device=device,
        scale=scale,
        seed=seed,
        attributes=attributes,
    )
