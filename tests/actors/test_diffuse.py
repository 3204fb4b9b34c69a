"""The actors that draw: who is drawn, with which seed, and the same bytes in any company."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from actors.diffuse import DiffuseActor, SecondPassActor, _image
from raypipe.config.diffusion_training import DiffusionTrainingConfig
from raypipe.diffusion import Drawn
from raypipe.errors import UserError
from raypipe.identities import Identity, SeedEvidence, Try
from raypipe.images import decode
from raypipe.models import small_diffusion
from raypipe.prompts import draw, load_grammar, say
from raypipe.seeding import torch_seed

SEED = 5
GRAMMAR = load_grammar()
ATTRIBUTES = {"age": "25-34", "gender": "woman", "pose": "forward", "background": "white"}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The actors set the threads of their process; here that is everybody's."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """An untrained pipeline, 32×32 pixels."""
    torch.manual_seed(0)
    sizes = DiffusionTrainingConfig(
        side=32,
        vae_channels=[32, 32, 32],
        unet_channels=[32, 32, 32],
        text_width=32,
        text_layers=1,
    )
    folder = str(tmp_path_factory.mktemp("model"))
    parts = small_diffusion.build(sizes, [say(GRAMMAR, ATTRIBUTES)])
    small_diffusion.save(parts, folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory) -> str:
    """An untrained IP-Adapter FaceID for faces of 128 numbers."""
    torch.manual_seed(1)
    network = UNet2DConditionModel.from_pretrained(f"{model}/unet")
    layers = {
        f"{number}.to_{kind}_ip.weight": torch.randn(32, 32)
        for number in range(1, len(network.attn_processors), 2)
        for kind in "kv"
    }
    projection = {
        "proj.0.weight": torch.randn(256, 128),
        "proj.0.bias": torch.zeros(256),
        "proj.2.weight": torch.randn(4 * 32, 256),
        "proj.2.bias": torch.zeros(4 * 32),
        "norm.weight": torch.ones(32),
        "norm.bias": torch.zeros(32),
    }
    path = str(tmp_path_factory.mktemp("adapter") / "face_id.bin")
    torch.save({"image_proj": projection, "ip_adapter": layers}, path)
    return path


def first_pass(model: str) -> DiffuseActor:
    config = {"model": model, "steps": 2, "batch_size": 3}
    return DiffuseActor(config=config, weights="0f" * 32, seed=SEED, device="cpu")


def second_pass(model: str, adapter: str, **second) -> SecondPassActor:
    config = {"model": model, "batch_size": 3}
    config["second_pass"] = {"adapter": adapter, "steps": 2, **second}
    return SecondPassActor(config=config, grammar=None, weights="f0" * 32, seed=SEED, device="cpu")


def person(index: int) -> Identity:
    evidence = SeedEvidence(
        prompt=f"portrait {index}", negative="blurred", attributes=dict(ATTRIBUTES)
    )
    return Identity(
        identity_id=f"seed/{index:07d}", index=index, source="seed", images=[], seed=evidence
    )


def judge(identity: Identity, passed: bool, numbers: int = 128) -> Identity:
    """What the gates do with the newest picture."""
    newest = identity.images[-1]
    if passed:
        random = np.random.default_rng(identity.index)
        newest.embedding = random.standard_normal(numbers).astype(np.float32)
    else:
        newest.rejected = "seed:blurred"
    identity.seed.tries.append(Try(faces=1, rejected=newest.rejected))
    return identity


def test_a_picture_knows_what_it_was_made_from(model) -> None:
    (identity,) = first_pass(model)([person(3)])
    (image,) = identity.images
    assert decode(image.data, source="test").shape == (32, 32, 3)
    assert image.data.startswith(b"\x89PNG")
    assert (image.image_id, image.source, image.generator) == ("seed-00", "diffusion", "diffusion")
    assert (image.weights, image.prompt, image.rejected) == ("0f" * 32, "portrait 3", None)
    assert image.seed == torch_seed(SEED, "seed/0000003", 0, "diffusion")


def test_pictures_are_the_same_bytes_in_any_company_and_order(model) -> None:
    actor = first_pass(model)
    together = actor([person(k) for k in (4, 0, 2, 1, 3)])
    assert [one.index for one in together] == [4, 0, 2, 1, 3]
    datas = {one.index: one.images[0].data for one in together}
    assert len(set(datas.values())) == 5
    for group in ([0], [3, 1], [2, 4]):
        for one in first_pass(model)([person(k) for k in group]):
            assert one.images[0].data == datas[one.index]


def test_only_who_failed_is_drawn_again_with_the_next_seed(model) -> None:
    actor = first_pass(model)
    failed, passed, waiting, refused = actor([person(k) for k in range(4)])
    judge(failed, False)
    judge(passed, True)
    refused.rejected = "seed:tries_used_up"
    refused.images.clear()
    other = Identity(identity_id="base/1", index=9, source="base", images=[])
    again = actor([failed, passed, waiting, refused, other])
    assert again == [failed, passed, waiting, refused, other]
    assert [image.image_id for image in failed.images] == ["seed-00", "seed-01"]
    assert failed.images[1].seed == torch_seed(SEED, failed.identity_id, 1, "diffusion")
    assert failed.images[1].data != failed.images[0].data
    assert [len(one.images) for one in (passed, waiting, refused, other)] == [1, 1, 0, 0]
    actor([judge(failed, False)])
    assert failed.images[2].image_id == "seed-02"


def test_a_picture_that_the_pipeline_blanked_is_rejected() -> None:
    drawn = Drawn(rgb=np.zeros((8, 8, 3), np.uint8), blanked=True)
    assert _image("seed-00", drawn, "0f" * 32, "portrait", 1).rejected == "seed:safety_checker"


def test_a_reference_is_drawn_again_at_another_pose(model, adapter) -> None:
    identity = judge(first_pass(model)([person(6)])[0], True)
    second_pass(model, adapter)([identity])
    again = identity.images[1]
    assert (again.image_id, again.parent) == ("seed-00-pose", "seed-00")
    assert (again.weights, again.generator) == ("f0" * 32, "diffusion")
    assert again.seed == torch_seed(SEED, identity.identity_id, 0, "second_pass")
    assert again.embedding is None and again.rejected is None
    assert decode(again.data, source="test").shape == (32, 32, 3)
    seed = torch_seed(SEED, "", 0, "second_pass.prompts")
    new = draw(GRAMMAR, seed, 6).attributes
    redrawn = ["pose", "expression", "camera", "light", "background"]
    assert again.prompt == say(GRAMMAR, ATTRIBUTES | {name: new[name] for name in redrawn})
    assert "a 25-year-old woman" in again.prompt


def test_poses_are_as_balanced_as_the_grammar_says_and_new_in_every_try(model, adapter) -> None:
    actor = second_pass(model, adapter, redraw=["pose"])
    prompts = {
        try_: [actor._prompt(index, ATTRIBUTES, try_) for index in range(1000)] for try_ in (0, 1)
    }
    assert sum("facing the camera" in prompt for prompt in prompts[0]) == 50
    assert sum("slightly to the left" in prompt for prompt in prompts[0]) == 250
    assert all("white background" in prompt for prompt in prompts[0])
    same = sum(a == b for a, b in zip(prompts[0], prompts[1], strict=True))
    assert 100 < same < 250  # two poses are equal with a chance of 0.18


def test_second_pictures_are_the_same_bytes_in_any_company(model, adapter) -> None:
    def references() -> list[Identity]:
        return [judge(one, True) for one in first_pass(model)([person(k) for k in range(4)])]

    together = second_pass(model, adapter)(references())
    datas = [one.images[1].data for one in together]
    assert len(set(datas)) == 4
    alone = second_pass(model, adapter)(references()[3:])
    assert alone[0].images[1].data == datas[3]


def test_a_second_pass_waits_for_the_gates_and_comes_once(model, adapter) -> None:
    actor = second_pass(model, adapter)
    failed, unseen, refused, done = first_pass(model)([person(k) for k in range(4)])
    judge(failed, False)
    judge(refused, True).rejected = "seed:surplus"
    actor([judge(done, True)])
    actor([failed, unseen, refused, done, person(7)])
    assert [len(one.images) for one in (failed, unseen, refused, done)] == [1, 1, 1, 2]


def test_the_embedder_must_be_the_adapters(model, adapter) -> None:
    identity = judge(first_pass(model)([person(0)])[0], True, numbers=512)
    with pytest.raises(UserError, match="takes embeddings of 128 numbers and the embedder .* 512"):
        second_pass(model, adapter)([identity])


def test_an_attribute_that_the_grammar_does_not_have(model, adapter) -> None:
    with pytest.raises(UserError, match="redraw: .* has no attribute 'poze'; did you mean 'pose'?"):
        second_pass(model, adapter, redraw=["poze"])


def test_threads_are_the_ones_given(model) -> None:
    DiffuseActor(config={"model": model}, weights="", seed=0, threads=2, device="cpu")
    assert torch.get_num_threads() == 2
