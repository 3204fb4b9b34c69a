"""How likely an image shows somebody else, by its similarity; and whom to ask a second opinion of.

By Bayes' rule from the two laws and the share of strangers that the cleaning job calibrated.
"""

import numpy as np

from raypipe.cleaning.calibration import Calibration
from raypipe.cleaning.cluster import reach
from raypipe.cleaning.laws import laws
from raypipe.config.judge import JudgeConfig
from raypipe.identities import Identity, Image
from raypipe.judging.experts import Case
from raypipe.seeding import generator

OTHER = "clean:other_person"
_FEW = 1e-3  # share of strangers that is believed of a set in which none were found
# The laws are read far out, where doubtful images lie. With the 5 % quantile that the threshold is
# found by, 95 % of the images with a probability of 0.7 to 0.9 showed somebody else (60 images of
# five sets of generated people).
_TAIL = 0.005
_SURE = 20.0  # logarithm of the odds beyond which nothing is more certain


def judged(identity: Identity) -> list[Image]:
    """The images that experts are asked about: kept, or taken out as another person by `clean`."""
    if identity.rejected is not None:
        return []
    return [image for image in identity.images if image.rejected in (None, OTHER)]


def doubts(similarity: np.ndarray, kept: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Probability that each image shows somebody else, float64 (n,).

    On the side of one half that the rule decided for, which also looked at the other images.

    Args:
        similarity: to the centre of the (other) kept images, (n,), in the calibrated space.
        kept: bool (n,), by the rule; at least one.
    """
    scaled = similarity / reach(calibration.coherence, max(int(kept.sum()) - 1, 1))
    z = np.arctanh(np.clip(scaled, -0.9995, 0.9995))
    own, other = (
        -(((z - law.mean) / law.stdev) ** 2) / 2 - np.log(law.stdev)
        for law in laws(calibration.genuine, calibration.impostor, _TAIL)
    )
    prior = max(calibration.strangers, _FEW)
    odds = np.exp(np.clip(np.log(prior / (1 - prior)) + other - own, -_SURE, _SURE))
    found = odds / (1 + odds)
    return np.where(kept, np.minimum(found, 0.499), np.maximum(found, 0.501))


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
        doubt = doubts(similarity, kept, calibration)
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
