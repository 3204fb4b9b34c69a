"""Classification heads that shape the embedding while the recognizer trains."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from raypipe.config.train import TrainConfig


class Head(nn.Module, ABC):
    """A cosine classifier with a margin on the logit of an image's own class.

    The logit of class k is scale · cos(theta_k), theta_k the angle between the embedding and the
    class's weight vector; that of the image's own class gets the margin of the subclass.

    Computed in float32 also under autocast.

    Attributes:
        weight: float32 (classes, dimensions), drawn from N(0, 0.01) (standard deviation 0.01, as in
            insightface, recognition/arcface_torch/partial_fc_v2.py).
    """

    def __init__(self, dimensions: int, classes: int, *, scale: float) -> None:
        """`scale` is published as 64 for every head."""
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, dimensions).normal_(0, 0.01))

    @abstractmethod
    def with_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        """What takes the place of the cosines between embeddings and their own classes.

        Args:
            cosines: float32 (N,), in [-1, 1].
            norms: float32 (N,), lengths of the embeddings.
        """

    def observe(self, norms: Tensor, group: distributed.ProcessGroup | None = None) -> None:
        """Takes the lengths of a batch, float32 (N,), into the running statistics, if any.

        Called once a step by every rank of the group with its own part of the batch.
        """

    def penalty(self, norms: Tensor) -> Tensor:
        """Added to the cross entropy: float32 scalar, mean over lengths of embeddings, (N,)."""
        return norms.new_zeros(())

    def forward(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a batch.

        Args:
            embeddings: (N, dimensions), of any length.
            labels: int64 (N,), in [0, classes).

        Returns:
            float32 (N, classes) with the margin, for the cross entropy, and float32 (N, classes)
            cosines without it, for the accuracy.
        """
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.float()
            norms = embeddings.norm(dim=1)
            self.observe(norms)
            unit = functional.normalize(embeddings)
            cosines = functional.linear(unit, functional.normalize(self.weight)).clamp(-1, 1)
            own = labels.unsqueeze(1)
            marked = self.with_margin(cosines.gather(1, own).squeeze(1), norms)
            return cosines.scatter(1, own, marked.unsqueeze(1)) * self.scale, cosines

    def loss(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss of a batch, penalty included, and how many are nearest to their own class.

        Args:
            embeddings: (N, dimensions), of any length.
            labels: int64 (N,), in [0, classes).

        Returns:
            float32 and int64 scalars.
        """
        logits, cosines = self(embeddings, labels)
        right = (cosines.argmax(1) == labels).sum()
        penalty = self.penalty(embeddings.float().norm(dim=1))
        return functional.cross_entropy(logits, labels) + penalty, right


class CombinedMargin(Head):
    """cos(m1 · theta + m2) - m3: Deng et al., "ArcFace" (CVPR 2019), equation 4.

    The margin is applied as in insightface (recognition/arcface_torch/losses.py): its amount is
    computed without gradient, so the derivative of every logit with respect to its cosine is the
    scale; the exact one would be scale · m1 · sin(m1 · theta + m2) / sin(theta), which has no bound
    near theta = 0 and changes sign where m1 · theta + m2 passes π. No branch treats that apart.
    """

    def __init__(
        self, dimensions: int, classes: int, *, margins: tuple[float, float, float], scale: float
    ) -> None:
        """Published margins (m1, m2, m3): (1, 0.3, 0.2) (insightface, recognition/arcface_mxnet,
        sample_config.py)."""
        super().__init__(dimensions, classes, scale=scale)
        self.margins = margins

    def with_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        m1, m2, m3 = self.margins
        with torch.no_grad():
            shift = torch.cos(torch.acos(cosines) * m1 + m2) - m3 - cosines
        return cosines + shift


class ArcFace(CombinedMargin):
    """Additive angular margin, cos(theta + margin): Deng et al., "ArcFace", equation 3."""

    def __init__(self, dimensions: int, classes: int, *, margin: float, scale: float) -> None:
        """`margin` is in radians (published: 0.5)."""
        super().__init__(dimensions, classes, margins=(1.0, margin, 0.0), scale=scale)


class CosFace(Head):
    """Additive cosine margin, cos(theta) - margin: Wang et al., "CosFace" (CVPR 2018), equation 4.

    Its derivative needs no approximation.
    """

    def __init__(self, dimensions: int, classes: int, *, margin: float, scale: float) -> None:
        """`margin` is published as 0.35 in the paper and as 0.4 in insightface, arcface_torch."""
        super().__init__(dimensions, classes, scale=scale)
        self.margin = margin

    def with_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        return cosines - self.margin


class AdaFace(Head):
    """A margin for the quality of the image: Kim et al., "AdaFace" (CVPR 2022), section 3.3.

    With z = h · (norm - mean) / std, cut to [-1, 1], the own class's logit is
    scale · (cos(theta - m · z) - m - m · z): norms stand for quality, and the mean and standard
    deviation of norms are exponential moving averages over batches. Norms get no gradient from it;
    the cosine gets the exact one, for how it differs with z is the point of the paper.

    Constants as in mk-minchul/AdaFace (head.py): norms are cut to [0.001, 100], the averages start
    at 20 and 100, eps = 0.001 beside the standard deviation, cosines to within eps of ±1 and angles
    with the margin to within eps of 0 and π. There the cosines of other classes are cut as well.

    Attributes:
        batch_mean, batch_std: float32 scalars, the averages over the batches of all ranks; in the
            state dict.
    """

    batch_mean: Tensor
    batch_std: Tensor

    def __init__(
        self,
        dimensions: int,
        classes: int,
        *,
        margin: float,
        h: float,
        t_alpha: float,
        scale: float,
    ) -> None:
        """Published: margin 0.4, h 0.333; `t_alpha`, the weight of a new batch, 0.01."""
        super().__init__(dimensions, classes, scale=scale)
        self.margin, self.h, self.t_alpha = margin, h, t_alpha
        self.register_buffer("batch_mean", torch.tensor(20.0))
        self.register_buffer("batch_std", torch.tensor(100.0))

    @torch.no_grad()
    def observe(self, norms: Tensor, group: distributed.ProcessGroup | None = None) -> None:
        # Sums, not the norms: their size is the same on every rank, whatever its part of the batch.
        lengths = norms.clamp(1e-3, 100).double()
        sums = torch.stack([torch.ones_like(lengths), lengths, lengths**2]).sum(1)
        if distributed.is_initialized():
            distributed.all_reduce(sums, group=group)
        count, total, squares = sums
        variance = (squares - total**2 / count).clamp(min=0) / (count - 1)
        self.batch_mean.lerp_((total / count).float(), self.t_alpha)
        self.batch_std.lerp_(variance.sqrt().float(), self.t_alpha)

    def with_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        eps = 1e-3  # keeps the derivative of acos finite
        lengths = norms.detach().clamp(1e-3, 100)
        z = (self.h * (lengths - self.batch_mean) / (self.batch_std + eps)).clamp(-1, 1)
        theta = torch.acos(cosines.clamp(eps - 1, 1 - eps))
        angle = (theta - self.margin * z).clamp(eps, math.pi - eps)
        return torch.cos(angle) - (self.margin + self.margin * z)


class MagFace(Head):
    """A margin that grows with the norm, and a pull to large norms: Meng et al., "MagFace" (CVPR
    2021), section 3.2.

    With a the norm, cut to [l_a, u_a], the own class's logit is scale · cos(theta + m(a)) where
    cos(theta) > 0 ("easy margin") and scale · cos(theta) elsewhere; m rises linearly from l_m at
    l_a to u_m at u_a. The loss gets lambda_g · g(a), g(a) = a / u_a² + 1 / a. Norms get their
    gradient from both. As in IrvingMeng/MagFace (models/magface.py), except that the sine is kept
    from 0, where its derivative has no bound.

    That a has one optimum is proven for lambda_g of at least (run/trainer.py there; 22.6)
    scale · (u_m - l_m) / (u_a - l_a) · u_a² · l_a² / (u_a² - l_a²).
    """

    def __init__(
        self,
        dimensions: int,
        classes: int,
        *,
        norms: tuple[float, float],
        margins: tuple[float, float],
        lambda_g: float,
        scale: float,
    ) -> None:
        """Published: norms (l_a, u_a) = (10, 110), margins (l_m, u_m) = (0.45, 0.8) radians,
        lambda_g = 35 (run/run.sh)."""
        super().__init__(dimensions, classes, scale=scale)
        self.l_a, self.u_a = norms
        self.l_m, self.u_m = margins
        self.lambda_g = lambda_g

    def with_margin(self, cosines: Tensor, norms: Tensor) -> Tensor:
        share = (norms.clamp(self.l_a, self.u_a) - self.l_a) / (self.u_a - self.l_a)
        margins = self.l_m + (self.u_m - self.l_m) * share
        # The smallest that 1 - cos² is in float32 before it is 0: nothing but a 0 changes.
        sines = (1 - cosines**2).clamp(min=torch.finfo(torch.float32).eps).sqrt()
        margined = cosines * margins.cos() - sines * margins.sin()
        return torch.where(cosines > 0, margined, cosines)

    def penalty(self, norms: Tensor) -> Tensor:
        lengths = norms.clamp(self.l_a, self.u_a)
        return self.lambda_g * (lengths / self.u_a**2 + 1 / lengths).mean()


def make_head(config: TrainConfig, dimensions: int, classes: int) -> Head:
    """The head that `config.head` names."""
    sizes, margin, scale = (dimensions, classes), config.margin, config.scale
    match config.head:
        case "arcface":
            return ArcFace(*sizes, margin=margin, scale=scale)
        case "cosface":
            return CosFace(*sizes, margin=margin, scale=scale)
        case "combined":
            return CombinedMargin(*sizes, margins=config.margins, scale=scale)
        case "adaface":
            return AdaFace(*sizes, margin=margin, h=config.h, t_alpha=config.t_alpha, scale=scale)
        case "magface":
            norms, margins = config.norms, config.norm_margins
            return MagFace(
                *sizes, norms=norms, margins=margins, lambda_g=config.lambda_g, scale=scale
            )
