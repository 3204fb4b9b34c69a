import hashlib
import io
import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch

from raypipe.config.train import TrainConfig
from raypipe.errors import UserError
from raypipe.images import encode_png
from raypipe.training import (
    DivergedError,
    Recognition,
    decode_batch,
    learning_rate,
    make_optimizer,
    pack_state,
    parameter_groups,
    read_state,
    train_epoch,
    unpack_state,
)

CONFIG = TrainConfig(
    depth="10", width=2, epochs=2, batch_size=4, lr=0.05, warmup_epochs=0.5, milestones=[1]
)
CLASSES = 3


def faces(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)


def rows(images, start=0):
    data = [{"bytes": encode_png(image), "path": None} for image in images]
    positions = range(start, start + len(images))
    labels = [position % CLASSES for position in positions]
    return pa.table({"image": data, "label": labels, "position": list(positions)})


def batches(images=10, epoch=0, size=4):
    table = rows(faces(images))
    for start in range(0, images, size):
        yield decode_batch(table.slice(start, size), seed=1, epoch=epoch, flip=True)


def run_epoch(module, optimizer, epoch, config=CONFIG, images=10, source=None):
    return train_epoch(
        module,
        optimizer,
        source or batches(images, epoch),
        config=config,
        epoch=epoch,
        steps=-(-images // config.batch_size),
        on_step=lambda step, done: None,
    )


pytestmark = pytest.mark.usefixtures("one_thread")


def test_decodes_rows_and_mirrors_by_seed_epoch_and_position():
    images = faces(40)
    whole = decode_batch(rows(images), seed=1, epoch=0, flip=True)
    mirrored = []
    for image, got in zip(images, whole["images"].numpy(), strict=True):
        mirrored.append(np.array_equal(got, image[:, ::-1]))
        assert mirrored[-1] or np.array_equal(got, image)
    assert 10 < sum(mirrored) < 30
    assert whole["labels"].tolist() == [i % CLASSES for i in range(40)]
    assert whole["positions"].tolist() == list(range(40))
    part = decode_batch(rows(images).slice(30), seed=1, epoch=0, flip=True)
    assert torch.equal(part["images"], whole["images"][30:])
    other = decode_batch(rows(images), seed=1, epoch=1, flip=True)
    assert not torch.equal(other["images"], whole["images"])
    plain = decode_batch(rows(images), seed=1, epoch=0, flip=False)
    assert np.array_equal(plain["images"].numpy(), images)


def test_names_the_image_that_cannot_be_used():
    broken = rows(faces(3)).set_column(0, "image", [[{"bytes": b"\x89PNG\r\n", "path": None}] * 3])
    with pytest.raises(UserError, match="position 7"):
        decode_batch(broken.set_column(2, "position", [[7, 8, 9]]), seed=0, epoch=0, flip=False)
    with pytest.raises(UserError, match="position 0: 60×50 pixels, training needs 112×112"):
        decode_batch(rows(faces(2)[:, :50, :60]), seed=0, epoch=0, flip=False)


def test_rate_warms_up_and_falls_at_milestones():
    config = TrainConfig(lr=0.1, warmup_epochs=2, milestones=[3, 5], epochs=6)
    rates = [learning_rate(config, epoch, step, 10) for epoch in range(6) for step in range(10)]
    assert rates[:20] == pytest.approx([0.1 * (i + 1) / 20 for i in range(20)])
    assert rates[20:30] == pytest.approx([0.1] * 10)
    assert rates[30:50] == pytest.approx([0.01] * 20)
    assert rates[50:] == pytest.approx([0.001] * 10)
    assert learning_rate(TrainConfig(warmup_epochs=0), 0, 0, 10) == 0.1


def test_only_convolutions_linear_layers_and_head_decay():
    module = Recognition(CONFIG, CLASSES, 0)
    decayed, free = parameter_groups(module, 5e-4)
    assert (decayed["weight_decay"], free["weight_decay"]) == (5e-4, 0.0)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    decays = {names[id(p)] for p in decayed["params"]}
    assert {"head.weight", "network.fc.weight", "network.conv1.weight"} <= decays
    assert not [n for n in decays if ".bn" in n or "prelu" in n or n.endswith("bias")]
    trained = {n for n, p in module.named_parameters() if p.requires_grad}
    assert decays | {names[id(p)] for p in free["params"]} == trained
    assert "network.features.weight" not in trained


def test_weights_come_from_the_seed():
    first, again, other = (Recognition(CONFIG, CLASSES, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["network.conv1.weight"], other["network.conv1.weight"])
    assert not torch.equal(first["head.weight"], other["head.weight"])


def test_an_epoch_sees_every_image_in_order():
    module = Recognition(CONFIG, CLASSES, 0)
    result = run_epoch(module, make_optimizer(module, CONFIG), 0)
    assert result["images"] == result["images_here"] == 10
    assert result["order"] == hashlib.sha256(np.arange(10, dtype="<i8").tobytes()).hexdigest()
    assert result["learning_rate"] == pytest.approx(0.05)
    assert result["seconds"] == pytest.approx(result["wait_seconds"] + result["step_seconds"])


def test_the_last_batch_is_filled_up_from_the_one_before():
    module = Recognition(CONFIG, CLASSES, 0)
    seen = []
    module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    run_epoch(module, make_optimizer(module, CONFIG), 0)
    given = torch.cat([batch["images"] for batch in batches()])
    assert [len(images) for images in seen] == [4, 4, 4]
    assert torch.equal(seen[2], given[6:10])


def test_a_set_smaller_than_a_batch_is_one_batch():
    module = Recognition(CONFIG, CLASSES, 0)
    result = run_epoch(module, make_optimizer(module, CONFIG), 0, images=3)
    assert result["images"] == 3


def test_rows_out_of_order_are_a_bug_that_shows():
    module = Recognition(CONFIG, CLASSES, 0)
    shuffled = [*batches()][::-1]
    with pytest.raises(AssertionError, match="out of order"):
        run_epoch(module, make_optimizer(module, CONFIG), 0, source=shuffled)


@pytest.mark.parametrize("head", ["arcface", "cosface", "combined", "adaface", "magface"])
def test_it_learns(head):
    config = CONFIG.model_copy(
        update={"head": head, "lr": 0.02, "margin": 0.2, "lambda_g": 0.0, "milestones": []}
    )
    module = Recognition(config, CLASSES, 0)
    optimizer = make_optimizer(module, config)
    results = [run_epoch(module, optimizer, epoch, config) for epoch in range(6)]
    assert results[-1]["loss"] < 0.5 * results[0]["loss"]
    assert results[-1]["accuracy"] > results[0]["accuracy"]


@pytest.mark.parametrize("head", ["arcface", "cosface", "combined", "adaface", "magface"])
def test_a_resumed_run_equals_the_undisturbed_one(head):
    config = CONFIG.model_copy(update={"head": head})
    module = Recognition(config, CLASSES, 0)
    optimizer = make_optimizer(module, config)
    first = {"epoch": 1, **run_epoch(module, optimizer, 0, config)}
    saved = pack_state(module, optimizer, [first])
    second = run_epoch(module, optimizer, 1, config)

    resumed = Recognition(config, CLASSES, seed=99)
    optimizer = make_optimizer(resumed, config)
    assert unpack_state(saved, resumed, optimizer) == [first]
    again = run_epoch(resumed, optimizer, 1, config)
    assert again["loss"] == second["loss"]
    expected = module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in resumed.state_dict().items())


def test_a_checkpoint_that_holds_code_is_refused():
    buffer = io.BytesIO()
    torch.save({"network": print}, buffer)
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        read_state(buffer.getvalue())


def test_a_loss_that_is_no_number_stops_with_advice():
    config = CONFIG.model_copy(update={"lr": 1e30, "warmup_epochs": 0.0})
    module = Recognition(config, CLASSES, 0)
    with pytest.raises(DivergedError, match=r"epoch 1.*lower train\.lr \(1e\+30\)"):
        run_epoch(module, make_optimizer(module, config), 0, config)


def test_bfloat16_gives_a_loss_near_that_of_float32():
    exact = Recognition(CONFIG, CLASSES, 0)
    config = CONFIG.model_copy(update={"precision": "bfloat16"})
    rough = Recognition(config, CLASSES, 0)
    batch = next(batches())
    losses = [module(batch["images"], batch["labels"])[0].item() for module in (exact, rough)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
