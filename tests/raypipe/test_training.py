import io
import json
import os
import pickle
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import distributed

from raypipe.config.augment import AugmentConfig
from raypipe.config.train import TrainConfig
from raypipe.device_decode import DeviceDecoder
from raypipe.errors import UserError
from raypipe.images import encode_png
from raypipe.schedule import Schedule, Steps, epoch_fingerprint
from raypipe.training import (
    DivergedError,
    Training,
    check_colours,
    decode_batch,
    learning_rate,
    pack_batch,
    parameter_groups,
    read_state,
    unpack_batch,
)

CONFIG = TrainConfig(
    depth="10",
    width=2,
    epochs=2,
    batch_size=4,
    micro_batch=4,
    lr=0.05,
    lr_batch=4,
    warmup_epochs=0.5,
    milestones=[1],
)
CLASSES, IMAGES = 3, 10
CPU = torch.device("cpu")
HEADS = ["arcface", "cosface", "combined", "adaface", "magface"]

pytestmark = pytest.mark.usefixtures("one_thread")


def faces(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 112, 112, 3), dtype=np.uint8)


def rows(images, positions, epoch=0):
    data = [{"bytes": encode_png(image), "path": None} for image in images]
    labels = [position % CLASSES for position in positions]
    return pa.table(
        {
            "image": data,
            "label": labels,
            "position": list(positions),
            "epoch": [epoch] * len(labels),
        }
    )


FACES = faces(IMAGES)


def schedule(config=CONFIG):
    return Schedule(
        config.curriculum, np.zeros(IMAGES, int), np.zeros(1, int), epochs=config.epochs, seed=1
    )


def batches(config, steps, epoch=0, place=0, rank=0):
    """Micro-batches from a place on to the end of the training."""
    for number in range(epoch, config.epochs):
        windows = schedule(config).windows(number)
        mine = steps.of_worker(windows, rank, place if number == epoch else 0)
        for positions in np.concatenate(mine).reshape(-1, steps.micro):
            yield decode_batch(
                rows(FACES[positions], positions.tolist(), number), config.augment, 1
            )


def start(config=CONFIG, workers=1, seed=1, **changes):
    config = TrainConfig(**config.model_dump() | changes)
    steps = Steps.of(config.batch_size, config.micro_batch, workers)
    return Training(config, CLASSES, seed, steps, CPU), config, steps


def finish(training, config, steps, rank=0):
    """Trains to the end; the history."""
    feed = batches(config, steps, training.progress.epoch, training.progress.place, rank)
    while training.progress.epoch < config.epochs:
        assert training.run_epoch(feed, IMAGES, on_step=None)
        training.end_epoch(IMAGES)
    return training.history


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def measured(history):
    """What does not depend on the machine."""
    return [{k: v for k, v in e.items() if "second" not in k and k != "workers"} for e in history]


def test_decodes_rows():
    batch = decode_batch(rows(FACES, range(IMAGES)), AugmentConfig.preset("none"), 1)
    assert np.array_equal(batch["images"].numpy(), FACES)
    assert batch["labels"].tolist() == [i % CLASSES for i in range(IMAGES)]
    assert batch["positions"].tolist() == list(range(IMAGES))


def test_packed_images_are_decoded_on_the_device():
    table, preset = rows(FACES, range(IMAGES), epoch=1), AugmentConfig.preset("hsface")
    whole = decode_batch(table, preset, 1)
    packed = pack_batch(table, preset, 1)
    assert "images" not in packed and packed["encoded"].dtype == torch.uint8
    unpacked = unpack_batch(packed, DeviceDecoder(CPU, 1))
    assert list(unpacked) == list(whole) and same(unpacked, whole)
    broken = table.set_column(0, "image", [[{"bytes": b"\xff\xd8\xff", "path": None}] * IMAGES])
    with pytest.raises(UserError, match="position 0"):
        unpack_batch(pack_batch(broken, preset, 1), DeviceDecoder(CPU, 1))


def test_names_the_image_that_cannot_be_used():
    broken = rows(FACES[:3], [7, 8, 9])
    broken = broken.set_column(0, "image", [[{"bytes": b"\x89PNG\r\n", "path": None}] * 3])
    with pytest.raises(UserError, match="position 7"):
        decode_batch(broken, CONFIG.augment, 0)
    with pytest.raises(UserError, match="position 0: 60×50 pixels, training needs 112×112"):
        decode_batch(rows(FACES[:2, :50, :60], [0, 1]), CONFIG.augment, 0)


def test_a_known_picture_reaches_the_network_as_published(monkeypatch):
    check_colours(CPU)
    from raypipe import training

    # A decoder that swaps red and blue: the mistake that the check is for, made on purpose.
    real = training.decode_faces
    monkeypatch.setattr(training, "decode_faces", lambda *a, **k: real(*a, **k).flip(3))
    with pytest.raises(AssertionError, match="a known picture reaches the network changed"):
        check_colours(CPU)


def test_rate_warms_up_and_falls_at_milestones():
    config = TrainConfig(lr=0.1, warmup_epochs=2, milestones=[3, 5], epochs=6)
    rates = [learning_rate(config, (step + 1) / 10, 512) for step in range(60)]
    assert rates[:20] == pytest.approx([0.1 * (i + 1) / 20 for i in range(20)])
    assert rates[20:30] == pytest.approx([0.1] * 10)
    assert rates[30:50] == pytest.approx([0.01] * 20)
    assert rates[50:] == pytest.approx([0.001] * 10)
    assert learning_rate(TrainConfig(warmup_epochs=0), 0.001, 512) == 0.1


def test_rate_falls_to_zero_in_a_line():
    config = TrainConfig(lr=0.1, warmup_epochs=2, decay="linear", epochs=6)
    rates = [learning_rate(config, done, 512) for done in (1, 2, 3, 5, 6)]
    assert rates == pytest.approx([0.05, 0.1, 0.075, 0.025, 0.0])


def test_rate_is_proportional_to_the_images_of_a_step():
    config = TrainConfig(lr=0.1, lr_batch=1024, warmup_epochs=0)
    assert [learning_rate(config, 1, n) for n in (512, 1024)] == pytest.approx([0.05, 0.1])


def test_only_convolutions_and_linear_layers_decay():
    network = start()[0].network
    decayed, free = parameter_groups(network, 5e-4)
    assert (decayed["weight_decay"], free["weight_decay"]) == (5e-4, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    decays = {names[id(p)] for p in decayed["params"]}
    assert {"fc.weight", "conv1.weight"} <= decays
    assert not [n for n in decays if ".bn" in n or "prelu" in n or n.endswith("bias")]
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert decays | {names[id(p)] for p in free["params"]} == trained
    assert "features.weight" not in trained


def test_weights_come_from_the_seed():
    first, again, other = (start(seed=seed)[0] for seed in (0, 0, 1))
    assert same(first.network.state_dict(), again.network.state_dict())
    assert same(first.head.state_dict(), again.head.state_dict())
    assert not torch.equal(first.network.conv1.weight, other.network.conv1.weight)
    assert not torch.equal(first.head.head.weight, other.head.head.weight)


def test_an_epoch_takes_what_the_schedule_says():
    training, config, steps = start()
    first, second = finish(training, config, steps)
    for number, epoch in enumerate((first, second)):
        assert epoch["images"] == IMAGES
        assert epoch["steps"] == 3
        expected = epoch_fingerprint(schedule(), steps, number)
        assert epoch["order"] == f"{expected:016x}"
        assert epoch["seconds"] == pytest.approx(epoch["wait_seconds"] + epoch["step_seconds"])
    assert first["order"] != second["order"]
    assert (first["learning_rate"], second["learning_rate"]) == pytest.approx((0.05, 0.005))


@pytest.mark.parametrize("head", HEADS)
def test_it_learns(head):
    training, config, steps = start(
        head=head, lr=0.02, margin=0.2 if head in ("arcface", "cosface", "adaface") else 0.0,
        lambda_g=0.0 if head == "magface" else 35.0, milestones=[], epochs=6,
    )  # fmt: skip
    history = finish(training, config, steps)
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["accuracy"] > history[0]["accuracy"]


def test_passes_of_a_step_add_up():
    """Two passes of four images take the same step as one of eight, where batch norm allows it."""
    one, two = (start(batch_size=8, micro_batch=micro, warmup_epochs=0) for micro in (8, 4))
    assert (one[2].accumulate, two[2].accumulate) == (1, 2)
    for training, config, steps in (one, two):
        training.network.eval()  # statistics would be those of a pass
        training.network.train = lambda mode=True, own=training: own.network
        training.run_epoch(batches(config, steps), IMAGES, stop_after=1, on_step=None)
    assert one[0].progress.loss == pytest.approx(two[0].progress.loss, rel=1e-5)
    for mine, other in zip(one[0].network.parameters(), two[0].network.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-5)
    assert torch.allclose(one[0].head.head.weight, two[0].head.head.weight, atol=1e-6)


def resume(training, **changes):
    files = training.pack()
    resumed, config, steps = start(**{**training._config.model_dump(), **changes}, seed=99)
    resumed._seed = training._seed
    resumed.unpack(files, files.__getitem__)
    return resumed, config, steps


@pytest.mark.parametrize("head", HEADS)
def test_a_run_resumed_inside_an_epoch_equals_the_undisturbed_one(head):
    settings = {"head": head, "margin": TrainConfig(head=head).margin, "ema": 0.5, "dropout": 0.3}
    undisturbed, config, steps = start(**settings)
    expected = finish(undisturbed, config, steps)

    training, config, steps = start(**settings)
    assert not training.run_epoch(batches(config, steps), IMAGES, stop_after=2, on_step=None)
    assert (training.progress.place, training.progress.steps) == (8, 2)
    resumed, config, steps = resume(training)
    assert measured(finish(resumed, config, steps)) == measured(expected)
    assert same(resumed.weights(), undisturbed.weights())
    assert same(resumed.head.state_dict(), undisturbed.head.state_dict())


def test_a_checkpoint_that_holds_code_is_refused():
    buffer = io.BytesIO()
    torch.save({"network": print}, buffer)
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights.only"):
        read_state(buffer.getvalue())


def test_the_moving_average_is_what_it_says():
    training, config, steps = start(ema=0.75)
    average = {name: value.clone() for name, value in training.weights().items()}
    feed = batches(config, steps)
    for number in range(3):
        training.run_epoch(feed, IMAGES, stop_after=1, on_step=None)
        now = training.network.state_dict()
        for name in ("conv1.weight", "features.running_mean"):
            # The first update takes the weights as they are.
            average[name] = now[name].lerp(average[name], 0.75 if number else 0.0)
            assert torch.allclose(training.weights()[name], average[name], atol=1e-6)


def test_a_loss_that_is_no_number_stops_with_advice_and_the_place():
    training, config, steps = start(lr=1e30, warmup_epochs=0.0)
    with pytest.raises(DivergedError, match=r"epoch 1, step 2; lower train\.lr \(1e\+30\)") as info:
        training.run_epoch(batches(config, steps), IMAGES, on_step=None)
    assert (info.value.epoch, info.value.place) == (0, 4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_gives_a_loss_near_that_of_float32(precision):
    losses = []
    for name in ("float32", precision):
        training, config, steps = start(precision=name)
        training.run_epoch(batches(config, steps), IMAGES, stop_after=1, on_step=None)
        losses.append(training.progress.loss)
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def set_scale(training, scale):
    training._scaler.load_state_dict({**training._scaler.state_dict(), "scale": scale})


def test_float16_leaves_out_a_step_whose_gradients_overflow():
    """Of the network and the head, wherever it was."""
    training, config, steps = start(precision="float16")
    feed = batches(config, steps)
    weights = [training.head.head.weight, training.network.conv1.weight]
    before = [weight.detach().clone() for weight in weights]
    hook = weights[1].register_hook(lambda gradient: gradient / 0)
    set_scale(training, 4.0)
    training.run_epoch(feed, IMAGES, stop_after=1, on_step=None)
    assert all(map(torch.equal, weights, before))
    assert training._scaler.get_scale() == 2.0
    hook.remove()
    training.run_epoch(feed, IMAGES, stop_after=1, on_step=None)
    assert not any(map(torch.equal, weights, before))


def test_a_part_of_the_classes_trains_and_resumes():
    settings = {"class_share": 0.6, "epochs": 3, "milestones": []}
    undisturbed, config, steps = start(**settings)
    expected = finish(undisturbed, config, steps)
    training, config, steps = start(**settings)
    training.run_epoch(batches(config, steps), IMAGES, stop_after=1, on_step=None)
    resumed, config, steps = resume(training)
    assert measured(finish(resumed, config, steps)) == measured(expected)
    with pytest.raises(UserError, match=r"class_share: 0\.6 draws classes for every pass"):
        start(class_share=0.6, batch_size=8)


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValidationError, match="float16 does not go with class_share"):
        TrainConfig(class_share=0.5, precision="float16")
    with pytest.raises(ValidationError, match="min_workers: 3 is above num_workers, 2"):
        TrainConfig(num_workers=2, min_workers=3)


def _join(rank, workers, rendezvous):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=workers,
        timeout=timedelta(seconds=60),
    )


def _leave():
    distributed.barrier()
    distributed.destroy_process_group()
    # Now and then gloo's threads are still there when the process ends, which C++ aborts it for.
    os._exit(0)


def _of_worker(rank, workers, folder, settings, stop_after, checkpoint, output):
    """A worker of a group; it writes what it packed."""
    _join(rank, workers, f"{folder / output}.rendezvous")
    training, config, steps = start(workers=workers, **settings)
    if checkpoint:
        names = [path.name for path in (folder / checkpoint).iterdir()]
        training.unpack(names, lambda name: (folder / checkpoint / name).read_bytes())
    if stop_after:
        feed = batches(config, steps, rank=rank)
        training.run_epoch(feed, IMAGES, stop_after=stop_after, on_step=None)
    else:
        finish(training, config, steps, rank)
    for name, data in training.pack().items():
        (folder / output / name).write_bytes(data)
    _leave()


def _overflow(rank, workers, folder):
    """A worker of a group in float16; gradients of the last one's classes overflow once."""
    _join(rank, workers, folder / "rendezvous")
    training, config, steps = start(workers=workers, precision="float16", batch_size=8)
    set_scale(training, 4.0)
    feed = batches(config, steps, rank=rank)
    weights = [training.head.head.weight, training.network.conv1.weight]
    before = [weight.detach().clone() for weight in weights]
    if rank == workers - 1:
        hook = weights[0].register_hook(lambda gradient: gradient / 0)
    training.run_epoch(feed, IMAGES, stop_after=1, on_step=None)
    assert all(map(torch.equal, weights, before))
    assert training._scaler.get_scale() == 2.0
    if rank == workers - 1:
        hook.remove()
    training.run_epoch(feed, IMAGES, stop_after=1, on_step=None)
    assert not any(map(torch.equal, weights, before))
    assert training._scaler.get_scale() == 2.0
    _leave()


def spawn(function, workers, folder, *others):
    """Runs a function of this module on so many processes."""
    arguments = json.dumps([function, workers, str(folder), *others])
    subprocess.run([sys.executable, __file__, arguments], check=True)


def train_in_group(workers, folder, output, settings, stop_after=None, checkpoint=None):
    (folder / output).mkdir()
    spawn("_of_worker", workers, folder, settings, stop_after, checkpoint, output)
    files = {path.name: path.read_bytes() for path in (folder / output).iterdir()}
    state = read_state(files["state.pt"])
    shards = sorted((n for n in files if n != "state.pt"), key=lambda n: int(n.split("-")[1]))
    state["weight"] = torch.cat([read_state(files[name])["weight"] for name in shards])
    return state


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_two_workers_take_the_steps_of_one(tmp_path, precision):
    """The same images make a step, and gradients are those of all; batch norm sees the same."""
    settings = {"batch_size": 8, "micro_batch": 4, "warmup_epochs": 0, "lr": 0.01}
    one, two = (
        train_in_group(n, tmp_path, f"of-{n}", settings | {"precision": precision}) for n in (1, 2)
    )
    assert [e["order"] for e in one["history"]] == [e["order"] for e in two["history"]]
    for mine, other in zip(one["history"], two["history"], strict=True):
        assert other["loss"] == pytest.approx(mine["loss"], rel=1e-4)
        assert other["accuracy"] == mine["accuracy"]
    assert torch.allclose(one["weight"], two["weight"], atol=1e-5)
    for name in ("conv1.weight", "fc.weight", "layer4.0.conv2.weight"):
        assert torch.allclose(one["network"][name], two["network"][name], atol=1e-4)


@pytest.mark.slow
def test_all_workers_leave_out_a_step_that_overflows_on_one(tmp_path):
    spawn("_overflow", 2, tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_workers(tmp_path):
    """2 → 3 → 1 inside an epoch: shards are cut anew, and no image is seen twice or missed."""
    settings = {"batch_size": 6, "micro_batch": 2, "warmup_epochs": 0, "lr": 0.01}
    train_in_group(2, tmp_path, "two", settings, stop_after=1)
    three = train_in_group(3, tmp_path, "three", settings, stop_after=None, checkpoint="two")
    one = train_in_group(1, tmp_path, "one", settings, checkpoint="three")
    assert torch.equal(one["weight"], three["weight"])
    assert same(one["network"], three["network"])
    first = three["history"][0]
    assert first["images"] == IMAGES
    # Two workers share 8 images of a step, three share 6: the second step has the other two.
    assert (first["steps"], first["workers"]) == (2, 3)
    assert three["history"][1]["steps"] == 2


if __name__ == "__main__":
    name, count, path, *others = json.loads(sys.argv[1])
    torch.multiprocessing.spawn(globals()[name], (count, Path(path), *others), count)
