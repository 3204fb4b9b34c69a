"""Image quality as an expert: a face that can hardly be made out is no use, whoever it is."""

from collections.abc import Sequence

import numpy as np
import torch

from raypipe.config.attributes import AttributeConfig
from raypipe.estimators import load
from raypipe.images import resize
from raypipe.judging.experts import Case, Expert, Tools, View

LAWS = None
_SIDE = 112  # pixels that estimators take
_BATCH = 256


def expert(tools: Tools) -> Expert:
    """See `raypipe.judging.experts`. The probability is 0.5 at the lowest quality allowed, and
    follows a logistic curve with a scale of 1 in the estimator's unit."""
    config = tools.config.quality
    device = "cuda" if torch.cuda.is_available() else "cpu"
    estimator = load(
        AttributeConfig(
            name="quality",
            estimator=config.estimator,
            weights=config.weights,
            goal="at_least",
            value=config.lowest,
            tolerance=0,
        ),
        device,
    )

    @torch.inference_mode()
    def opinion(case: Case) -> View:
        faces = np.stack([resize(face, (_SIDE, _SIDE)) for face in case.pixels()])
        images = torch.from_numpy(faces).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        found = torch.cat([estimator(part) for part in images.split(_BATCH)]).double().cpu().numpy()
        return View(outlier=1 / (1 + np.exp(found - config.lowest)))

    def opinions(cases: Sequence[Case]) -> list[View]:
        return [opinion(case) for case in cases]

    return opinions
