"""Vec2Face: sizes of the networks, told from weights, and the numbers drawn for each image."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri
from torch import Tensor

from raypipe.errors import UserError
from raypipe.models.vec2face_decoder import GROUPS


@dataclass(frozen=True, kw_only=True)
class Masking:
    """How many tokens are dropped and masked: the rate is a normal truncated to [lowest, 1].

    The lowest rate is also the rate of the tokens that are dropped, the same for every image.
    """

    lowest: float
    mean: float
    std: float

    def draw(self, rng: np.random.Generator, tokens: int = 49) -> tuple[np.ndarray, float]:
        """Randomness of one image: token noise (tokens,), float32 in [0, 1), and a mask rate.

        Args:
            rng: as `raypipe.seeding.generator` gives it for one image.
            tokens: tokens of the network, side².
        """
        noise = rng.random(tokens, dtype=np.float32)
        low, high = ndtr((np.array([self.lowest, 1.0]) - self.mean) / self.std)
        rate = self.mean + self.std * ndtri(low + (high - low) * rng.random())
        return noise, float(np.clip(rate, self.lowest, 1.0))


# The defaults of the published scripts: image_generation*.py, and vec2face.py.
INFERENCE = Masking(lowest=0.1, mean=0.15, std=0.25)
TRAINING = Masking(lowest=0.5, mean=0.75, std=0.25)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a network; the defaults are the published base model's.

    Attributes:
        vector: numbers in an identity's vector.
        width: numbers in a token.
        depth: blocks of the encoder.
        heads: attention heads of the encoder; divides the width.
        decoder_depth: blocks of the decoder.
        decoder_heads: attention heads of the decoder; divides the width.
        side: the tokens are side × side, and so is the map that the image decoder gets.
        channels: channels of that map.
        levels: channels of the image decoder at each size, smallest first; multiples of 32. The
            image has side · 2^(len(levels) − 1) pixels a side.
        blocks: residual blocks at each size; 0: the decoder of the small network
            (`raypipe.models.vec2face_small`), whose levels are any number of channels and whose
            image has 112 pixels a side.
    """

    vector: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    decoder_depth: int = 8
    decoder_heads: int = 16
    side: int = 7
    channels: int = 256
    levels: tuple[int, ...] = (512, 256, 256, 128, 128)
    blocks: int = 2

    def __post_init__(self) -> None:
        if any(heads < 1 or self.width % heads for heads in (self.heads, self.decoder_heads)):
            raise UserError(
                f"{self.heads} and {self.decoder_heads} attention heads do not divide the width "
                f"of {self.width}; choose divisors"
            )
        grouped = self.levels if self.blocks else ()
        if not self.levels or any(channels % GROUPS for channels in grouped):
            raise UserError(
                f"the image decoder's channels {list(self.levels)} are not multiples of {GROUPS}"
            )


# For 128 numbers of dlib's network: 5.9 million parameters, starts from the demo's DCGAN.
SMALL = Sizes(
    vector=128,
    width=192,
    depth=2,
    heads=6,
    decoder_depth=2,
    decoder_heads=6,
    side=4,
    channels=192,
    levels=(512, 256, 128, 64),
    blocks=0,
)

# vec2face_vit_{base,large,huge}_patch16 of model_vec2face.py; image decoder of its vqgan.yaml.
PUBLISHED = {
    "base": Sizes(),
    "large": Sizes(width=1024, depth=24, heads=16),
    "huge": Sizes(width=1280, depth=32, heads=16),
}


def sizes_of(state: dict[str, Tensor], metadata: dict[str, str]) -> Sizes:
    """Sizes of the network that a state dict belongs to; UserError where they cannot be told."""

    def size(name: str, axis: int) -> int:
        if name not in state:
            raise UserError(f"{name!r} is missing")
        if state[name].ndim <= axis:
            raise UserError(f"{name!r} has shape {list(state[name].shape)}")
        return state[name].shape[axis]

    def count(prefix: str, suffix: str) -> int:
        return sum(name.startswith(prefix) and name.endswith(suffix) for name in state)

    width = size("latent_prior_proj_f.weight", 0)
    if "vec2face.heads" in metadata:
        try:
            heads, decoder_heads = map(int, metadata["vec2face.heads"].split())
        except ValueError as error:
            raise UserError("its metadata 'vec2face.heads' is not two numbers") from error
    else:
        published = [sizes for sizes in PUBLISHED.values() if sizes.width == width]
        if not published:
            raise UserError(f"a width of {width} is not published, and no metadata tells the heads")
        heads, decoder_heads = published[0].heads, published[0].decoder_heads
    blocks = count("im_decoder.up.0.block.", ".conv2.weight")
    level, axis = (".block.0.conv2.weight", 0) if blocks else (".weight", 1)
    levels = tuple(
        size(f"im_decoder.up.{k}{level}", axis) for k in range(count("im_decoder.up.", level))
    )
    return Sizes(
        vector=size("latent_prior_proj_f.weight", 1),
        width=width,
        depth=count("blocks.", ".attn.qkv.weight"),
        heads=heads,
        decoder_depth=count("decoder_blocks.", ".attn.qkv.weight"),
        decoder_heads=decoder_heads,
        side=math.isqrt(size("feature_token.weight", 0)),
        channels=size("im_decoder_proj.weight", 0),
        levels=levels[::-1] if blocks else levels,  # published: `up.0` is the largest size
        blocks=blocks,
    )
