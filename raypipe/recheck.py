"""Is an image that was made of an identity still that person, and nobody else?

Similarity is the cosine of raw features, as in `raypipe.screening`. The thresholds come from there:
for a gallery its own; for other identities of the set the one between a template and a face of
somebody else, measured on the set's pictures as a gallery's is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from raypipe.cleaning.sampling import draw
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import Image
from raypipe.impostors import Calibration, calibrate_gallery
from raypipe.search import nearest
from raypipe.templates import Gallery, unit

NOT_THE_PERSON = "expand:not_the_person"
SOMEBODY_ELSE = "expand:somebody_else"
IN_GALLERY = "expand:in_gallery"
OUT_OF_BAND = "expand:out_of_band"
_PEOPLE = 2000  # identities that a threshold is measured on, at most


def people_with_pictures(face_set: FaceSet, seed: int) -> Gallery:
    """The faces of at most 2,000 identities of a set that have two pictures or more.

    Raises:
        UserError: where there are none.
    """
    people, _ = draw(face_set.iter_embeddings(), _PEOPLE, seed)
    if not people:
        raise UserError(
            f"expand: no identity of {face_set.root} has two images to measure thresholds with; "
            "screen a base set along with the new people"
        )
    return Gallery(
        name="the set itself",
        names=[name for name, _ in people],
        image_ids=[],
        people=np.repeat(np.arange(len(people)), [len(vectors) for _, vectors in people]),
        faces=np.concatenate([unit(vectors).astype(np.float32) for _, vectors in people]),
    )


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Cosines that decide.

    Attributes:
        own: that an image needs to the vector of its identity.
        other: from which it is another identity.
        galleries: name → cosine from which it is a person of that gallery.
    """

    own: float
    other: float
    galleries: Mapping[str, float]


def calibrate(faces: Gallery, own_rate: float, other_rate: float) -> tuple[Calibration, float]:
    """The thresholds between a template and a face of somebody else, for two rates.

    Args:
        own_rate: expand.false_match_rate.
        other_rate: screen.false_match_rate.

    Returns:
        What was measured for the first, and the cosine for the second.

    Raises:
        UserError: where the set is too small for a rate.
    """
    own = calibrate_gallery(faces, own_rate, "expand.false_match_rate")
    return own, calibrate_gallery(faces, other_rate).threshold


def similarities(vector: np.ndarray, images: Sequence[Image]) -> np.ndarray:
    """How similar images with embeddings are to their identity's vector, float64 (n,)."""
    return _cosines(_faces(images), vector)


def _faces(images: Sequence[Image]) -> np.ndarray:
    vectors = [image.embedding for image in images if image.embedding is not None]
    return unit(np.stack(vectors)).astype(np.float32)


def _cosines(faces: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return np.asarray((faces.astype(np.float64) * unit(vector)).sum(axis=1))


class _Near(NamedTuple):
    similarity: float
    name: str
    threshold: float
    reason: str


class Others:
    """Everybody whom an image must not be.

    Args:
        names: identity_id of every identity.
        templates: float32 (N, D), their templates, unit length.
    """

    def __init__(
        self,
        names: Sequence[str],
        templates: np.ndarray,
        galleries: Sequence[Gallery],
        thresholds: Thresholds,
    ) -> None:
        self._names = names
        self._places = {name: place for place, name in enumerate(names)}
        self._templates = templates
        self._galleries = galleries
        self.thresholds = thresholds

    def check(self, identity_id: str, vector: np.ndarray, images: Sequence[Image]) -> None:
        """Notes how similar images are to their identity and to whom else, and marks those that
        fail: too like somebody else, not like the identity, or more like another one.

        Args:
            vector: float32 (D,), of the identity.
            images: with embeddings.
        """
        faces = _faces(images)
        own = _cosines(faces, vector)
        columns = [self._identities(faces, identity_id)]
        columns += [self._gallery(faces, gallery) for gallery in self._galleries]
        for row, image in enumerate(images):
            image.similarity = float(own[row])
            near = [column[row] for column in columns if column]
            if near:
                closest = max(near, key=lambda other: other.similarity - other.threshold)
                image.nearest, image.nearest_similarity = closest.name, closest.similarity
            image.rejected = self._verdict(image.similarity, near)

    def _verdict(self, own: float, near: Sequence[_Near]) -> str | None:
        for other in near:
            if other.similarity >= other.threshold:
                return other.reason
        if own < self.thresholds.own:
            return NOT_THE_PERSON
        if any(other.reason == SOMEBODY_ELSE and other.similarity >= own for other in near):
            return SOMEBODY_ELSE
        return None

    def _identities(self, faces: np.ndarray, identity_id: str) -> list[_Near]:
        """The nearest other identity of every face; empty where there is no other."""
        mine, threshold = self._places.get(identity_id), self.thresholds.other
        similarity, index = nearest(faces, self._templates, 2)
        found = []
        for values, places in zip(similarity.tolist(), index.tolist(), strict=True):
            found += [
                _Near(value, self._names[place], threshold, SOMEBODY_ELSE)
                for value, place in zip(values, places, strict=True)
                if place != mine
            ][:1]
        return found

    def _gallery(self, faces: np.ndarray, gallery: Gallery) -> list[_Near]:
        threshold = self.thresholds.galleries[gallery.name]
        similarity, index = nearest(faces, gallery.faces, 1)
        return [
            _Near(
                value,
                f"gallery {gallery.name}: {gallery.names[gallery.people[place]]}",
                threshold,
                IN_GALLERY,
            )
            for value, place in zip(similarity[:, 0].tolist(), index[:, 0].tolist(), strict=True)
        ]
