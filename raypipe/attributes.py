"""AttrOP: vectors are moved until the faces made from them show what was asked for.

Wu et al., "Vec2Face" (ICLR 2025), section 3.3, and `gen_image` of github.com/HaiyuWu/Vec2Face,
pixel_generator/vec2face/model_vec2face.py: Adam on the vector, and the sum of identity distance and
distances from the goals as its loss. Here every sample has its own steps and its own end. The
published loop stops when the means of a batch are near enough, and so may never end; it draws the
masked tokens anew in every step, and makes one more step after the last look.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raypipe.config.attributes import AttributeConfig, AttributesConfig
from raypipe.generator_losses import FaceFeatures
from raypipe.models.vec2face import Vec2Face

_BETAS, _EPS = (0.9, 0.999), 1e-8  # Adam's, as published


@dataclass(frozen=True, kw_only=True)
class Optimised:
    """Where N samples ended: at their goals, or at the least loss that was seen.

    Attributes:
        vectors: float32 (N, D).
        converged: bool (N,), whether all goals hold, the identity's included.
        steps: int64 (N,), steps made, at most the bound.
        values: float32 (N, A), the attributes.
        distances: float32 (N,), 1 − cosine to the identity, in [0, 2].
    """

    vectors: Tensor
    converged: Tensor
    steps: Tensor
    values: Tensor
    distances: Tensor


def short_of(goals: Sequence[AttributeConfig], values: Tensor, wanted: Tensor) -> Tensor:
    """How far attributes (N, A) are from what is wanted (N, A); 0 is at the goal or beyond."""
    parts = []
    for k, goal in enumerate(goals):
        value, target = values[:, k], wanted[:, k]
        if goal.goal == "at_least":
            parts.append((target - value).clamp_min(0))
        else:
            parts.append((target - (value.abs() if goal.goal == "magnitude" else value)).abs())
    return torch.stack(parts, dim=1)


class AttributeControl:
    """Generator, embedder and estimators that attributes are controlled with.

    Args:
        network: in evaluation mode, on the device that vectors will be on.
        faces: the embedder that the generator's vectors are of, on that device.
        estimators: one for each of `config.goals`, on that device (`raypipe.estimators.load`).
        spread: of the vectors' components, the unit of the rate (`Distribution.spread`; about 1
            for ArcFace networks).
        centre: (D,), subtracted from features before the cosine. Those of some networks (dlib's)
            share a large common part, next to which people hardly differ; published: none.
    """

    def __init__(
        self,
        config: AttributesConfig,
        network: Vec2Face,
        faces: FaceFeatures,
        estimators: Sequence[nn.Module],
        *,
        spread: float = 1.0,
        centre: Tensor | None = None,
    ) -> None:
        self.config = config
        self._network = network
        self._faces = faces
        self._estimators = estimators
        self._rate = config.rate * spread
        self._centre = centre

    def optimise(
        self, vectors: Tensor, targets: Tensor, wanted: Tensor, noise: Tensor, rates: Tensor
    ) -> Optimised:
        """Moves each vector until its image is at its goals, or the steps are up.

        A sample that is there is computed no more, and nothing but rounding depends on which others
        are beside it. Vectors keep their length, as when they are perturbed: the generator has
        seen only features of such lengths. Adam moves a component by about the rate in a step.

        Args:
            vectors: float32 (N, D), to start from.
            targets: float32 (N, D), of the identities that the images are to show.
            wanted: float32 (N, A), values of the goals (`AttributesConfig.values_for`).
            noise: (N, tokens), for `Vec2Face.forward`; with it and the rates an image is fixed.
            rates: (N,), likewise.
        """
        count, config = len(vectors), self.config
        weights = wanted.new_tensor([goal.weight for goal in config.goals])
        tolerances = wanted.new_tensor([goal.tolerance for goal in config.goals])
        lengths = vectors.norm(dim=1, keepdim=True)
        best, least = vectors.clone(), vectors.new_full((count,), torch.inf)
        converged = torch.zeros(count, dtype=torch.bool, device=vectors.device)
        steps = torch.zeros(count, dtype=torch.int64, device=vectors.device)
        values, distances = torch.zeros_like(wanted), vectors.new_zeros(count)
        active = torch.arange(count, device=vectors.device)
        current = vectors.clone()
        first, second = torch.zeros_like(current), torch.zeros_like(current)
        for step in range(config.steps + 1):
            last = step == config.steps
            with torch.set_grad_enabled(not last):
                current.requires_grad_(not last)
                shown, distance = self._look(current, targets[active], noise[active], rates[active])
                short = short_of(config.goals, shown, wanted[active])
                loss = config.identity_weight * distance + (weights * short).sum(dim=1)
            with torch.no_grad():
                reached = (short <= tolerances).all(1) & (distance <= config.identity_distance)
                better = reached | (loss < least[active])
                found = active[better]
                best[found], least[found] = current[better], loss[better]
                values[found], distances[found] = shown[better], distance[better]
                converged[active], steps[active] = reached, step
                going = ~reached
                active = active[going]
            if last or not len(active):
                break
            (slope,) = torch.autograd.grad(loss.sum(), current)
            with torch.no_grad():
                slope, current = slope[going], current[going]
                first = torch.lerp(slope, first[going], _BETAS[0])
                second = torch.lerp(slope.square(), second[going], _BETAS[1])
                mean = first / (1 - _BETAS[0] ** (step + 1))
                square = second / (1 - _BETAS[1] ** (step + 1))
                moved = current - self._rate * mean / (square.sqrt() + _EPS)
                current = F.normalize(moved, dim=1) * lengths[active]
        return Optimised(
            vectors=best, converged=converged, steps=steps, values=values, distances=distances
        )

    def _look(
        self, vectors: Tensor, targets: Tensor, noise: Tensor, rates: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attributes (n, A) and identity distances (n,) of the images of vectors."""
        images = self._network(vectors, noise, rates).clamp(-1, 1)
        shown = torch.stack([estimator(images) for estimator in self._estimators], dim=1)
        features, _ = self._faces(images)
        if self._centre is not None:
            features, targets = features - self._centre, targets - self._centre
        return shown, 1 - F.cosine_similarity(features, targets)
