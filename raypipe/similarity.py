"""How similar every image is to the centre of its identity.

Images at a moderate similarity to their identity's centre train a recognizer best, says CemiFace
(arXiv 2409.18876): very similar ones teach little, very dissimilar ones hardly show the person.
Every source is measured alike, from raw embeddings. `Image.similarity` would not do: of the
cleaning job it is a cosine of centred and whitened vectors.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import NO_PICTURE, Identity, Image
from raypipe.search import nearest
from raypipe.templates import template, unit

OUT_OF_BAND = "assemble:out_of_band"
# What is read of an image to measure it.
MEASURED = ("image_id", "parent", "embedding", "rejected")
# Files that are read at the same time, for the sake of an object store that answers slowly.
_READERS = 8


def similarities(identity: Identity) -> np.ndarray:
    """The cosine of every image to the centre of its identity.

    The centre is the template of the images with an embedding. Where all others were made of the
    first image, or of the vector without a picture that stands first, it is that one alone. An
    image without an embedding, as augmentation makes it, has the similarity of its parent. What
    the assemble job itself rejected counts like what it kept, so a similarity is the same before
    and after.

    Returns:
        float32 (n,) in [-1, 1], in step with `identity.images`; NaN for an image that an earlier
        job rejected, and where neither it nor its parent has an embedding.
    """
    found = np.full(len(identity.images), np.nan, np.float32)
    counted = [image for image in identity.images if _counts(image)]
    embedded = {image.image_id: image.embedding for image in counted if image.embedding is not None}
    made_of_one = all(image.parent is not None for image in counted[1:])
    origins = counted[:1] if made_of_one else counted
    vectors = [image.embedding for image in origins if image.embedding is not None]
    if not vectors:
        return found
    centre = template(np.stack(vectors))
    # No matrix product: how it rounds may depend on the number of threads.
    cosines = (unit(np.stack(list(embedded.values()))) * centre).sum(axis=-1)
    of = dict(zip(embedded, np.clip(cosines, -1, 1).tolist(), strict=True))
    for place, image in enumerate(identity.images):
        if _counts(image) and image.rejected != NO_PICTURE:
            own = image.parent if image.embedding is None else image.image_id
            found[place] = of.get(own or "", np.nan)
    return found


def _counts(image: Image) -> bool:
    """Whether an image belongs to the identity that came into the assemble job."""
    reason = image.rejected
    return reason is None or reason == NO_PICTURE or reason.startswith("assemble:")


def of_kept(identity: Identity) -> np.ndarray:
    """Those of the kept images, float32 (n,), in step with `identity.kept`.

    Raises:
        UserError: where a kept image has none.
    """
    kept = np.array([image.rejected is None for image in identity.images], dtype=bool)
    found = similarities(identity)[kept]
    if np.isnan(found).any():
        name = identity.kept[int(np.argmax(np.isnan(found)))].image_id
        raise UserError(
            f"assemble: image {name!r} of identity {identity.identity_id!r} has no embedding, so "
            "its similarity is not known; run `raypipe embed` on its set, or leave out "
            "assemble.similarity, assemble.choose and assemble.order"
        )
    return found


def reject_outside(identity: Identity, band: tuple[float, float]) -> None:
    """Marks the kept images whose similarity is outside `band`: the lowest and the highest, both
    inside it.

    Raises:
        UserError: where a kept image has no embedding.
    """
    lowest, highest = band
    for image, value in zip(identity.kept, of_kept(identity), strict=True):
        if not lowest <= value <= highest:
            image.rejected = OUT_OF_BAND


def of_set(face_set: FaceSet, labels: Mapping[str, int], images_per_identity: int) -> np.ndarray:
    """The similarities of a whole set that is refilled, a file at a time for each reader.

    Args:
        face_set: identities with images_per_identity kept images; those without a label are left
            out.
        labels: identity_id → label, 0..K-1.

    Returns:
        float32 (K × images_per_identity,): kept image `i` of label `l` is at
        `l * images_per_identity + i`.

    Raises:
        UserError: where a kept image has no embedding.
    """
    found = np.empty((len(labels), images_per_identity), np.float32)

    def measure(path: str) -> None:
        for identity in face_set.iter_without_bytes(MEASURED, [path]):
            label = labels.get(identity.identity_id)
            if label is not None:
                found[label] = of_kept(identity)

    with ThreadPoolExecutor(_READERS) as readers:
        for _ in readers.map(measure, face_set.files()):
            pass
    return found.reshape(-1)


def to_nearest(face_set: FaceSet, labels: Mapping[str, int]) -> np.ndarray:
    """The cosine of every identity's template to that of the nearest other identity.

    Args:
        face_set: with embeddings; identities without a label are left out.
        labels: identity_id → label, 0..K-1, K at least 2.

    Returns:
        float32 (K,) in [-1, 1].

    Raises:
        UserError: where an identity has no embedding.
    """
    templates: list[np.ndarray | None] = [None] * len(labels)
    for item in face_set.iter_embeddings():
        label = labels.get(item.identity_id)
        if label is not None and len(item.person):
            templates[label] = template(item.person)
    for name, label in labels.items():
        if templates[label] is None:
            raise UserError(
                f"assemble.nearest: identity {name!r} has no embedding; run `raypipe embed` on its "
                "set, or leave it out"
            )
    rows = np.stack([row for row in templates if row is not None])
    similarity, index = nearest(rows, rows, 2)
    itself = index[:, 0] == np.arange(len(rows))
    return np.clip(np.where(itself, similarity[:, 1], similarity[:, 0]), -1, 1)
