"""Images a second of Vec2Face's base model on 2 cores, beside a straightforward forward pass.

    python benchmarks/vec2face.py

The plain one is the published forward pass written down step by step: float32, explicit softmax
attention, nearest upsampling and then the convolution. Both have the same weights (174 million,
random) and inputs, run in turns in one process, and must agree to 1e-3. Batches of 8. On a busy
machine only the figure per processor second says something about the networks.
"""

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from raypipe.models.vec2face import Vec2Face
from raypipe.models.vec2face_sizes import INFERENCE, PUBLISHED
from raypipe.seeding import generator

BATCH = 8
ROUNDS = 8
THREADS = 2


class Plain:
    """Vec2Face's forward pass on a state dict, without a trick."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, 1e-6)

    def conv(self, x: Tensor, name: str) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = weight.shape[-1] // 2
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=padding)

    def norm_silu(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return F.silu(F.group_norm(x, 32, weight, bias, 1e-6))

    def transformer(self, x: Tensor, name: str, heads: int) -> Tensor:
        batch, places, width = x.shape
        qkv = self.linear(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv")
        qkv = qkv.reshape(batch, places, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        attention = (query @ key.transpose(-2, -1) * (width // heads) ** -0.5).softmax(dim=-1)
        y = (attention @ value).transpose(1, 2).reshape(batch, places, width)
        x = x + self.linear(y, f"{name}.attn.proj")
        y = F.gelu(self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + self.linear(y, f"{name}.mlp.fc2")

    def residual(self, x: Tensor, name: str) -> Tensor:
        h = self.conv(self.norm_silu(x, f"{name}.norm1"), f"{name}.conv1")
        h = self.conv(self.norm_silu(h, f"{name}.norm2"), f"{name}.conv2")
        shortcut = f"{name}.nin_shortcut"
        return h + (self.conv(h, shortcut) if f"{shortcut}.weight" in self.state else x)

    def __call__(self, vectors: Tensor, token_noise: Tensor, mask_rates: Tensor) -> Tensor:
        person = self.linear(vectors, "latent_prior_proj_f")
        features = self.linear(person.unsqueeze(-1), "feature_token").permute(0, 2, 1)
        rank = token_noise.argsort(1).argsort(1)
        dropped = rank < 5
        masked = rank < (49 * mask_rates.unsqueeze(1)).ceil()
        features = torch.where(masked.unsqueeze(-1), person.unsqueeze(1), features)
        x = torch.cat([person.unsqueeze(1), features], dim=1)
        first = torch.zeros(len(x), 1, dtype=torch.bool)
        dropped, masked = torch.cat([first, dropped], 1), torch.cat([first, masked], 1)
        x = x + self.state["token_emb.position_embeddings.weight"]
        x = self.norm(x, "token_emb.LayerNorm")
        x = x[~dropped].reshape(len(x), -1, x.shape[-1])
        for k in range(12):
            x = self.transformer(x, f"blocks.{k}", 12)
        x = self.linear(self.norm(x, "norm"), "decoder_embed")
        full = x[:, :1].repeat(1, 50, 1)
        full[~dropped] = x.flatten(0, 1)
        x = torch.where(masked.unsqueeze(-1), x[:, :1], full)
        x = x + self.state["decoder_pos_embed_learned"]
        for k in range(8):
            x = self.transformer(x, f"decoder_blocks.{k}", 16)
        x = self.linear(self.norm(x, "decoder_norm")[:, 1:], "im_decoder_proj")
        x = x.reshape(-1, 7, 7, x.shape[-1]).permute(0, 3, 1, 2)
        x = self.conv(x, "im_decoder.conv_in")
        x = self.residual(x, "im_decoder.mid.block_1")
        x = self.residual(x, "im_decoder.mid.block_2")
        for level in reversed(range(5)):
            for block in range(2):
                x = self.residual(x, f"im_decoder.up.{level}.block.{block}")
            if level:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = self.conv(x, f"im_decoder.up.{level}.upsample.conv")
        return self.conv(self.norm_silu(x, "im_decoder.norm_out"), "im_decoder.conv_out")


def seconds(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> tuple[float, float]:
    """Wall and processor seconds of one batch."""
    wall, cpu = time.perf_counter(), time.process_time()
    function(*inputs)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    network = Vec2Face(PUBLISHED["base"])
    plain = Plain({name: value.clone() for name, value in network.state_dict().items()})
    network.prepare("cpu")
    vectors = torch.randn(BATCH, 512)
    drawn = [INFERENCE.draw(generator(0, "person", index, "mask")) for index in range(BATCH)]
    noise = torch.stack([torch.from_numpy(noise) for noise, _ in drawn])
    rates = torch.tensor([rate for _, rate in drawn], dtype=torch.float64)
    inputs = (vectors, noise, rates)
    with torch.inference_mode():
        difference = (network(*inputs) - plain(*inputs)).abs().max().item()
        assert difference < 1e-3, difference
        times = [[seconds(plain, inputs), seconds(network, inputs)] for _ in range(ROUNDS)]
    print(f"largest difference of a pixel: {difference:.1e}")
    print(f"images/s, batch {BATCH}, {THREADS} threads; per processor second in the last column")
    print(f"{'':8} {'best':>7} {'median':>7} {'cpu':>7}")
    rows = []
    for name, column in zip(("plain", "Vec2Face"), zip(*times, strict=True), strict=True):
        walls, cpus = zip(*column, strict=True)
        rows.append([BATCH / t for t in (min(walls), statistics.median(walls), min(cpus))])
        print(f"{name:8} " + " ".join(f"{figure:7.2f}" for figure in rows[-1]))
    ratios = [fast / slow for slow, fast in zip(*rows, strict=True)]
    print(f"{'ratio':8} " + " ".join(f"{ratio:7.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
