"""Training of a tiny CemiFace: losses by hand, resuming, mistakes."""

import io
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypipe import cemiface_training as training
from raypipe.config.cemiface_training import CemiFaceTrainingConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.feature_training import COLUMNS, Batch, DivergedError, ImageDecoder
from raypipe.images import decode, encode_png
from raypipe.models.cemiface import CemiFace, Sizes, noise_schedule

TINY = Sizes(vector=128, side=16, channels=(32, 32), attention=(1,), head=16, condition=32)


pytestmark = pytest.mark.usefixtures("one_thread")


Begin = Callable[..., training.Training]


@pytest.fixture(scope="module")
def begin() -> Begin:
    embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")

    def make(prediction: str = "epsilon", **changes: object) -> training.Training:
        config = CemiFaceTrainingConfig(**{"size": "small", "batch_size": 4, "lr": 1e-3, **changes})
        torch.manual_seed(0)
        network = CemiFace(replace(TINY, prediction=prediction))
        return training.Training(config, network, embedder, seed=1, steps=4, cpu=True, rank=0)

    return make


def batches(count: int, seed: int = 0) -> list[Batch]:
    random = torch.Generator().manual_seed(seed)
    return [
        {
            "images": torch.randint(256, (4, 16, 16, 3), generator=random, dtype=torch.uint8),
            "vectors": torch.randn(4, 128, generator=random),
            "similarity": torch.rand(4, generator=random) * 2 - 1,
        }
        for _ in range(count)
    ]


def silent(images: int, remark: str) -> None:
    """Nobody looks."""


def test_similarities_are_a_grid_up_to_1() -> None:
    grid = training.similarities(CemiFaceTrainingConfig())
    assert len(grid) == 51  # published: 50 steps
    assert grid[0] == -1
    assert grid[-1] == 1
    np.testing.assert_allclose(np.diff(grid), 0.04, atol=1e-6)
    short = training.similarities(CemiFaceTrainingConfig(lowest=0.0, interval=0.3))
    np.testing.assert_allclose(short, [0.1, 0.4, 0.7, 1.0], atol=1e-6)


def test_losses_are_those_of_a_scalar_loop() -> None:
    cosines, wanted = [0.9, 0.2, -0.5], [0.4, 0.2, 1.0]
    times, weights = [0, 250, 999], [1.0, 2.0, 100.0]
    own = similar = 0.0
    for c, m, t, w in zip(cosines, wanted, times, weights, strict=True):
        gamma = t / 1000
        own += w * (1 - gamma) * (1 - c) ** 2 / 3
        similar += w * gamma * (m - c) ** 2 / 3
    found = training.similarity_losses(*map(torch.tensor, (cosines, wanted, times, weights)))
    assert [float(value) for value in found] == pytest.approx([own, similar], rel=1e-5)


def test_similarity_weighs_against_velocity_as_published_against_noise() -> None:
    kept = torch.tensor([0.9, 0.5, 0.2, 1e-4])
    noise, guess = torch.randn(4), torch.randn(4)
    clean = torch.rand(4)
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    of_noise = (guess - noise) ** 2
    left = (noisy - (1 - kept).sqrt() * guess) / kept.sqrt()  # the picture that the guess leaves
    velocities = [
        kept.sqrt() * e - (1 - kept).sqrt() * x for e, x in ((guess, left), (noise, clean))
    ]
    of_velocity = (velocities[0] - velocities[1]) ** 2
    found = training.similarity_weights(kept, "v_prediction")
    torch.testing.assert_close((of_velocity / of_noise)[:3], found[:3], rtol=1e-3, atol=0)
    assert found[3] == 10.0
    assert training.similarity_weights(kept, "epsilon").tolist() == [1.0] * 4


def test_clean_images_are_those_of_a_scalar_loop() -> None:
    kept = noise_schedule().alphas_cumprod
    beta, product = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)], 1.0
    for t in range(301):
        product *= 1 - beta[t]
    assert float(kept[300]) == pytest.approx(product, rel=1e-4)
    noisy, noise = torch.tensor([[[[0.3, 2.0]]]]), torch.tensor([[[[-0.4, 0.1]]]])
    found = training.clean_images(noisy, noise, kept[300:301], "epsilon").flatten().tolist()
    wanted = [
        max(-1.0, min(1.0, (x - math.sqrt(1 - product) * e) / math.sqrt(product)))
        for x, e in ((0.3, -0.4), (2.0, 0.1))
    ]
    assert found == pytest.approx(wanted, rel=1e-4)
    assert found[1] == 1.0


def test_a_velocity_leaves_the_picture_that_it_is_of() -> None:
    clean, noise = torch.rand(2, 3, 4, 4) * 2 - 1, torch.randn(2, 3, 4, 4)
    kept = noise_schedule().alphas_cumprod[[20, 980]]
    share = kept.reshape(-1, 1, 1, 1)
    noisy = share.sqrt() * clean + (1 - share).sqrt() * noise
    velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
    assert torch.equal(
        velocity, noise_schedule().get_velocity(clean, noise, torch.tensor([20, 980]))
    )
    found = training.clean_images(noisy, velocity, kept, "v_prediction")
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("prediction", "compared"), [("epsilon", 4), ("v_prediction", 3)])
def test_the_total_is_noise_and_lambda_times_similarity(
    begin: Begin, prediction: str, compared: int
) -> None:
    """The gradient of one step, against losses put together here from what the network sees."""
    run = begin(prediction, clip=1e9, similarity_share=compared / 4)
    taken: dict[str, torch.Tensor] = {}
    step = run.optimizer.step
    last = run.network.unet.conv_out.weight
    run.optimizer.step = lambda *a: taken.update(gradient=last.grad.clone()) or step(*a)  # type: ignore[method-assign]
    (batch,) = batches(1)
    parts = run.train_period([batch], epoch=0, first_step=0, on_step=silent)

    fresh = begin(prediction)
    random = torch.Generator().manual_seed(training.torch_seed(1, "train_cemiface", 0, "noise 0"))
    clean = batch["images"].permute(0, 3, 1, 2) / 127.5 - 1
    noise = torch.randn(clean.shape, generator=random)
    times = torch.randint(1000, (4,), generator=random)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)[times].reshape(-1, 1, 1, 1)
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
    found = fresh.network(noisy, times, batch["vectors"], batch["similarity"])
    target, guess = noise, (noisy - (1 - kept).sqrt() * found) / kept.sqrt()
    if prediction == "v_prediction":
        target = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        guess = kept.sqrt() * noisy - (1 - kept).sqrt() * found
    face = torch.nn.functional.interpolate(guess.clamp(-1, 1), size=112, mode="bilinear")
    made = fresh.faces(face)[0]
    cosines = torch.nn.functional.cosine_similarity(made, batch["vectors"])[:compared]
    share = times[:compared] / 1000
    weight = torch.ones(compared)
    if prediction == "v_prediction":
        weight = (1 / kept.flatten()[:compared]).clamp(max=10)
    own = (weight * (1 - share) * (1 - cosines) ** 2).mean()
    wanted = (weight * share * (batch["similarity"][:compared] - cosines) ** 2).mean()
    total = ((found - target) ** 2).mean() + 0.05 * (own + wanted)
    total.backward()
    assert parts["own"] == pytest.approx(own.item(), rel=1e-3)
    assert parts["wanted"] == pytest.approx(wanted.item(), rel=1e-3)
    expected = fresh.network.unet.conv_out.weight.grad
    assert expected is not None
    torch.testing.assert_close(taken["gradient"], expected, rtol=1e-2, atol=1e-5)


def test_the_loss_falls(begin: Begin) -> None:
    run = begin(lr=2e-3)
    periods = [
        run.train_period(batches(8), epoch=0, first_step=0, on_step=silent) for _ in range(4)
    ]
    assert periods[-1]["noise"] < 0.7 * periods[0]["noise"]
    assert periods[0]["images"] == 32


def test_rates(begin: Begin) -> None:
    run = begin(epochs=3, warmup_epochs=1)
    assert run.learning_rate(0, 2) == pytest.approx(0.5e-3)
    assert run.learning_rate(2, 3) == pytest.approx(1e-3)  # published: constant
    run = begin(epochs=3, warmup_epochs=1, final_lr=1e-4)
    assert run.learning_rate(2, 0) == pytest.approx(0.55e-3)
    with pytest.raises(ValueError, match="choose fewer"):
        CemiFaceTrainingConfig(epochs=2, warmup_epochs=2)


def state(run: training.Training) -> dict[str, torch.Tensor]:
    packed = torch.load(io.BytesIO(run.pack([])), weights_only=True)
    shadow = {f"average {k}": v for k, v in enumerate(packed["average"]["shadow_params"])}
    return packed["network"] | shadow


def test_what_is_packed_goes_on_as_if_it_had_not_stopped(begin: Begin) -> None:
    parts = batches(4)
    whole, again = begin(), begin()
    whole.train_period(parts[:2], epoch=0, first_step=0, on_step=silent)
    assert again.unpack(whole.pack([{"epoch": 1}])) == [{"epoch": 1}]
    for run in (whole, again):
        run.train_period(parts[2:], epoch=0, first_step=2, on_step=silent)
    first, second = state(whole), state(again)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], value) for name, value in state(begin()).items())


def test_the_average_is_what_is_kept_and_shown(begin: Begin) -> None:
    run = begin(lr=1e-2, ema=0.5)
    run.train_period(batches(4), epoch=0, first_step=0, on_step=silent)
    kept = CemiFace(TINY)
    training.read_state(run.pack([]), kept)
    own = dict(run.network.named_parameters())
    shadows = dict(zip(own, run.average.shadow_params, strict=True))
    for name, value in kept.named_parameters():
        assert torch.equal(value, shadows[name])
    assert any(not torch.equal(own[name], value) for name, value in shadows.items())
    before = {name: value.clone() for name, value in own.items()}
    picture = decode(run.grid(batches(1)[0], 0), source="grid")
    assert picture.shape == (6 * 112, 4 * 112, 3)
    assert all(torch.equal(before[name], value) for name, value in own.items())


def test_a_loss_that_is_no_number_ends_training(begin: Begin) -> None:
    run = begin(lr=1e30, clip=1e30)
    with pytest.raises(DivergedError, match=r"train_cemiface: .*lower cemiface\.lr"):
        run.train_period(batches(6), epoch=0, first_step=0, on_step=silent)


def test_batches_depend_on_nobody_else() -> None:
    rng = np.random.default_rng(0)
    rows = [
        {
            "identity_id": "base/a",
            "image_id": f"{k}.png",
            "data": encode_png(rng.integers(0, 256, (32, 32, 3), np.uint8)),
            "vector": rng.standard_normal(4).astype(np.float32),
        }
        for k in range(3)
    ]
    table = pa.Table.from_pylist(rows, schema=COLUMNS)
    grid = training.similarities(CemiFaceTrainingConfig())
    options = {"seed": 3, "decoder": ImageDecoder(16, room=2 * 16 * 16 * 3), "grid": grid}
    whole = training.decode_batch(table, epoch=0, **options)
    assert whole["images"].shape == (3, 16, 16, 3)
    assert set(whole["similarity"].tolist()) <= set(grid.tolist())
    alone = training.decode_batch(table.slice(2), epoch=0, **options)
    for name, values in alone.items():
        assert torch.equal(values[0], whole[name][2])
    later = training.decode_batch(table, epoch=1, **options)
    assert not torch.equal(later["similarity"], whole["similarity"])
    broken = pa.Table.from_pylist([row | {"data": b"none"} for row in rows], schema=COLUMNS)
    # Two images fit into the room for pixels; the third is decoded anew.
    again = training.decode_batch(broken.slice(0, 2), epoch=0, **options)
    assert torch.equal(again["images"], whole["images"][:2])
    with pytest.raises(UserError, match=r"base/a/2\.png"):
        training.decode_batch(broken, epoch=0, **options)
