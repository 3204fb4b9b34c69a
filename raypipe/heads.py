"""Classification heads that shape the embedding while the recognizer trains."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class ArcFace(nn.Module):
    """Additive angular margin: Deng et al., "ArcFace" (CVPR 2019), equation 3.

    The logit of class k is scale · cos(theta_k), theta_k the angle between the embedding and the
    class's weight vector; the image's own class gets scale · cos(theta + margin).

    The margin is applied as in insightface (recognition/arcface_torch/losses.py): its amount is
    computed without gradient, so the derivative of every logit with respect to its cosine is the
    scale; the exact one would be scale · sin(theta + margin) / sin(theta), which has no bound near
    theta = 0 and changes sign beyond theta = π - margin. No branch treats that region differently.

    Computed in float32 also under autocast.

    Attributes:
        weight: float32 (classes, dimensions), drawn from N(0, 0.01) (standard deviation 0.01, as in
            arcface_torch).
    """

    def __init__(self, dimensions: int, classes: int, *, margin: float, scale: float) -> None:
        """`margin` is in radians (published: 0.5); published scale: 64."""
        super().__init__()
        self.margin = margin
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(classes, dimensions).normal_(0, 0.01))

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
            unit = functional.normalize(embeddings.float())
            cosines = functional.linear(unit, functional.normalize(self.weight)).clamp(-1, 1)
            with torch.no_grad():
                own = labels.unsqueeze(1)
                cosine = cosines.gather(1, own)
                shift = torch.cos(torch.acos(cosine) + self.margin) - cosine
                shifts = torch.zeros_like(cosines).scatter_(1, own, shift)
            return (cosines + shifts) * self.scale, cosines
