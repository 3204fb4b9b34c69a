"""Vec2Face's transformer: position embeddings and pre-norm blocks, with the published names."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raypipe.models.vec2face_decoder import Prepared

NORM_EPS = 1e-6
DROPOUT = 0.1


class Linear(nn.Linear, Prepared):
    """A linear layer that runs in oneDNN on a CPU once it is prepared and no gradient is wanted.

    torch leaves float32 to MKL, which on processors that are not Intel's reaches less than half of
    oneDNN's speed (99 against 220 GFLOP/s on one core of an EPYC with AVX-512).
    """

    def prepare(self) -> None:
        """Packs the present weights for oneDNN; training or loading drops the result."""
        if self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            self.prepared = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        if self.prepared is None or torch.is_grad_enabled():
            return super().forward(x)
        return torch.ops.mkldnn._linear_pointwise(x, self.prepared, self.bias, "none", [], "")


class Attention(nn.Module):
    """Multi-head self-attention (B, N, D), query, key and value from one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        dropout = DROPOUT if self.training else 0.0
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return F.dropout(self.proj(x.transpose(1, 2).flatten(2)), DROPOUT, self.training)


class MLP(nn.Module):
    """Linear to four times the width, GELU, and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.gelu(self.fc1(x)), DROPOUT, self.training)
        return F.dropout(self.fc2(x), DROPOUT, self.training)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, NORM_EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, NORM_EPS)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenEmbedding(nn.Module):
    """Adds position embeddings to (B, N, D), then LayerNorm."""

    position_ids: Tensor

    def __init__(self, places: int, width: int, position_std: float) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(places, width)
        self.LayerNorm = nn.LayerNorm(width, NORM_EPS)
        # Published checkpoints hold it; the places are always all, in order.
        self.register_buffer("position_ids", torch.arange(places).expand(1, -1).clone())
        nn.init.normal_(self.position_embeddings.weight, std=position_std)

    def forward(self, x: Tensor) -> Tensor:
        x = self.LayerNorm(x + self.position_embeddings.weight)
        return F.dropout(x, DROPOUT, self.training)
