"""CemiFace's network: what sees the identity, sizes, files, sampling."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from safetensors.torch import load, save

from raypipe.errors import UserError
from raypipe.models.cemiface import SIDE, STEPS, CemiFace, Sizes, published, small

TINY = Sizes(vector=16, side=16, channels=(32, 32, 64), attention=(1,), head=16, condition=32)
VELOCITY = replace(TINY, prediction="v_prediction")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def network() -> CemiFace:
    torch.manual_seed(0)
    made = CemiFace(TINY)
    made.centre.copy_(torch.randn(TINY.vector))
    return made.eval()


def inputs(count: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, similarities and noise."""
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, TINY.vector, generator=random),
        torch.rand(count, generator=random) * 2 - 1,
        torch.randn(count, 3, TINY.side, TINY.side, generator=random),
    )


def attentions(network: CemiFace) -> list[Attention]:
    return [module for module in network.unet.modules() if isinstance(module, Attention)]


@torch.no_grad()
def test_the_condition_is_further_keys_and_values_of_attention_and_nothing_else(
    network: CemiFace,
) -> None:
    vectors, wanted, noise = inputs(2)
    times = torch.tensor([10, 900])
    before = network(noise, times, vectors, wanted)
    assert not torch.allclose(before, network(noise, times, -vectors, wanted))
    assert not torch.allclose(before, network(noise, times, vectors, -wanted))
    # One level down, one up, and the middle; up has a block more than down.
    assert len(attentions(network)) == 1 + 2 + 1
    for attention in attentions(network):
        # With values of 0 and keys that nobody looks at, attention is to the picture alone.
        torch.nn.init.zeros_(attention.add_v_proj.weight)
        torch.nn.init.zeros_(attention.add_v_proj.bias)
        torch.nn.init.zeros_(attention.add_k_proj.weight)
        torch.nn.init.zeros_(attention.add_k_proj.bias)
    blind = network(noise, times, vectors, wanted)
    assert torch.equal(blind, network(noise, times, -vectors, -wanted))
    # Time still counts: the residual blocks see it.
    assert not torch.allclose(blind, network(noise, times.flip(0), vectors, wanted))


@torch.no_grad()
def test_attention_is_the_published_formula(network: CemiFace) -> None:
    """softmax(Q [Kc, K]ᵀ / √d) [Vc, V], written down a second time."""
    attention = attentions(network)[0]
    random = torch.Generator().manual_seed(2)
    maps = torch.randn(2, 32, 4, 4, generator=random)
    token = torch.randn(2, 1, TINY.condition, generator=random)
    found = attention(maps, encoder_hidden_states=token)
    x = attention.group_norm(maps.flatten(2)).transpose(1, 2)
    key = torch.cat([attention.add_k_proj(token), attention.to_k(x)], dim=1)
    value = torch.cat([attention.add_v_proj(token), attention.to_v(x)], dim=1)
    parts = []
    for head in (slice(0, 16), slice(16, 32)):
        scores = attention.to_q(x)[..., head] @ key[..., head].transpose(1, 2) / 16**0.5
        parts.append(scores.softmax(-1) @ value[..., head])
    wanted = attention.to_out[0](torch.cat(parts, dim=-1)).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(found, wanted + maps)


@torch.no_grad()
def test_it_sees_the_direction_from_the_centre_alone(network: CemiFace) -> None:
    vectors, wanted, noise = inputs(2)
    times = torch.tensor([500, 500])
    longer = network.centre + 7 * (vectors - network.centre)
    torch.testing.assert_close(
        network(noise, times, longer, wanted), network(noise, times, vectors, wanted)
    )


@torch.no_grad()
def test_a_steeper_dial_tells_the_network_what_it_was_told_further_out(network: CemiFace) -> None:
    vectors, wanted, noise = inputs(4)
    times = torch.tensor([10, 300, 600, 900])
    further = network(noise, times, vectors, 0.5 + 3 * (wanted - 0.5))
    network.stretch(3.0, 0.5)
    torch.testing.assert_close(network(noise, times, vectors, wanted), further)


def test_the_sizes_of_the_paper() -> None:
    with torch.device("meta"):
        network = CemiFace(published(512))
        shape = network(
            torch.zeros(1, 3, 112, 112),
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, 512),
            torch.zeros(1),
        ).shape
    assert shape == (1, 3, 112, 112)
    assert {a.heads * 64 for a in attentions(network)} == {512}
    assert [block.__class__.__name__ for block in network.unet.down_blocks] == [
        *["ResnetDownsampleBlock2D"] * 4,
        "SimpleCrossAttnDownBlock2D",
        "ResnetDownsampleBlock2D",
    ]
    with torch.device("meta"):
        numbers = sum(p.numel() for p in CemiFace(small(128)).parameters())
    assert 2 * numbers < 12e6  # bytes in half precision


@pytest.mark.parametrize("sizes", [TINY, VELOCITY])
@torch.inference_mode()
def test_sampling_is_ddim_without_noise_of_its_own(sizes: Sizes) -> None:
    """Equations of Song et al. with η 0, written down a second time."""
    torch.manual_seed(0)
    network = CemiFace(sizes).prepare("cpu")
    vectors, wanted, noise = inputs(2)
    found = network.sample(vectors, wanted, noise, 4)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS), 0)
    x = noise
    for time in (750, 500, 250, 0):
        now, after = kept[time], kept[time - 250]
        guess = network(x, torch.full((2,), time), vectors, wanted)
        if sizes.prediction == "v_prediction":
            clean = now.sqrt() * x - (1 - now).sqrt() * guess
            guess = now.sqrt() * guess + (1 - now).sqrt() * x
        else:
            clean = (x - (1 - now).sqrt() * guess) / now.sqrt()
        clean = clean.clamp(-1, 1)
        x = after.sqrt() * clean + (1 - after).sqrt() * guess if time else clean
    wanted_images = torch.nn.functional.interpolate(x, size=SIDE, mode="bilinear")
    assert found.shape == (2, 3, SIDE, SIDE)
    torch.testing.assert_close(found, wanted_images, atol=1e-3, rtol=0)


@torch.inference_mode()
def test_an_image_does_not_depend_on_its_batch(network: CemiFace) -> None:
    network.prepare("cpu")
    vectors, wanted, noise = inputs(5)
    whole = network.sample(vectors, wanted, noise, 3)
    for parts in ([1] * 5, [2, 3], [4, 1]):
        split = [
            network.sample(*group, 3)
            for group in zip(*(x.split(parts) for x in (vectors, wanted, noise)), strict=True)
        ]
        # What is left is rounding: a tenth of a grey level.
        torch.testing.assert_close(torch.cat(split), whole, atol=1e-3, rtol=0)


def test_a_file_gives_the_network_back(network: CemiFace, tmp_path: Path) -> None:
    path = tmp_path / "cemiface.safetensors"
    path.write_bytes(network.to_safetensors())
    again = CemiFace.from_checkpoint(str(path)).eval()
    assert again.sizes == TINY
    vectors, wanted, noise = inputs(1)
    times = torch.tensor([3])
    with torch.no_grad():
        assert torch.equal(
            again(noise, times, vectors, wanted), network(noise, times, vectors, wanted)
        )
    path.write_bytes(network.to_safetensors(torch.float16))
    half = CemiFace.from_checkpoint(str(path))
    assert {p.dtype for p in half.parameters()} == {torch.float32}


def test_files_that_are_no_cemiface_are_named(network: CemiFace, tmp_path: Path) -> None:
    path = str(tmp_path / "x.safetensors")
    data = network.to_safetensors()
    tensors = load(data)

    def written(state: dict[str, torch.Tensor], sizes: str | None) -> str:
        Path(path).write_bytes(save(state, {"cemiface.sizes": sizes} if sizes else None))
        return path

    good = '{"vector": 16, "side": 16, "channels": [32, 32, 64], "attention": [1], "head": 16, '
    good += '"condition": 32}'
    CemiFace.from_checkpoint(written(tensors, good))
    with pytest.raises(UserError, match=r"not a CemiFace generator; name what `raypipe train_"):
        CemiFace.from_checkpoint(written(tensors, None))
    for bad in ("[]", "{", good.replace("32, 32", "31, 32"), good.replace('"side"', '"sied"')):
        with pytest.raises(UserError, match="not a CemiFace generator: its sizes"):
            CemiFace.from_checkpoint(written(tensors, bad))
    with pytest.raises(UserError, match="has shape"):
        CemiFace.from_checkpoint(
            written(
                tensors,
                good.replace('16, "cond', '8, "cond').replace('"condition": 32', '"condition": 64'),
            )
        )
