"""Vec2Face: an identity's vector to faces of that person.

Wu et al., "Vec2Face" (ICLR 2025) and "Vec2Face+" (arXiv 2507.17192), with the names, shapes and
numbers of the published code (https://github.com/HaiyuWu/Vec2Face,
pixel_generator/vec2face/model_vec2face.py). Vec2Face+'s main model is the same network
(https://github.com/HaiyuWu/Vec2Face_plus, README).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from raypipe.errors import UserError
from raypipe.models import loading
from raypipe.models.vec2face_decoder import ImageDecoder, Upsample
from raypipe.models.vec2face_sizes import INFERENCE, Sizes, sizes_of
from raypipe.models.vec2face_small import SmallDecoder
from raypipe.models.vec2face_tokens import NORM_EPS, Block, Linear, TokenEmbedding

PATCH = 16


class Vec2Face(nn.Module):
    """Identity vectors (B, sizes.vector) to faces (B, 3, H, W), RGB, about [-1, 1], not clipped.

    The published networks take the raw features of ArcFace-R100 (norm about 22), not unit vectors.

    Args:
        sizes: of the network.
        position_std: standard deviation of both position embeddings of a new network (published
            0.02).
    """

    def __init__(self, sizes: Sizes, position_std: float = 0.02) -> None:
        super().__init__()
        self.sizes = sizes
        width, tokens = sizes.width, sizes.side**2
        self.token_emb = TokenEmbedding(tokens + 1, width, position_std)
        self.latent_prior_proj_f = nn.Linear(sizes.vector, width)
        self.feature_token = nn.Linear(1, tokens)
        self.blocks = nn.Sequential(*(Block(width, sizes.heads) for _ in range(sizes.depth)))
        self.norm = nn.LayerNorm(width, NORM_EPS)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, tokens + 1, width))
        self.decoder_blocks = nn.Sequential(
            *(Block(width, sizes.decoder_heads) for _ in range(sizes.decoder_depth))
        )
        self.decoder_norm = nn.LayerNorm(width, NORM_EPS)
        self.im_decoder_proj = nn.Linear(width, sizes.channels)
        self.im_decoder: ImageDecoder | SmallDecoder
        if sizes.blocks:
            self.im_decoder = ImageDecoder(sizes.channels, sizes.levels, sizes.blocks)
        else:
            self.im_decoder = SmallDecoder(sizes.channels, sizes.levels)
        # In the published checkpoints, and in no path: frozen, so that no optimiser touches them.
        self.center_token = nn.Linear(width, tokens).requires_grad_(False)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.patch_embed.requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.decoder_pos_embed_learned, std=position_std)

    @classmethod
    def from_checkpoint(cls, path: str) -> "Vec2Face":
        """The network of a file, in float32 on the CPU and in training mode.

        Reads `vec2face_generator.pth` and other checkpoints of Vec2Face's training script (under
        "model_vec2face"), Vec2Face+'s `main_model.pth`, and what `to_safetensors` made. The sizes
        are told from the shapes, the attention heads from the file's metadata or, for the published
        widths, from the published code.

        Raises:
            UserError: where the file is missing, unsafe, broken, or another network's.
        """
        state = {
            name: value.float() if value.is_floating_point() else value
            for name, value in loading.load_state(path).items()
        }
        own = loading.metadata(path) if path.endswith(".safetensors") else {}
        try:
            # Without memory: a hostile file's shapes are checked before anything is allocated.
            with torch.device("meta"):
                network = cls(sizes_of(state, own))
        except UserError as error:
            raise UserError(f"{path}: not a Vec2Face generator: {error}") from error
        loading.check_state(network, state, path)
        network.load_state_dict(state, assign=True)
        return network

    def to_safetensors(self, dtype: torch.dtype = torch.float32) -> bytes:
        """The content of a `.safetensors` file that `from_checkpoint` reads, in a float type."""
        state = {
            name: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype)
            for name, value in self.state_dict().items()
        }
        heads = f"{self.sizes.heads} {self.sizes.decoder_heads}"
        return save(
            {name: value.contiguous() for name, value in state.items()}, {"vec2face.heads": heads}
        )

    def prepare(self, device: str | torch.device) -> "Vec2Face":
        """Makes the network ready for inference on a device, and for inference alone.

        On a GPU: bfloat16 and compiled. Elsewhere: float32, and on a CPU one more copy of the
        transformer's weights, packed for oneDNN. Everywhere channels last. Vectors may still carry
        gradients; the weights are frozen.
        """
        device = torch.device(device)
        cuda = device.type == "cuda"
        self.eval().requires_grad_(False)
        self.to(device, torch.bfloat16 if cuda else torch.float32)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self.modules():
            if isinstance(module, Upsample | Linear):
                module.prepare()
        if cuda:
            # Batches differ in size only at the end of a run: one recompilation, then any size.
            self._generate = torch.compile(self._generate)  # type: ignore[method-assign]
        return self

    def forward(
        self,
        vectors: Tensor,
        token_noise: Tensor | None = None,
        mask_rate: Tensor | float | None = None,
        *,
        drop_rate: float = INFERENCE.lowest,
    ) -> Tensor:
        """Images (B, 3, H, W), before clipping to [-1, 1].

        Args:
            vectors: (B, sizes.vector).
            token_noise: (B, side²) in [0, 1); the lowest are dropped and masked. None: uniform,
                from torch's generator.
            mask_rate: share of tokens that are masked, in [0, 1]: a number for all images as
                published, or (B,), one an image. None: one for all, drawn as in inference.
            drop_rate: share of tokens that the encoder does not see (`Masking.lowest`).
        """
        if token_noise is None:
            token_noise = torch.rand(len(vectors), self.sizes.side**2, device=vectors.device)
        if mask_rate is None:
            rng = np.random.default_rng(int(torch.randint(2**62, ())))
            mask_rate = INFERENCE.draw(rng)[1]
        return self._generate(vectors, *choose_tokens(token_noise, mask_rate, drop_rate))

    def forward_train(
        self, vectors: Tensor, token_noise: Tensor, mask_rate: Tensor | float, *, drop_rate: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images as `forward` makes them, and the two sides of the published token loss.

        Returns:
            images (B, 3, H, W); the decoder's tokens and their targets, both (B, side², width).
            The published token loss is their mean squared error over all tokens, masked or not
            (discriminator_loss.py); the targets are the feature map and carry no gradient.
        """
        person, features = self._project(vectors)
        kept, masked = choose_tokens(token_noise, mask_rate, drop_rate)
        tokens = self._transform(person, features, kept, masked)
        return self._paint(tokens), tokens, features.detach()

    def _generate(self, vectors: Tensor, kept: Tensor, masked: Tensor) -> Tensor:
        return self._paint(self._transform(*self._project(vectors), kept, masked))

    def _project(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The person as one token (B, 1, D), and the feature map (B, side², D)."""
        person = self.latent_prior_proj_f(vectors.to(self.norm.weight.dtype)).unsqueeze(1)
        # A Linear(1 → side²) on each number, transposed: an outer product.
        return person, person * self.feature_token.weight + self.feature_token.bias.unsqueeze(1)

    def _transform(self, person: Tensor, features: Tensor, kept: Tensor, masked: Tensor) -> Tensor:
        """The decoder's tokens (B, side², D), without the first."""
        x = torch.cat([person, features], dim=1)
        x = self.token_emb(torch.where(masked.unsqueeze(-1), person, x))
        x = self.decoder_embed(self.norm(self.blocks(_take(x, kept))))
        # Where each place finds its token among those kept; dropped and masked ones at the first.
        found = torch.zeros_like(masked, dtype=torch.int64).scatter(
            1, kept, torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        )
        x = _take(x, found.masked_fill(masked, 0)) + self.decoder_pos_embed_learned
        return self.decoder_norm(self.decoder_blocks(x))[:, 1:]

    def _paint(self, tokens: Tensor) -> Tensor:
        side = self.sizes.side
        pixels = self.im_decoder_proj(tokens).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return self.im_decoder(pixels).float()


def to_pixels(images: Tensor) -> np.ndarray:
    """Images (N, 3, H, W) in about [-1, 1] to uint8 (N, H, W, 3)."""
    pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def choose_tokens(
    token_noise: Tensor, mask_rate: Tensor | float, drop_rate: float
) -> tuple[Tensor, Tensor]:
    """Which places of the sequence, 0 being the person and 1 on the tokens, are seen and masked.

    Args:
        token_noise: (B, T); the ceil(T · rate) lowest of an image are chosen.
        mask_rate: one number, or (B,).
        drop_rate: one number, so that all images keep as many tokens.

    Returns:
        The places kept, ascending (B, 1 + T − dropped), int64; and masked (B, 1 + T), bool.
    """
    tokens = token_noise.shape[1]
    order = token_noise.argsort(dim=1, stable=True)
    kept = order[:, math.ceil(tokens * drop_rate) :].sort(dim=1).values + 1
    rates = torch.as_tensor(mask_rate, dtype=torch.float64, device=token_noise.device)
    masked = order.argsort(dim=1) < (tokens * rates).ceil().reshape(-1, 1)
    return F.pad(kept, (1, 0)), F.pad(masked, (1, 0))


def _take(x: Tensor, places: Tensor) -> Tensor:
    """x (B, N, D) at places (B, M), as (B, M, D)."""
    return x.gather(1, places.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
