"""Training of a tiny Stable Diffusion, on faces of the DCGAN."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raypipe.config.diffusion import DiffusionConfig
from raypipe.config.diffusion_training import DiffusionTrainingConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.diffusion import Diffusion
from raypipe.diffusion_training import Prepare, Training, paint, read_state
from raypipe.embedders import open_embedder
from raypipe.errors import UserError
from raypipe.identities import Identity, Image, to_table
from raypipe.images import decode, encode_png, resize
from raypipe.models import small_diffusion
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels
from raypipe.prompts import load_grammar, say

GRAMMAR = load_grammar("portraits")
SAID = [say(GRAMMAR, {"hair": "dark"}), say(GRAMMAR, {"hair": "light"})]
TINY = {
    "side": 32,
    "vae_channels": [32, 32, 32],
    "unet_channels": [32, 32, 32],
    "text_width": 32,
    "text_layers": 1,
    "vae_batch_size": 8,
    "batch_size": 8,
    "vae_steps": 20,
    "steps": 40,
    "vae_lr": 2e-3,
    "lr": 2e-3,
    "warmup_steps": 2,
    "perceptual": 0,
    "ema": 0.5,
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    network = DCGANGenerator()
    load_into(network, shipped("dcgan_digiface.safetensors"))
    latents = torch.randn(32, LATENT, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return to_pixels(network.eval()(latents))


Begin = Callable[..., Training]


@pytest.fixture(scope="module")
def begin(faces: np.ndarray) -> Begin:
    embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")

    def make(pictures: int = 32, **changes: object) -> Training:
        config = DiffusionTrainingConfig(**{**TINY, **changes})
        torch.manual_seed(0)
        parts = small_diffusion.build(config, SAID)
        return Training(
            config,
            parts,
            embedder,
            np.ascontiguousarray(faces[:pictures, ::2, ::2]),
            [SAID[i % 2] for i in range(pictures)],
            seed=1,
            cpu=True,
            rank=0,
        )

    return make


def silent(done: int, remark: str) -> None:
    pass


def test_both_losses_fall(begin: Begin) -> None:
    run = begin()
    first, second = run.train_period(0, 10, silent), run.train_period(10, 20, silent)
    assert second["pixels"] < 0.8 * first["pixels"]
    first, second = run.train_period(20, 40, silent), run.train_period(40, 60, silent)
    assert second["noise"] < 0.9 * first["noise"]
    assert second["step"] == 60


def state(run: Training) -> dict:
    return torch.load(io.BytesIO(run.pack([])), weights_only=True)


def same(one: object, other: object) -> bool:
    """Bit by bit; bytes of equal states differ by what the pickle refers back to."""
    if isinstance(one, torch.Tensor):
        return one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("stop", [2, 3, 5])  # in the first phase, between them, in the second
def test_what_is_packed_goes_on_as_if_it_had_not_stopped(begin: Begin, stop: int) -> None:
    periods = ((0, 2), (2, 3), (3, 5), (5, 7))
    small = {"vae_steps": 3, "steps": 4}
    whole, again = begin(**small), begin(**small)
    for first, last in periods:
        if first == stop:
            assert again.unpack(whole.pack([{"step": stop}])) == [{"step": stop}]
        whole.train_period(first, last, silent)
        if first >= stop:
            again.train_period(first, last, silent)
    assert same(state(again), state(whole))


def test_a_saved_model_paints_what_was_trained(begin: Begin, tmp_path: Path) -> None:
    run = begin(vae_steps=3, steps=4)
    run.train_period(0, 3, silent)
    run.train_period(3, 7, silent)
    parts = begin().parts
    assert read_state(run.pack([{"step": 7}]), parts) == [{"step": 7}]
    small_diffusion.save(parts, str(tmp_path), torch.float32)
    files = small_diffusion.files(str(tmp_path))
    assert "unet/diffusion_pytorch_model.safetensors" in files
    config = DiffusionConfig(model=str(tmp_path), steps=20, guidance=3.0, batch_size=2)
    loaded = Diffusion(config, torch.device("cpu"))
    painted = paint(parts, SAID, 1)
    assert painted.shape == (2, 32, 32, 3)
    drawn = loaded.draw(SAID, ["", ""], [1, 2])
    assert drawn[0].rgb.shape == (32, 32, 3)
    assert parts.vae.config.scaling_factor == pytest.approx(
        loaded._painter._pipeline.vae.config.scaling_factor
    )


def test_grids_show_reconstructions_and_then_captions(begin: Begin) -> None:
    run = begin(vae_steps=1, steps=1)
    run.train_period(0, 1, silent)
    assert decode(run.grid(SAID, 0), source="grid").shape == (2 * 32, 8 * 32, 3)
    run.train_period(1, 2, silent)
    assert decode(run.grid(SAID, 0), source="grid").shape == (4 * 32, 2 * 32, 3)
    few = begin(pictures=3, batch_size=2, vae_batch_size=2)
    assert decode(few.grid(SAID, 0), source="grid").shape == (2 * 32, 3 * 32, 3)


def test_mistakes_are_named(begin: Begin) -> None:
    with pytest.raises(UserError, match="a worker has 32 pictures, and a batch 33"):
        begin(batch_size=33)
    with pytest.raises(UserError, match="a worker has 32 pictures, and a batch 40"):
        begin(vae_batch_size=40)
    run = begin(vae_lr=1e12)
    with pytest.raises(UserError, match=r"no number any more before update 6; .*diffusion\.vae_lr"):
        run.train_period(0, 6, silent)
    run = begin(vae_steps=1, lr=1e9)
    run.train_period(0, 1, silent)
    with pytest.raises(UserError, match=r"no number any more before update 6; .*diffusion\.lr"):
        run.train_period(1, 6, silent)


def table(faces: np.ndarray):
    images = [
        Image(image_id=f"{i}.png", data=encode_png(face), source="made")
        for i, face in enumerate(faces)
    ]
    images[1].rejected = "clean:other_person"
    return [Identity(identity_id="base/a", index=0, source="base", images=images)]


def test_pictures_are_prepared_in_step_with_their_measures(faces: np.ndarray) -> None:
    rows = table(faces[:4])
    config = DiffusionTrainingConfig(**TINY)
    found = Prepare(config)(to_table(rows))
    assert found["name"].to_pylist() == [f"base/a/{i}.png" for i in (0, 2, 3)]
    assert {len(pixels) for pixels in found["pixels"].to_pylist()} == {32 * 32 * 3}
    assert set(found.column_names) == {"name", "pixels", *config.attributes}
    alone = Prepare(config)(to_table(table(faces[[3, 1]])))
    for name in config.attributes:
        assert alone[name][0].as_py() == pytest.approx(found[name][2].as_py(), abs=1e-4)
    strict = Prepare(DiffusionTrainingConfig(**TINY, min_quality=9.0))
    assert strict(to_table(rows)).num_rows == 0
    rows[0].rejected = "clean:duplicate"
    assert Prepare(config)(to_table(rows)).num_rows == 0
    rows[0].rejected = None
    rows[0].images[0].data = b"no image"
    with pytest.raises(UserError, match=r"base/a/0\.png"):
        Prepare(config)(to_table(rows))


def test_low_quality_leaves_out_a_picture_with_its_measures(faces: np.ndarray) -> None:
    pictures = faces[:6].copy()
    pictures[0] = np.random.default_rng(0).integers(0, 256, pictures[0].shape, np.uint8)
    pictures[3] = 128
    rows = table(pictures)
    found = Prepare(DiffusionTrainingConfig(**TINY))(to_table(rows))
    clear = Prepare(DiffusionTrainingConfig(**TINY, min_quality=0.0))(to_table(rows))
    assert clear["name"].to_pylist() == [f"base/a/{i}.png" for i in (4, 5)]
    names = found["name"].to_pylist()
    places = [names.index(name) for name in clear["name"].to_pylist()]
    assert clear["pixels"].to_pylist() == found.take(places)["pixels"].to_pylist()
    for name in DiffusionTrainingConfig().attributes:
        wanted = found.take(places)[name].to_pylist()
        assert clear[name].to_pylist() == pytest.approx(wanted, abs=1e-4)
    for pixels, i in zip(clear["pixels"].to_pylist(), (4, 5), strict=True):
        crop = resize(resize(pictures[i], (112, 112)), (32, 32))
        assert pixels == crop.tobytes()
