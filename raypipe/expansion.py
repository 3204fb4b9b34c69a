"""From one reference image or vector to many images of that person, each checked.

Everything that is drawn depends on (seed, identity, image, attempt), and a model batch holds images
of one identity only, so an identity comes out the same whatever else is expanded with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raypipe import dial
from raypipe.config.expand import ExpandConfig
from raypipe.dial import Aim, Curve
from raypipe.embedders import Embedder
from raypipe.errors import UserError
from raypipe.identities import NO_PICTURE, ExpandEvidence, Identity, Image
from raypipe.images import decode, encode_jpeg
from raypipe.painters import Order, Painter
from raypipe.recheck import OUT_OF_BAND, Others, similarities
from raypipe.shares import deal, stratify

_MEASURING = -1  # the attempt under which a curve is measured: no image of the set has it


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


@dataclass(frozen=True, kw_only=True)
class _Share:
    """What one painter makes of an identity.

    Attributes:
        numbers: of its images.
        aim: sets its dial; None without a band.
    """

    painter: Painter
    numbers: frozenset[int]
    aim: Aim | None


class Expander:
    """Makes the images of identities.

    Args:
        painters: one for each of `config.painters`.
        embedder: of the features that the networks take.
        seed: of the run.
        curves: one for each painter where the configuration has a band.

    Raises:
        UserError: where a network takes features of another length.
    """

    def __init__(
        self,
        config: ExpandConfig,
        painters: Sequence[Painter],
        *,
        embedder: Embedder,
        others: Others,
        seed: int,
        curves: Sequence[Curve] = (),
    ) -> None:
        for painter in painters:
            if painter.features != embedder.dimension:
                raise UserError(
                    f"expand.weights: the generator takes features of {painter.features} numbers "
                    f"and the embedder makes {embedder.dimension}; name the embedder that the "
                    "generator was trained with"
                )
        self._config = config
        self._painters = painters
        self._embedder = embedder
        self._others = others
        self._seed = seed
        self._curves = curves

    def expand(self, identity: Identity) -> None:
        """Adds images to an identity: those that pass, and the refused ones with their reasons.

        An image that is refused is drawn again by its painter, with other noise, up to `attempts`
        times.

        Raises:
            UserError: where the identity has nothing to be made from.
        """
        origin = reference(identity)
        wanted = max(self._config.images - len(identity.kept), 0)
        shares = self._shares(identity, wanted)
        missing, drawn = list(range(wanted)), 0
        unreached: list[str] = []
        for attempt in range(self._config.attempts):
            if not missing:
                break
            made: dict[int, Image] = {}
            for share in shares:
                numbers = [number for number in missing if number in share.numbers]
                if not numbers:
                    continue
                order = Order(
                    identity=identity,
                    origin=origin,
                    numbers=numbers,
                    count=wanted,
                    attempt=attempt,
                    dials=share.aim.dials(numbers) if share.aim else None,
                )
                images, reached = self._make(share.painter, order)
                self._check(share, order, images)
                made |= zip(numbers, images, strict=True)
                unreached += [
                    image.image_id for image, at in zip(images, reached, strict=True) if not at
                ]
            identity.images += [made[number] for number in missing]
            drawn += len(made)
            missing = [number for number in missing if made[number].rejected]
        identity.expand = ExpandEvidence(
            wanted=wanted,
            drawn=drawn,
            threshold=self._others.thresholds.own,
            unreached=unreached,
        )

    def measure(self, identities: Sequence[Identity]) -> list[Curve]:
        """The curves of the painters: one image of every identity at every value of the grid.

        Args:
            identities: at least one.
        """
        curves = []
        for painter in self._painters:
            grid = np.linspace(*painter.dials, dial.POINTS)
            rows = []
            for identity in identities:
                order = Order(
                    identity=identity,
                    origin=reference(identity),
                    numbers=range(len(grid)),
                    count=len(grid),
                    attempt=_MEASURING,
                    dials=grid,
                )
                images, _ = self._make(painter, order)
                rows.append(similarities(order.vector, images))
            curves.append(dial.fit(grid, np.stack(rows), rising=painter.rising))
        return curves

    def _shares(self, identity: Identity, wanted: int) -> list[_Share]:
        """What each painter makes, the same at every attempt."""
        seed, name, places = self._seed, identity.identity_id, range(len(self._painters))
        made_by = deal(
            places,
            self._config.shares,
            wanted,
            seed=seed,
            identity_id=name,
            stream="expand:painters",
        )
        aims: list[Aim | None] = [None for _ in places]
        if self._config.band is not None:
            low, high = self._config.band
            low = max(low, self._others.thresholds.own)  # what is below it does not pass
            targets = stratify(
                low, high, wanted, seed=seed, identity_id=name, stream="expand:targets"
            )
            aims = [Aim(curve, targets) for curve in self._curves]
        return [
            _Share(
                painter=self._painters[place],
                numbers=frozenset(np.flatnonzero(made_by == place).tolist()),
                aim=aims[place],
            )
            for place in places
        ]

    def _make(self, painter: Painter, order: Order) -> tuple[list[Image], list[bool]]:
        """Paints images and embeds what was painted; also says which show what was asked for."""
        faces, reached = painter.paint(order)
        encoded = [encode_jpeg(face, self._config.jpeg_quality) for face in faces]
        # What is stored is what is checked.
        stored = np.stack([decode(data, source=painter.name) for data in encoded])
        embeddings = self._embedder.embed(stored)
        suffix = f".{order.attempt}" if order.attempt else ""
        made = [
            Image(
                image_id=f"{painter.name}-{number:04d}{suffix}",
                data=data,
                source=painter.name,
                parent=order.origin.image_id,
                generator=painter.name,
                weights=painter.weights,
                seed=self._seed,
                embedding=embedding,
            )
            for number, data, embedding in zip(order.numbers, encoded, embeddings, strict=True)
        ]
        return made, reached

    def _check(self, share: _Share, order: Order, images: Sequence[Image]) -> None:
        """Marks the images that fail, and tells the dial what came out."""
        self._others.check(order.identity.identity_id, order.vector, images)
        if share.aim is None or self._config.band is None:
            return
        low, high = self._config.band
        measured = similarities(order.vector, images)
        share.aim.learn(measured)
        for image, similarity in zip(images, measured.tolist(), strict=True):
            if image.rejected is None and not low <= similarity <= high:
                image.rejected = OUT_OF_BAND
