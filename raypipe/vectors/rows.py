"""Identity vectors as rows of a face set."""

from collections.abc import Iterator

import numpy as np

from raypipe.identities import NO_PICTURE, Identity, Image, ScreenEvidence
from raypipe.search import nearest
from raypipe.templates import unit
from raypipe.vectors.sampling import Sampled

SOURCE = "vec"
IMAGE = "vector"


def identity_id(index: int) -> str:
    """Name of the identity of a vector, the same whatever the number of vectors."""
    return f"{SOURCE}/{index:07d}"


def identities(
    found: Sampled, *, ceiling: float, seed: int, before: int, size: int
) -> Iterator[tuple[int, list[Identity]]]:
    """Vectors as identities: each has one image, `vector`, without a picture.

    Its evidence is the nearest other vector, so that the angle to it is known.

    Args:
        ceiling: that they were sampled under.
        seed: that they were sampled with.
        before: identities of the set that they are added to; indexes go on from there.
        size: identities handed out at once.

    Yields:
        The index of the first one, and at most `size` of them.
    """
    units = unit(found.vectors).astype(np.float32)
    similarity, index = nearest(units, units, 2)
    rows = np.arange(len(units))
    other = (index[:, 0] == rows).astype(np.int64)  # the first is itself, or equal to it
    other = np.minimum(other, index.shape[1] - 1)
    similarity, index = similarity[rows, other], index[rows, other]
    for start in range(0, len(units), size):
        yield (
            start,
            [
                Identity(
                    identity_id=identity_id(i),
                    index=before + i,
                    source=SOURCE,
                    images=[
                        Image(
                            image_id=IMAGE,
                            data=b"",
                            source=f"candidate {found.places[i]}",
                            seed=seed,
                            embedding=found.vectors[i],
                            rejected=NO_PICTURE,
                        )
                    ],
                    screen=ScreenEvidence(
                        nearest=identity_id(int(index[i])),
                        nearest_similarity=float(similarity[i]),
                        nearest_threshold=ceiling,
                    )
                    if len(units) > 1
                    else None,
                )
                for i in range(start, min(start + size, len(units)))
            ],
        )
