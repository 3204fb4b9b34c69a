"""How likely an image shows somebody else, by its similarity; and whom to ask a second opinion of.

By Bayes' rule from the two laws and the share of strangers that the cleaning job calibrated, and
from how alike the other images of the identity are.
"""

import numpy as np

from raypipe.cleaning.calibration import Calibration, fisher, levels
from raypipe.cleaning.cluster import reach
from raypipe.cleaning.laws import laws
from raypipe.config.judge import JudgeConfig
from raypipe.identities import Identity, Image
from raypipe.judging.experts import Case
from raypipe.seeding import generator

OTHER = "clean:other_person"
_FEW = 1e-3  # share of strangers that is believed of a set in which none were found
# The laws are read far out, where doubtful images lie. Of the images with a probability of 0.02 to
# 0.3, 8.6 % on average, 11.4 % showed somebody else with the 5 % quantile that the threshold is
# found by; with this one 9.7 %, of 9.2 % (20 sets of 200 generated people).
_TAIL = 0.005
_SURE = 20.0  # logarithm of the odds beyond which nothing is more certain


def judged(identity: Identity) -> list[Image]:
    """The images that experts are asked about: kept, or taken out as another person by `clean`."""
    if identity.rejected is not None:
        return []
    return [image for image in identity.images if image.rejected in (None, OTHER)]


def doubts(
    similarity: np.ndarray, vectors: np.ndarray, kept: np.ndarray, calibration: Calibration
) -> np.ndarray:
    """Probability that each image shows somebody else, float64 (n,).

    On the side of one half that the rule decided for, which also looked at the other images.

    The law of genuine similarities, N(mean, s²) of Fisher's z, is one of all people, who differ: an
    image that would do for most is doubtful where the other images are very alike. So a genuine one
    is expected by the level l of the m other kept images, against the level k of the set:

        z ~ N(mean + w (l - k), s² (1 - r w)),  w = m r / (1 + (m - 1) r)

    with r the share of the variance that lies between identities (0.35 for generated people). This
    is the best linear prediction in a model with a random effect of the identity (Henderson, "Best
    linear unbiased estimation and prediction under a selection model", 1975); w is the reliability
    of m images (Spearman and Brown, 1910). A stranger's similarity is expected as before.

    Args:
        similarity: to the centre of the (other) kept images, (n,), in the calibrated space.
        vectors: unit vectors (n, D) in the calibrated space.
        kept: bool (n,), by the rule; at least one.
    """
    z = fisher(similarity / reach(calibration.coherence, max(int(kept.sum()) - 1, 1)))
    genuine, impostor = laws(calibration.genuine, calibration.impostor, _TAIL)
    share, others = calibration.intraclass, kept.sum() - kept.astype(np.int64)
    apart = levels(vectors, kept) - fisher(np.sqrt(calibration.coherence))
    weight = np.where(np.isnan(apart), 0.0, others * share / (1 + (others - 1) * share))
    expected = genuine.mean + weight * np.nan_to_num(apart)
    own = _log_density(z, expected, genuine.stdev * np.sqrt(1 - share * weight))
    other = _log_density(z, impostor.mean, impostor.stdev)
    prior = max(calibration.strangers, _FEW)
    odds = np.exp(np.clip(np.log(prior / (1 - prior)) + other - own, -_SURE, _SURE))
    found = odds / (1 + odds)
    return np.where(kept, np.minimum(found, 0.499), np.maximum(found, 0.501))


def _log_density(z: np.ndarray, mean: np.ndarray | float, stdev: np.ndarray | float) -> np.ndarray:
    """Of a normal law, without its constant."""
    return -(((z - mean) / stdev) ** 2) / 2 - np.log(stdev)


def open_case(
    identity: Identity, config: JudgeConfig, calibration: Calibration | None, seed: int
) -> Case | None:
    """An identity for the experts; None where there is nothing to judge.

    Args:
        calibration: of the set; None under the rule `share`, which says nothing of how sure it is.
        seed: of the run; a random share of the identities is drawn by it.
    """
    images = judged(identity)
    if len(images) < 2:
        return None
    kept = np.array([image.rejected is None for image in images])
    if calibration is None:
        doubt = np.where(kept, 0.0, 1.0)
    else:
        similarity = np.array([image.similarity for image in images], np.float64)
        embeddings = [image.embedding for image in images if image.embedding is not None]
        vectors = calibration.transform(np.stack(embeddings))
        doubt = doubts(similarity, vectors, kept, calibration)
    return Case(
        identity=identity, images=images, doubt=doubt, asked=_asked(identity, doubt, config, seed)
    )


def _asked(identity: Identity, doubt: np.ndarray, config: JudgeConfig, seed: int) -> str | None:
    if config.kind == "none":
        return None
    if config.ask == "all":
        return "all"
    unsure = (doubt > config.margin) & (doubt < 1 - config.margin)
    if config.ask == "unsure" and unsure.any():
        return "unsure"
    drawn = generator(seed, identity.identity_id, stream="audit").random() < config.audit
    return "audit" if drawn else None
