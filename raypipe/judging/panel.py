"""The experts together: one verdict for each image, written into the row."""

from collections.abc import Sequence

import numpy as np

from raypipe.cleaning.calibration import Calibration
from raypipe.cleaning.cluster import calibrated_cluster, scores
from raypipe.cleaning.pictures import repeated
from raypipe.config.judge import JudgeConfig
from raypipe.identities import Identity, Image, JudgeEvidence, Verdict
from raypipe.images import decode
from raypipe.judging import fusion
from raypipe.judging.doubt import open_case
from raypipe.judging.experts import Case, Expert, View

COMBINED = "combined"


class Panel:
    """Judges identities.

    Args:
        experts: as `open_experts` gives them.
        calibration: of the set; None under the rule `share`.
        near_duplicate: as for the cleaning job; for images that are restored.
        seed: of the run.
    """

    def __init__(
        self,
        config: JudgeConfig,
        experts: Sequence[Expert],
        calibration: Calibration | None,
        *,
        near_duplicate: float,
        seed: int,
    ) -> None:
        self.config, self._experts, self._calibration = config, experts, calibration
        self._near_duplicate, self._seed = near_duplicate, seed

    def hear(self, identities: Sequence[Identity]) -> list[tuple[Case, list[View]]]:
        """What every expert says of every identity that can be judged."""
        opened = [
            open_case(identity, self.config, self._calibration, self._seed)
            for identity in identities
        ]
        cases = [case for case in opened if case is not None]
        views = [expert(cases) for expert in self._experts]
        return [(case, [one[k] for one in views]) for k, case in enumerate(cases)]

    def judge(self, identities: Sequence[Identity], rates: fusion.Rates | None) -> None:
        """Writes evidence and verdicts into the rows.

        An image that the experts together find to show somebody else is rejected; one that `clean`
        had rejected and they did not is restored. Of those that stay the largest consistent
        cluster is kept; an image whose clustering they overruled is not clustered again.

        Args:
            rates: of the experts, for the fusion by weights; None for the others.
        """
        for case, views in self.hear(identities):
            opinions = np.stack([view.outlier for view in views], axis=1)
            if rates is None:
                combined = fusion.by_rule(opinions, self.config.fusion).astype(float)
            else:
                combined = fusion.weigh(opinions, rates)
            case.identity.judge = self._evidence(case, views, combined)
            self._decide(case, combined >= 0.5)

    def _evidence(self, case: Case, views: Sequence[View], combined: np.ndarray) -> JudgeEvidence:
        verdicts = []
        for place, image in enumerate(case.images):
            for name, view in zip(self.config.panel, views, strict=True):
                if not np.isnan(view.outlier[place]):
                    verdicts.append(
                        Verdict(
                            image_id=image.image_id,
                            expert=name,
                            outlier=float(view.outlier[place]),
                            reason=view.reasons.get(place),
                        )
                    )
            verdicts.append(
                Verdict(image_id=image.image_id, expert=COMBINED, outlier=float(combined[place]))
            )
        return JudgeEvidence(
            asked=case.asked,
            sheets=sum(view.sheets for view in views),
            problem=next((view.problem for view in views if view.problem), None),
            verdicts=verdicts,
        )

    def _decide(self, case: Case, outlier: np.ndarray) -> None:
        evidence = case.identity.judge
        assert evidence is not None
        restored: set[str] = set()
        for image, out in zip(case.images, outlier.tolist(), strict=True):
            if image.rejected is None and out:
                image.rejected = "judge:other_person"
            elif image.rejected is not None and not out:
                image.rejected = None
                restored.add(image.image_id)
        evidence.restored = sorted(restored)
        left = [image for image in case.images if image.rejected is None]
        if self._calibration is not None:
            self._keep_consistent(case.identity, left, restored, self._calibration)
        if restored:
            self._mark_repeated(left, restored)

    def _keep_consistent(
        self,
        identity: Identity,
        left: list[Image],
        restored: set[str],
        known: Calibration,
    ) -> None:
        clustered = [image for image in left if image.image_id not in restored]
        kept = _kept(clustered, known)
        if not any(kept):
            identity.rejected = "judge:inconsistent"
            return
        for image, stays in zip(clustered, kept, strict=True):
            if not stays:
                image.rejected = "judge:inconsistent"
        others = np.array([image.rejected is None for image in left])
        for image, similarity in zip(left, scores(_vectors(left, known), others), strict=True):
            image.similarity = float(similarity)

    def _mark_repeated(self, left: list[Image], restored: set[str]) -> None:
        shown = [image for image in left if image.rejected is None]
        shown.sort(key=lambda image: image.image_id in restored)  # these give way
        pictures = [decode(image.data, source=image.source) for image in shown]
        for image, earlier in zip(shown, repeated(pictures, self._near_duplicate), strict=True):
            if earlier >= 0:
                image.rejected = "judge:near_duplicate"


def _vectors(images: Sequence[Image], known: Calibration) -> np.ndarray:
    return known.transform(np.stack([i.embedding for i in images if i.embedding is not None]))


def _kept(images: Sequence[Image], known: Calibration) -> list[bool]:
    """Which of the images are in their largest consistent cluster."""
    if not images:
        return []
    cluster = calibrated_cluster(_vectors(images, known), known.threshold, known.coherence)
    return [bool(kept) for kept in cluster.kept]
