"""From one reference image or vector to many images of that person, with Vec2Face.

Everything that is drawn depends on (seed, identity, image, attempt), and a model batch holds images
of one identity only, so an identity comes out the same whatever else is expanded with it.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch

from raypipe import perturb
from raypipe.attributes import AttributeControl
from raypipe.config.expand import ExpandConfig
from raypipe.embedders import Embedder
from raypipe.errors import UserError
from raypipe.faceset import NO_PICTURE, ExpandEvidence, Identity, Image
from raypipe.images import decode, encode_jpeg
from raypipe.models.vec2face import Vec2Face, to_pixels
from raypipe.models.vec2face_sizes import INFERENCE
from raypipe.recheck import Others
from raypipe.seeding import generator

GENERATOR = "vec2face"


def reference(identity: Identity) -> Image:
    """The image whose embedding an identity's images are made from: the first kept one, or the
    vector without a picture.

    Raises:
        UserError: where it has neither, or the image has no embedding.
    """
    found = [image for image in identity.images if image.rejected in (None, NO_PICTURE)]
    if not found or found[0].embedding is None:
        raise UserError(
            f"expand: identity {identity.identity_id!r} has no image with an embedding to expand; "
            "run `raypipe embed` on its set, or leave its source out of expand.sources"
        )
    return found[0]


class _Drawn(TypedDict):
    """From what a vector's noise is drawn."""

    seed: int
    identity_id: str
    attempt: int


class Expander:
    """Makes the images of identities.

    Args:
        network: as `Vec2Face.prepare` makes it ready.
        weights: hex SHA-256 of its file.
        device: where the network is.
        embedder: of the features that the network takes.
        scale: unit of the noise on vectors.
        seed: of the run.
        attributes: moves vectors until their images show what `config.attributes` asks for.

    Raises:
        UserError: where the network takes features of another length.
    """

    def __init__(
        self,
        config: ExpandConfig,
        network: Vec2Face,
        *,
        weights: str,
        device: torch.device,
        embedder: Embedder,
        others: Others,
        scale: float,
        seed: int,
        attributes: AttributeControl | None = None,
    ) -> None:
        if network.sizes.vector != embedder.dimension:
            raise UserError(
                f"expand.weights: the generator takes features of {network.sizes.vector} numbers "
                f"and the embedder makes {embedder.dimension}; name the embedder that the "
                "generator was trained with"
            )
        self._config = config
        self._network = network
        self._weights = weights
        self._device = device
        self._embedder = embedder
        self._others = others
        self._scale = scale
        self._seed = seed
        self._attributes = attributes

    def expand(self, identity: Identity) -> None:
        """Adds images to an identity: those that pass, and the refused ones with their reasons.

        An image that is refused is drawn again, with other noise, up to `attempts` times.

        Raises:
            UserError: where the identity has nothing to be made from.
        """
        origin = reference(identity)
        vector = origin.embedding
        assert vector is not None
        wanted = max(self._config.images - len(identity.kept), 0)
        missing, drawn = list(range(wanted)), 0
        unreached: list[str] = []
        for attempt in range(self._config.attempts):
            if not missing:
                break
            vectors = self._vary(identity, vector, missing, wanted, attempt)
            made, reached = self._make(identity, origin, vectors, missing, attempt)
            unreached += [image.image_id for image, at in zip(made, reached, strict=True) if not at]
            self._others.check(identity.identity_id, vector, made)
            identity.images += made
            drawn += len(made)
            missing = [
                number for number, image in zip(missing, made, strict=True) if image.rejected
            ]
        identity.expand = ExpandEvidence(
            wanted=wanted,
            drawn=drawn,
            threshold=self._others.thresholds.own,
            unreached=unreached,
        )

    def _vary(
        self,
        identity: Identity,
        vector: np.ndarray,
        numbers: Sequence[int],
        count: int,
        attempt: int,
    ) -> np.ndarray:
        """The vectors of some images, float32 (n, D)."""
        settings = self._config.perturbation
        drawn = _Drawn(seed=self._seed, identity_id=identity.identity_id, attempt=attempt)
        if settings.kind == "mixture":
            return perturb.mixture(vector, numbers, count=count, scale=self._scale, **drawn)
        if settings.kind == "reference":
            return perturb.reference(vector, numbers, scale=self._scale, **drawn)
        near = identity.screen.nearest_similarity if identity.screen else None
        return perturb.directed(
            vector,
            numbers,
            lowest=settings.lowest,
            nearest=-1.0 if near is None else near,
            **drawn,
        )

    def _make(
        self,
        identity: Identity,
        origin: Image,
        vectors: np.ndarray,
        numbers: Sequence[int],
        attempt: int,
    ) -> tuple[list[Image], list[bool]]:
        """Paints vectors, moved to their attributes, and embeds what was painted; also says which
        are at their attributes."""
        tokens = self._network.sizes.side**2
        drawn = [
            INFERENCE.draw(
                generator(self._seed, identity.identity_id, number, f"tokens:{attempt}"), tokens
            )
            for number in numbers
        ]
        noise = torch.from_numpy(np.stack([noise for noise, _ in drawn]))
        rates = torch.tensor([rate for _, rate in drawn], dtype=torch.float64)
        inputs = [torch.from_numpy(vectors), noise, rates]
        moved, noise, rates = (value.to(self._device) for value in inputs)
        reached = [True] * len(vectors)
        if self._attributes is not None:
            person = torch.from_numpy(origin.embedding).to(self._device)
            wanted = moved.new_tensor(self._attributes.config.values_for(numbers))
            found = self._attributes.optimise(moved, person.expand_as(moved), wanted, noise, rates)
            moved, reached = found.vectors, found.converged.tolist()
        with torch.inference_mode():
            faces = to_pixels(self._network(moved, noise, rates))
        encoded = [encode_jpeg(face, self._config.jpeg_quality) for face in faces]
        # What is stored is what is checked.
        stored = np.stack([decode(data, source=GENERATOR) for data in encoded])
        embeddings = self._embedder.embed(stored)
        suffix = f".{attempt}" if attempt else ""
        made = [
            Image(
                image_id=f"{GENERATOR}-{number:04d}{suffix}",
                data=data,
                source=GENERATOR,
                parent=origin.image_id,
                generator=GENERATOR,
                weights=self._weights,
                seed=self._seed,
                embedding=embedding,
            )
            for number, data, embedding in zip(numbers, encoded, embeddings, strict=True)
        ]
        return made, reached
