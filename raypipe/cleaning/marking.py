"""The verdicts of the cleaning job, written into a row."""

import numpy as np

from raypipe.cleaning.calibration import Calibration
from raypipe.cleaning.cluster import Cluster, calibrated_cluster, share_cluster
from raypipe.cleaning.doubles import Double
from raypipe.cleaning.pictures import repeated
from raypipe.config.clean import CleanConfig
from raypipe.identities import CleanEvidence, Identity, Image
from raypipe.images import decode


def mark(
    identity: Identity,
    config: CleanConfig,
    calibration: Calibration | None,
    doubles: dict[str, Double],
) -> None:
    """Marks the images of an identity that do not belong, and the identity where it must go.

    The reasons are "clean:other_person" and "clean:near_duplicate" for an image,
    "clean:inconsistent" and "clean:duplicate_identity" for an identity. What was rejected before
    stays as it is, and an identity with few images left stays too: `assemble` replaces it.

    Args:
        identity: with embeddings; changed in place.
        config: rule and limits.
        calibration: of the set; None under the rule `share`, which does nothing but cluster.
        doubles: identities that are one person.
    """
    if identity.rejected is not None:
        return
    usable = [image for image in identity.kept if image.embedding is not None]
    cluster = _cluster(usable, config, calibration)
    identity.clean = CleanEvidence(
        rule=config.rule,
        threshold=cluster.threshold,
        cluster_sizes=cluster.sizes,
        duplicate_threshold=calibration.duplicate_threshold if calibration else None,
    )
    for image, label in zip(usable, cluster.labels, strict=True):
        image.cluster = int(label)
    if not cluster.kept.any():
        identity.rejected = "clean:inconsistent"
        return
    for image, kept, similarity in zip(usable, cluster.kept, cluster.similarity, strict=True):
        image.similarity = float(similarity)
        if not kept:
            image.rejected = "clean:other_person"
    if calibration is None:
        return
    kept_images = [image for image in usable if image.rejected is None]
    pictures = [decode(image.data, source=image.source) for image in kept_images]
    for image, earlier in zip(kept_images, repeated(pictures, config.near_duplicate), strict=True):
        if earlier >= 0:
            image.rejected = "clean:near_duplicate"
    if double := doubles.get(identity.identity_id):
        identity.clean.duplicates = double.others
        identity.clean.duplicate_similarity = double.similarity
        if not double.stays:
            identity.rejected = "clean:duplicate_identity"


def _cluster(images: list[Image], config: CleanConfig, calibration: Calibration | None) -> Cluster:
    if not images:
        embeddings = np.zeros((0, 1), np.float32)
    else:
        embeddings = np.stack([image.embedding for image in images if image.embedding is not None])
    if calibration is None:
        return share_cluster(embeddings, config.share)
    return calibrated_cluster(
        calibration.transform(embeddings), calibration.threshold, calibration.coherence
    )
