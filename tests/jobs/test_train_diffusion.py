"""Real training of a tiny Stable Diffusion with Ray Train, on faces of the DCGAN."""

import shutil

import numpy as np
import pytest
import torch

from jobs import train_diffusion
from raypipe import storage
from raypipe.config import parse
from raypipe.config.diffusion import DiffusionConfig
from raypipe.diffusion import Diffusion
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.images import decode
from raypipe.portraits import Portraits

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_cluster")]

TINY = {
    "faces": "{workspace}/clean",
    "attributes": {"hair": {"measure": "hair", "values": ["dark", "light"]}},
    "side": 32,
    "vae_channels": [32, 32, 32],
    "unet_channels": [32, 32, 32],
    "text_width": 32,
    "text_layers": 1,
    "vae_batch_size": 16,
    "batch_size": 16,
    "vae_steps": 4,
    "steps": 6,
    "warmup_steps": 2,
    "perceptual": 0.1,
    "period": 3,
}


def configured(workspace, **changes):
    return parse(
        {
            "workspace": str(workspace),
            "embedder": {"kind": "dlib"},
            "ingest": {"sources": [{"name": "base", "path": "unused"}]},
            "diffusion": TINY | changes,
        },
        "test",
    )


def copied(cleaned, workspace):
    shutil.copytree(cleaned / "clean", workspace / "clean")
    return workspace


@pytest.fixture(scope="module")
def undisturbed(cleaned, tmp_path_factory, ray_cluster):
    workspace = copied(cleaned, tmp_path_factory.mktemp("undisturbed"))
    return workspace, train_diffusion.run(configured(workspace))


def test_trains_and_writes_a_pipeline_card_and_grids(undisturbed):
    workspace, manifest = undisturbed
    root = workspace / "diffusion"
    history = storage.read_json(str(root / "history.json"))["periods"]
    assert [part["step"] for part in history] == [3, 4, 7, 10]
    assert ["pixels" in part for part in history] == [True, True, False, False]
    assert manifest.counts == {"images": 120}
    card = storage.read_json(str(root / "card.json"))
    assert card["pictures"] == 120
    (cut,) = card["attributes"]["hair"]["cuts"]
    faces = [
        decode(image.data, source=image.image_id)
        for person in FaceSet(str(workspace / "clean")).iter_identities()
        for image in person.kept
    ]
    hair = Portraits().measure("hair", np.stack(faces))
    assert (hair < cut).sum() == (hair > cut).sum() == 60
    config = DiffusionConfig(model=str(root / "model"), steps=2, batch_size=1)
    (drawn,) = Diffusion(config, torch.device("cpu")).draw(["a person, dark hair"], [""], [1])
    assert drawn.rgb.shape == (32, 32, 3)
    for step, shape in ((4, (64, 256, 3)), (10, (128, 64, 3))):
        data = (root / f"grids/{step:07d}.png").read_bytes()
        assert decode(data, source="grid").shape == shape
    assert not (root / "checkpoints").exists()


def test_a_second_run_does_nothing_and_other_settings_are_refused(undisturbed):
    workspace, manifest = undisturbed
    assert train_diffusion.run(configured(workspace)) == manifest
    with pytest.raises(UserError, match=r"settings\.ema 0\.999 → 0\.5"):
        train_diffusion.run(configured(workspace, ema=0.5))


def test_a_killed_run_goes_on_from_its_checkpoint(
    undisturbed, cleaned, tmp_path, killed_once_saved
):
    config = configured(copied(cleaned, tmp_path))
    killed_once_saved("train_diffusion", config, "diffusion/checkpoints/run/checkpoint_*/state.pt")
    assert train_diffusion.run(config).content_digest == undisturbed[1].content_digest


def test_two_workers(cleaned, tmp_path):
    changes = {"num_workers": 2, "cpus_per_worker": 0.5, "vae_steps": 2, "steps": 2}
    train_diffusion.run(configured(copied(cleaned, tmp_path), **changes))
    history = storage.read_json(str(tmp_path / "diffusion/history.json"))
    assert (history["workers"], history["periods"][-1]["step"]) == (2, 4)


def test_a_value_that_the_grammar_has_not_is_named(cleaned, tmp_path):
    unknown = {"hair": {"measure": "hair", "values": ["dark", "blond"]}}
    with pytest.raises(UserError, match=r"attributes\.hair: unknown value 'blond'"):
        train_diffusion.run(configured(copied(cleaned, tmp_path), attributes=unknown))


def test_a_set_without_a_picture_that_is_good_enough_is_an_error(cleaned, tmp_path):
    with pytest.raises(UserError, match=r"no picture is left; lower diffusion\.min_quality"):
        train_diffusion.run(configured(copied(cleaned, tmp_path), min_quality=9.0))
