"""CemiFace: a diffusion network that paints faces at a chosen similarity to an inquiry face.

Sun et al., "CemiFace: Center-based semi-hard synthetic face generation for face recognition"
(NeurIPS 2024, arXiv 2409.18876). The UNet is that of the code which CemiFace builds on (DCFace,
github.com/mk-minchul/dcface), put together from diffusers' blocks: attention there takes further
keys and values, and the residual blocks know nothing but the time. No weights were published.

A feature's length says nothing about the person, and with some embedders (dlib's) all features
share a large part. So the network sees the direction of a feature from the mean of the set that
it learnt from, which the weights hold; similarity is the cosine of two such directions. For
embedders with an angular margin that mean is nearly 0, and the cosine is the published one.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from raypipe.errors import UserError
from raypipe.models import loading

STEPS = 1000  # published: T
SIDE = 112  # pixels of what `sample` returns
# Of Ho et al., "Denoising diffusion probabilistic models" (NeurIPS 2020), as published for DCFace.
_NOISE = {"num_train_timesteps": STEPS, "beta_start": 1e-4, "beta_end": 0.02}
_METADATA = "cemiface.sizes"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a network is built from.

    Attributes:
        vector: numbers of a feature.
        side: pixels of the square it paints.
        channels: of each level, from the finest; every level halves the side, rounding down.
        attention: levels with attention, counted from 0; the middle has it always.
        head: channels of a head of attention.
        condition: numbers of the token that attention sees.
        prediction: what the UNet finds: the noise ε, as published, or the velocity
            √ᾱ ε − √(1 − ᾱ) x0 (Salimans and Ho 2022, arXiv 2202.00512). Where there is much noise,
            a small error of ε is a wrong colour of the whole picture; one of the velocity is not.
    """

    vector: int
    side: int
    channels: tuple[int, ...]
    attention: tuple[int, ...]
    head: int
    condition: int
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"


def published(vector: int) -> Sizes:
    """The published size: 128 channels times 1, 1, 2, 2, 4, 4, attention at 7×7.

    A condition of 512 numbers is DCFace's; that of CemiFace is not published.
    """
    return Sizes(
        vector=vector,
        side=112,
        channels=(128, 128, 256, 256, 512, 512),
        attention=(4,),
        head=64,
        condition=512,
    )


def small(vector: int) -> Sizes:
    """For CPUs: 32×32 pixels, attention at 8×8."""
    return Sizes(
        vector=vector,
        side=32,
        channels=(32, 64, 96),
        attention=(2,),
        head=32,
        condition=128,
        prediction="v_prediction",
    )


def noise_schedule() -> Any:
    """How much noise a step has (a DDPMScheduler): linear, 1e-4 to 0.02."""
    return DDPMScheduler(**_NOISE)


class CemiFace(nn.Module):
    """The UNet and what it is told: a feature and a similarity.

    Attributes:
        sizes: what it is built from.
        centre: float32 (sizes.vector,), mean feature of the set that it learnt from.
    """

    centre: Tensor

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.register_buffer("centre", torch.zeros(sizes.vector))
        # Published: F1 is linear in the scalar, F2 in both together.
        self.similarity = nn.Linear(1, sizes.condition)
        self.condition = nn.Linear(sizes.vector + sizes.condition, sizes.condition)
        self.unet: Any = _unet(sizes)

    @classmethod
    def from_checkpoint(cls, path: str) -> "CemiFace":
        """The network of a file that `to_safetensors` made, in float32 on the CPU.

        Raises:
            UserError: where the file is missing, unsafe, broken, or another network's.
        """
        state = {name: value.float() for name, value in loading.load_state(path).items()}
        own = loading.metadata(path) if path.endswith(".safetensors") else {}
        if _METADATA not in own:
            raise UserError(
                f"{path}: not a CemiFace generator; name what `raypipe train_cemiface` wrote"
            )
        # Without memory: a hostile file's shapes are checked before anything is allocated.
        try:
            with torch.device("meta"):
                network = cls(_parse(own[_METADATA]))
        except Exception as error:  # whatever hostile sizes make the blocks raise
            raise UserError(
                f"{path}: not a CemiFace generator: its sizes {own[_METADATA][:200]!r} make no "
                f"network ({loading.first_line(error)})"
            ) from error
        loading.check_state(network, state, path)
        network.load_state_dict(state, assign=True)
        return network

    def to_safetensors(self, dtype: torch.dtype = torch.float32) -> bytes:
        """The content of a `.safetensors` file that `from_checkpoint` reads, in a float type."""
        state = {
            name: value.detach().cpu().to(dtype).contiguous()
            for name, value in self.state_dict().items()
        }
        return save(state, {_METADATA: json.dumps(asdict(self.sizes))})

    def prepare(self, device: str | torch.device) -> "CemiFace":
        """Makes the network ready for inference on a device, and for inference alone.

        On a GPU the UNet is in bfloat16 and compiled. Everywhere channels last.
        """
        device = torch.device(device)
        self.eval().requires_grad_(False).to(device)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cuda":
            self.unet.to(torch.bfloat16)
            # Batches differ in size only at the end of a run: one recompilation, then any size.
            self.unet.compile()
        return self

    @torch.no_grad()
    def stretch(self, factor: float, about: float) -> None:
        """Makes the dial steeper: m is from now on what about + factor (m - about) was before.

        F1 is linear, so this is a change of its weights alone. A network that was trained for a
        short time knows the direction sooner than the distance.
        """
        layer = self.similarity
        layer.bias.add_(layer.weight[:, 0] * about * (1 - factor))
        layer.weight.mul_(factor)

    def direction(self, vectors: Tensor) -> Tensor:
        """Unit directions (B, D) of raw features (B, D) from the centre."""
        return F.normalize(vectors.float() - self.centre)

    def forward(self, noisy: Tensor, times: Tensor, vectors: Tensor, similarity: Tensor) -> Tensor:
        """The noise in pictures, or their velocity (`sizes.prediction`).

        Args:
            noisy: (B, 3, side, side).
            times: int64 (B,) in [0, 1000).
            vectors: raw features of the inquiry faces, (B, D).
            similarity: wanted, (B,) in [-1, 1].

        Returns:
            (B, 3, side, side).
        """
        return self._denoise(noisy, times, self._tell(vectors, similarity))

    def _tell(self, vectors: Tensor, similarity: Tensor) -> Tensor:
        """The token (B, 1, condition) that attention takes keys and values from."""
        # Scaled to a variance of 1, like what the layers behind it see elsewhere.
        person = self.direction(vectors) * self.sizes.vector**0.5
        wanted = self.similarity(similarity.float().unsqueeze(1))
        return self.condition(torch.cat([person, wanted], dim=1)).unsqueeze(1)

    def _denoise(self, noisy: Tensor, times: Tensor, token: Tensor) -> Tensor:
        kind = self.unet.dtype
        return self.unet(noisy.to(kind), times, token.to(kind)).sample

    def sample(self, vectors: Tensor, similarity: Tensor, noise: Tensor, steps: int) -> Tensor:
        """Paints by DDIM (Song et al. 2021) with η 0: nothing is random but the noise given.

        Args:
            vectors: raw features of the inquiry faces, float32 (B, D).
            similarity: wanted, float32 (B,) in [-1, 1].
            noise: standard normal, float32 (B, 3, side, side).
            steps: of DDIM; published: 20.

        Returns:
            float32 (B, 3, 112, 112) in [-1, 1].
        """
        schedule: Any = DDIMScheduler(**_NOISE, prediction_type=self.sizes.prediction)
        schedule.set_timesteps(steps)
        token = self._tell(vectors, similarity)
        images = noise.contiguous(memory_format=torch.channels_last)
        for time in schedule.timesteps.tolist():
            times = torch.full((len(images),), time, device=images.device)
            found = self._denoise(images, times, token).float()
            images = schedule.step(found, time, images).prev_sample
        return enlarge(images)


def enlarge(images: Tensor) -> Tensor:
    """Pictures (B, 3, side, side) at the size that embedders take, 112×112."""
    if images.shape[-1] == SIDE:
        return images
    return F.interpolate(images, size=SIDE, mode="bilinear", align_corners=False)


def _parse(text: str) -> Sizes:
    values = json.loads(text)
    return Sizes(**{**values, **{name: tuple(values[name]) for name in ("channels", "attention")}})


def _unet(sizes: Sizes) -> UNet2DConditionModel:
    levels = range(len(sizes.channels))
    sides = [sizes.side >> level for level in levels]
    down = [
        "SimpleCrossAttnDownBlock2D" if level in sizes.attention else "ResnetDownsampleBlock2D"
        for level in levels
    ]
    up = [
        "SimpleCrossAttnUpBlock2D" if level in sizes.attention else "ResnetUpsampleBlock2D"
        for level in levels
    ]
    for level in levels[1:]:
        # From 3×3 back to 7×7: only this block can be told a size; the others double.
        if sides[level - 1] != 2 * sides[level]:
            up[level] = "UpBlock2D"
    return UNet2DConditionModel(
        sample_size=sizes.side,
        in_channels=3,
        out_channels=3,
        block_out_channels=sizes.channels,
        down_block_types=tuple(down),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=tuple(reversed(up)),
        layers_per_block=1,
        attention_head_dim=sizes.head,
        cross_attention_dim=sizes.condition,
        resnet_time_scale_shift="scale_shift",
    )
