"""Brings an identity to the number of images the training set wants."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import count

import numpy as np

from raypipe.augment import augment
from raypipe.curriculum import SURPLUS, choose_images
from raypipe.errors import UserError
from raypipe.identities import Identity, Image
from raypipe.images import ImageError, decode, encode_jpeg
from raypipe.seeding import generator
from raypipe.similarity import of_kept

AUGMENT = "augment"


def refill(
    identity: Identity,
    *,
    images_per_identity: int,
    seed: int,
    jpeg_quality: int,
    stratified: bool = False,
) -> Identity:
    """Marks the kept images that are too many, or adds augmented ones; the rest is left as it is.

    Args:
        identity: at least one image kept.
        images_per_identity: kept images afterwards.
        seed: of the run.
        jpeg_quality: of the images added.
        stratified: images that are too many are left out so that the others are spread evenly over
            their similarity to the identity's centre, not at random.

    Raises:
        UserError: where a kept image cannot be decoded, or has no embedding to stratify by.
    """
    kept = identity.kept
    measured = of_kept(identity) if stratified else None
    stay, chosen = choose_images(
        len(kept), images_per_identity, seed, identity.identity_id, measured
    )
    for number in set(range(len(kept))) - set(stay.tolist()):
        kept[number].rejected = SURPLUS
    parents = [kept[number] for number in chosen]
    pixels = {number: _decode(identity, kept[number]) for number in set(chosen.tolist())}
    made = _augment_all([pixels[number] for number in chosen], identity.identity_id, seed)
    taken = {image.image_id for image in identity.images}
    names = (name for k in count() if (name := f"{AUGMENT}-{k:03d}") not in taken)
    identity.images += [
        Image(
            image_id=name,
            data=encode_jpeg(rgb, jpeg_quality),
            source=AUGMENT,
            parent=parent.image_id,
            generator=AUGMENT,
            seed=seed,
        )
        for name, rgb, parent in zip(names, made, parents, strict=False)
    ]
    return identity


def _decode(identity: Identity, image: Image) -> np.ndarray:
    try:
        return decode(image.data, source=f"{identity.identity_id}/{image.image_id}")
    except ImageError as error:
        raise UserError(f"assemble: a kept image cannot be augmented: {error}") from error


def _augment_all(images: Sequence[np.ndarray], identity_id: str, seed: int) -> list[np.ndarray]:
    """Augments images of any sizes, those of one size together."""
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, image in enumerate(images):
        by_shape[image.shape].append(number)
    made: dict[int, np.ndarray] = {}
    for numbers in by_shape.values():
        rngs = [generator(seed, identity_id, number, AUGMENT) for number in numbers]
        batch = augment(np.stack([images[number] for number in numbers]), rngs)
        made.update(zip(numbers, batch, strict=True))
    return [made[number] for number in range(len(images))]
