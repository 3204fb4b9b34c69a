"""Vec2Face against the published names, shapes and outputs; masking, training, loading, folding."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from raypipe.errors import UserError
from raypipe.models.vec2face import Vec2Face, choose_tokens
from raypipe.models.vec2face_decoder import Upsample
from raypipe.models.vec2face_sizes import INFERENCE, PUBLISHED, TRAINING, Masking, Sizes
from raypipe.seeding import generator

PARITY = Path(__file__).parents[2] / "data" / "parity"
SMALL = Sizes(
    vector=16,
    width=32,
    depth=2,
    heads=4,
    decoder_depth=1,
    decoder_heads=2,
    side=4,
    channels=16,
    levels=(64, 32, 32),
    blocks=1,
)
SHAPES = json.loads((PARITY / "vec2face_state_dict.json").read_text())


def small(seed: int = 0) -> Vec2Face:
    torch.manual_seed(seed)
    return Vec2Face(SMALL).eval()


def inputs(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, SMALL.vector, generator=random)
    noise = torch.rand(count, SMALL.side**2, generator=random)
    return vectors, noise, 0.1 + 0.9 * torch.rand(count, generator=random)


def case() -> tuple[torch.Tensor, torch.Tensor, float, dict[str, np.ndarray]]:
    stored = dict(np.load(PARITY / "vec2face_case.npz"))
    vectors, noise = (torch.from_numpy(stored[name]) for name in ("vectors", "token_noise"))
    return vectors, noise, float(stored["mask_rate"]), stored


@pytest.mark.slow
def test_images_are_those_of_the_published_network(formula_weights, tmp_path: Path) -> None:
    path = tmp_path / "vec2face_generator.pth"
    torch.save({"model_vec2face": formula_weights(SHAPES), "epoch": 99}, path)
    network = Vec2Face.from_checkpoint(str(path)).prepare("cpu")
    assert network.sizes == PUBLISHED["base"]
    vectors, noise, rate, stored = case()
    with torch.inference_mode():
        images = network(vectors, noise, rate).numpy()
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, stored["image"], atol=1e-3, rtol=0)


def test_dropped_and_masked_tokens_are_the_published_ones() -> None:
    _, noise, rate, stored = case()
    kept, masked = choose_tokens(noise, rate, INFERENCE.lowest)
    dropped = torch.ones(masked.shape).scatter(1, kept, 0.0)
    np.testing.assert_array_equal(dropped.numpy(), stored["dropped"])
    np.testing.assert_array_equal(masked.numpy(), stored["masked"])
    assert torch.equal(kept, kept.sort(dim=1).values)


@pytest.mark.parametrize(
    ("name", "parameters"), [("base", 174.1), ("large", 436.3), ("huge", 821.4)]
)
def test_names_and_shapes_are_the_published_ones(name: str, parameters: float) -> None:
    with torch.device("meta"):
        network = Vec2Face(PUBLISHED[name])
    shapes = {entry: list(value.shape) for entry, value in network.state_dict().items()}
    if name == "base":
        assert shapes == SHAPES
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count / 1e6 == pytest.approx(parameters, abs=0.05)


def test_a_rate_an_image_is_that_image_alone() -> None:
    network, (vectors, noise, rates) = small(), inputs(5)
    with torch.inference_mode():
        together = network(vectors, noise, rates)
        alone = [network(vectors[k, None], noise[k, None], float(rates[k])) for k in range(5)]
    assert together.shape == (5, 3, 16, 16)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_what_is_masked_matters_and_what_is_not_drawn_is_drawn() -> None:
    network, (vectors, noise, _) = small(), inputs(3)
    with torch.inference_mode():
        few, all_masked = network(vectors, noise, 0.1), network(vectors, noise, 1.0)
        torch.manual_seed(1)
        free = network(vectors)
        assert not torch.equal(network(vectors), free)
        torch.manual_seed(1)
        assert torch.equal(network(vectors), free)
        dropped = network(vectors, noise, 1.0, drop_rate=0.5)
    assert (few - all_masked).abs().max() > 1e-3
    assert (dropped - all_masked).abs().max() > 1e-3


@pytest.mark.parametrize("masking", [INFERENCE, TRAINING])
def test_mask_rates_follow_the_truncated_normal(masking: Masking) -> None:
    drawn = [masking.draw(generator(7, "person", index, "mask")) for index in range(2000)]
    rates = np.array([rate for _, rate in drawn])
    bounds = [(edge - masking.mean) / masking.std for edge in (masking.lowest, 1.0)]
    law = stats.truncnorm(*bounds, loc=masking.mean, scale=masking.std)
    assert stats.kstest(rates, law.cdf).pvalue > 0.01
    noise = np.stack([noise for noise, _ in drawn])
    assert noise.shape == (2000, 49)
    assert noise.dtype == np.float32
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 0.01
    again = masking.draw(generator(7, "person", 3, "mask"))
    assert np.array_equal(again[0], noise[3]) and again[1] == rates[3]


def test_folded_upsampling_is_the_plain_one_and_follows_the_weights() -> None:
    torch.manual_seed(0)
    upsample, x = Upsample(32).eval(), torch.randn(2, 32, 5, 7)
    names = list(upsample.state_dict())
    plain = upsample(x)
    upsample.prepare()
    assert list(upsample.state_dict()) == names
    folded = upsample(x)
    assert not torch.equal(folded, plain)
    torch.testing.assert_close(folded, plain, atol=1e-5, rtol=0)
    upsample.load_state_dict({name: 2 * value for name, value in upsample.state_dict().items()})
    torch.testing.assert_close(upsample(x), 2 * plain, atol=1e-5, rtol=0)
    upsample.prepare()
    assert torch.equal(
        upsample.train().eval()(x), upsample.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    )


def test_a_prepared_network_gives_the_same_images_and_gradients_of_vectors() -> None:
    network, (vectors, noise, rates) = small(), inputs(3)
    vectors.requires_grad_()

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        images = network(vectors, noise, rates)
        (gradient,) = torch.autograd.grad(images.square().sum(), vectors)
        return images, gradient

    images, gradient = run()
    network.prepare("cpu")
    same, same_gradient = run()
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)
    torch.testing.assert_close(same_gradient, gradient, atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(network(vectors, noise, rates), images, atol=1e-5, rtol=0)


def test_trains() -> None:
    network, (vectors, noise, rates) = small().train(), inputs(4)
    target = torch.rand(4, 3, 16, 16)
    optimizer = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), 1e-2)
    losses = []
    for _ in range(12):
        images, tokens, wanted = network.forward_train(
            vectors, noise, rates, drop_rate=TRAINING.lowest
        )
        assert tokens.shape == wanted.shape == (4, 16, 32)
        assert not wanted.requires_grad
        loss = (images - target).square().mean() + (tokens - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    idle = {name for name, p in network.named_parameters() if p.grad is None}
    unused = ("center_token", "patch_embed")
    assert idle == {n for n in network.state_dict() if n.startswith(unused)}
    assert losses[-1] < 0.7 * losses[0]
    with torch.no_grad():
        assert not torch.equal(network(vectors, noise, rates), network(vectors, noise, rates))
        network.eval()
        images, _, _ = network.forward_train(vectors, noise, rates, drop_rate=0.1)
        torch.testing.assert_close(images, network(vectors, noise, rates))


def test_own_files_hold_the_sizes(tmp_path: Path) -> None:
    source, path = small(), tmp_path / "small.safetensors"
    path.write_bytes(source.to_safetensors())
    loaded = Vec2Face.from_checkpoint(str(path)).eval()
    assert loaded.sizes == SMALL
    with torch.inference_mode():
        assert torch.equal(loaded(*inputs(2)), source(*inputs(2)))
    assert source.to_safetensors() == path.read_bytes()
    path.write_bytes(source.to_safetensors(torch.float16))
    halves = Vec2Face.from_checkpoint(str(path))
    assert halves.norm.weight.dtype == torch.float32
    assert path.stat().st_size < 0.6 * len(source.to_safetensors())


def test_checkpoints_of_the_training_script_are_read(tmp_path: Path) -> None:
    # Of a published width, so that the heads are known; as save_model of util/misc.py keeps it.
    sizes = replace(SMALL, width=768, heads=12, decoder_heads=16, depth=1)
    source, path = Vec2Face(sizes), tmp_path / "checkpoint-last.pth"
    arguments = argparse.Namespace(epochs=100, amp_dtype=torch.float16, output_dir="out")
    other = {"model_disc": {}, "model_ema": None, "epoch": 99, "args": arguments}
    torch.save({"model_vec2face": source.state_dict(), **other}, path)
    loaded = Vec2Face.from_checkpoint(str(path))
    assert loaded.sizes == sizes
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, source.state_dict()[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("latent_prior_proj_f.weight"), "'latent_prior_proj_f.weight' is missing"),
        (lambda s: s.pop("norm.weight"), r"'norm\.weight' is not in the file"),
        (lambda s: s.update({"latent_prior_proj_f.weight": torch.ones(32)}), r"has shape \[32\]"),
        (lambda s: s.update({"blocks.0.attn.qkv.A": torch.ones(8, 32)}), "is not in the network"),
        (lambda s: s.update({"feature_token.weight": torch.ones(17, 1)}), r"\[17, 1\] in the file"),
        (
            lambda s: s.update({"im_decoder.up.0.block.0.conv2.weight": torch.ones(48, 32, 3, 3)}),
            r"\[64, 32, 48\] are not multiples of 32",
        ),
        (
            lambda s: s.update({"latent_prior_proj_f.weight": torch.ones(30, 16)}),
            "4 and 2 attention heads do not divide the width of 30",
        ),
    ],
)
def test_other_networks_are_refused_in_one_line(tmp_path: Path, change, message: str) -> None:
    from safetensors.torch import save_file

    state = dict(small().state_dict())
    change(state)
    path = tmp_path / "other.safetensors"
    save_file(state, path, {"vec2face.heads": "4 2"})
    with pytest.raises(UserError, match=message) as caught:
        Vec2Face.from_checkpoint(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("heads", ["", "4", "4 2 2", "a 2", "0 2", "4 -1", "4 1e999"])
def test_metadata_without_heads_is_refused(tmp_path: Path, heads: str) -> None:
    from safetensors.torch import save_file

    path = str(tmp_path / "own.safetensors")
    save_file(small().state_dict(), path, {"vec2face.heads": heads})
    with pytest.raises(UserError, match=r"own\.safetensors: not a Vec2Face generator: .*heads"):
        Vec2Face.from_checkpoint(path)


def test_heads_of_an_unpublished_width_are_not_guessed(tmp_path: Path) -> None:
    path = str(tmp_path / "bare.pth")
    torch.save(small().state_dict(), path)
    with pytest.raises(UserError, match=r"bare\.pth: .* a width of 32 is not published"):
        Vec2Face.from_checkpoint(path)
