"""A small convolutional network for quality, yaw and pitch of a face."""

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from raypipe.models.loading import load_into

ATTRIBUTES = ("quality", "yaw", "pitch")
_CHANNELS = ((3, 16, 2), (16, 32, 1), (32, 48, 2), (48, 64, 2), (64, 96, 1))
_SIDE = 7  # of the last map


class FaceAttributes(nn.Module):
    """Face (N, 3, 112, 112) in [-1, 1], RGB, to `ATTRIBUTES` (N, 3).

    Quality is a score of dlib's face detector, the larger the clearer; yaw and pitch are degrees,
    positive where the face looks to the right as the viewer sees it, and downwards
    (`raypipe.estimator_labels`). 0.2 million numbers. SiLU, for it is smooth: what is optimised by
    the gradient must not stand still where a unit is off.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in _CHANNELS:
            layers += [
                nn.Conv2d(before, after, 3, stride, 1, bias=False),
                nn.BatchNorm2d(after),
                nn.SiLU(),
            ]
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(_CHANNELS[-1][1] * _SIDE**2, len(ATTRIBUTES))
        # Of the attributes in the training set; the head's outputs are standardised.
        self.register_buffer("mean", torch.zeros(len(ATTRIBUTES)))
        self.register_buffer("scale", torch.ones(len(ATTRIBUTES)))

    @classmethod
    def from_checkpoint(cls, path: str) -> "FaceAttributes":
        """The network of a file, on the CPU, for inference alone.

        Raises:
            UserError: where the file is missing, unsafe, or another network's.
        """
        network = cls()
        load_into(network, path)
        return network.eval().requires_grad_(False)

    def to_safetensors(self) -> bytes:
        """The content of a `.safetensors` file that `from_checkpoint` reads, float16."""
        return save(
            {
                name: value.half().contiguous()
                for name, value in self.state_dict().items()
                if value.is_floating_point()
            }
        )

    def standardised(self, images: Tensor) -> Tensor:
        """(attribute − mean) / scale, (N, 3)."""
        x = self.layers(F.avg_pool2d(images, 2))
        return self.head(self.dropout(x.flatten(1)))

    def forward(self, images: Tensor) -> Tensor:
        return self.mean + self.scale * self.standardised(images)
