"""Templates: one vector a person, and the faces of a gallery that it is compared with."""

from dataclasses import dataclass

import numpy as np

from raypipe.errors import UserError
from raypipe.faceset import FaceSet


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (..., D) scaled to length 1, float64; a zero row stays zero."""
    vectors = np.asarray(vectors, np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def template(embeddings: np.ndarray) -> np.ndarray:
    """The template of one identity: raw embeddings (n, D) to a unit vector float32 (D,)."""
    return unit(unit(embeddings).mean(axis=0)).astype(np.float32)


def halves(embeddings: np.ndarray) -> float:
    """Cosine of the templates of the even and of the odd images of (n, D); NaN for one image."""
    if len(embeddings) < 2:
        return float("nan")
    return float(template(embeddings[::2]).astype(np.float64) @ template(embeddings[1::2]))


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The faces of a gallery.

    Attributes:
        names: identity_id of every person, P of them.
        image_ids: of every face, F of them.
        people: int64 (F,), the person of every face: a position in `names`, never decreasing.
        faces: float32 (F, D), unit length.
    """

    name: str
    names: list[str]
    image_ids: list[str]
    people: np.ndarray
    faces: np.ndarray


def load_gallery(name: str, root: str) -> Gallery:
    """Reads the kept, embedded faces of a face set, in the order of its identities.

    Raises:
        UserError: where it holds none.
    """
    people = [
        (item.index, item.identity_id, [item.image_ids[i] for i in kept], item.embeddings[kept])
        for item in FaceSet(root).iter_embeddings()
        if item.rejected is None
        and (kept := [i for i, reason in enumerate(item.image_rejected) if reason is None])
    ]
    if not people:
        raise UserError(f"screen: gallery {name!r} holds no usable face; look at {root}")
    people.sort(key=lambda person: person[:2])
    return Gallery(
        name=name,
        names=[identity_id for _, identity_id, *_ in people],
        image_ids=[image_id for _, _, ids, _ in people for image_id in ids],
        people=np.repeat(np.arange(len(people)), [len(ids) for _, _, ids, _ in people]),
        faces=np.concatenate([unit(vectors).astype(np.float32) for *_, vectors in people]),
    )
