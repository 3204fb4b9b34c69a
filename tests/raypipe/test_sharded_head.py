"""The sharded head against the whole one, on 2 and 3 gloo processes."""

import subprocess
import sys

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn import functional

from raypipe.config.train import TrainConfig
from raypipe.heads import make_head
from raypipe.sharded_head import RowSGD, ShardedHead, bounds, read_shard, shard_file

HEADS = ["arcface", "cosface", "combined", "adaface", "magface"]
CLASSES, DIMENSIONS, ROWS = 23, 8, 12  # of all ranks; 23 divides neither by 2 nor by 3
STEPS, SGD = 3, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}

pytestmark = pytest.mark.usefixtures("one_thread")


def whole_head(name):
    torch.manual_seed(7)
    return make_head(TrainConfig(head=name, t_alpha=0.5 if name == "adaface" else 0.01), 8, CLASSES)


def batch(kind=torch.float32, seed=0):
    """The batches of all ranks: norms of 5 to 120, two labels that occur twice, some nearest."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randperm(CLASSES, generator=generator)[:ROWS]
    labels[-2:] = labels[:2]
    noise = torch.randn(ROWS, DIMENSIONS, generator=generator)
    unit = functional.normalize(noise + 60 * whole_head("arcface").weight.detach()[labels])
    return (unit * torch.linspace(5, 120, ROWS).unsqueeze(1)).to(kind), labels


def run(head, embeddings, labels):
    """Loss, right images and the gradient of the embeddings."""
    given = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=embeddings.dtype == torch.bfloat16):
        loss, right = head(given, labels)
    loss.backward()
    return {"loss": loss.detach(), "right": right, "embeddings": given.grad}


def run_sampled(mine):
    """Some steps of Partial FC, each with what was before and after it."""
    sharded = ShardedHead(whole_head("cosface"), share=0.5, seed=3)
    optimizer = RowSGD(sharded, **SGD)
    steps = []
    for step in range(STEPS):
        embeddings, labels = batch(seed=step)
        before = sharded.head.weight.detach().clone()
        result = run(sharded, embeddings[mine], labels[mine])
        optimizer.step()
        after = sharded.head.weight.detach().clone()
        momentum = optimizer.state[sharded.head.weight]["momentum_buffer"].clone()
        gradient = sharded.taken.grad
        more = {"before": before, "after": after, "momentum": momentum, "gradient": gradient}
        steps.append({**result, **more, "rows": sharded.rows})
    return {"steps": steps, "state": sharded.state_dict(), "optimizer": optimizer.state_dict()}


def process(rank, ranks, folder):
    """What one process does; writes it into the folder."""
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{folder}/store", ranks)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    count = ROWS // ranks
    mine = slice(rank * count, (rank + 1) * count)
    found = {}
    for name in HEADS:
        for kind in (torch.float32, torch.bfloat16):
            sharded = ShardedHead(whole_head(name))
            embeddings, labels = batch(kind)
            result = run(sharded, embeddings[mine], labels[mine])
            result["weight"] = sharded.head.weight.grad
            found[name, kind] = {**result, "state": sharded.head.state_dict()}
    found["sampled"], found["again"] = run_sampled(mine), run_sampled(mine)
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What each process wrote, by the number of processes.

    They are forks of one fresh process: to start five would take longer than all that they do.
    """
    folders = {count: tmp_path_factory.mktemp("ranks") for count in (2, 3)}
    subprocess.run([sys.executable, __file__, *map(str, folders.values())], check=True, timeout=120)
    return folders


@pytest.fixture(params=[2, 3])
def ranks(request, folders):
    """What each process found."""
    count = request.param
    return [torch.load(folders[count] / f"{rank}.pt", weights_only=False) for rank in range(count)]


def assert_same(found, expected, tolerance=1e-5):
    """To `tolerance` of the largest number."""
    worst = (found.float() - expected.float()).abs().max().item()
    assert worst <= tolerance * max(1.0, expected.abs().max().item()), worst


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS)
def test_loss_gradients_and_accuracy_are_those_of_the_whole_head(ranks, name, kind):
    head = whole_head(name)
    expected = run(head.loss, *batch(kind))
    results = [rank[name, kind] for rank in ranks]
    for result in results:
        assert result["loss"] == results[0]["loss"]
        assert_same(result["loss"], expected["loss"])
        assert result["embeddings"].dtype == kind
        for key in result["state"].keys() - {"weight"}:
            assert_same(result["state"][key], head.state_dict()[key])
    # A gradient of bfloat16 is rounded to 8 bits.
    tolerance = 1e-5 if kind == torch.float32 else 2**-8
    gradients = torch.cat([result["embeddings"] for result in results])
    assert_same(gradients, expected["embeddings"], tolerance)
    assert_same(torch.cat([result["weight"] for result in results]), head.weight.grad)
    assert 0 < expected["right"] < ROWS
    assert sum(result["right"] for result in results) == expected["right"]


@pytest.mark.parametrize("name", HEADS)
def test_one_rank_needs_no_process_group(name):
    head, sharded = whole_head(name), ShardedHead(whole_head(name))
    expected, found = run(head.loss, *batch()), run(sharded, *batch())
    assert found["right"] == expected["right"]
    assert_same(found["loss"], expected["loss"])
    assert_same(found["embeddings"], expected["embeddings"])
    assert_same(sharded.head.weight.grad, head.weight.grad)


def test_sampling_takes_all_positives_and_a_share_of_the_others(ranks):
    drawn = set()
    for number, rank in enumerate(ranks):
        start, stop = bounds(CLASSES, number, len(ranks))
        for step, found in enumerate(rank["sampled"]["steps"]):
            rows = found["rows"]
            _, labels = batch(seed=step)
            positives = {label - start for label in labels.tolist() if start <= label < stop}
            assert positives <= set(rows.tolist())
            assert len(rows) == max((stop - start) // 2, len(positives))
            assert torch.equal(rows, rows.unique())
            drawn |= {(step, start + row) for row in set(rows.tolist()) - positives}
    assert drawn


def test_sampling_is_repeatable(ranks):
    for rank in ranks:
        for first, again in zip(rank["sampled"]["steps"], rank["again"]["steps"], strict=True):
            assert all(torch.equal(first[key], again[key]) for key in first)
        assert rank["sampled"]["state"]["step"] == STEPS


def test_a_sampled_step_is_one_of_the_taken_classes_alone(ranks):
    """Loss and update of a head that holds no other class, and torch's SGD on it."""
    momentum = torch.zeros(CLASSES, DIMENSIONS)
    for step in range(STEPS):
        found = [rank["sampled"]["steps"][step] for rank in ranks]
        starts = [bounds(CLASSES, number, len(ranks))[0] for number in range(len(ranks))]
        taken = torch.cat([f["rows"] + start for f, start in zip(found, starts, strict=True)])
        head = whole_head("cosface")
        before = torch.cat([f["before"] for f in found])
        head.weight = torch.nn.Parameter(before[taken].clone())
        embeddings, labels = batch(seed=step)
        expected = run(head.loss, embeddings, torch.searchsorted(taken, labels))
        optimizer = torch.optim.SGD([head.weight], **SGD)
        optimizer.state[head.weight]["momentum_buffer"] = momentum[taken]
        optimizer.step()

        for f in found:
            assert_same(f["loss"], expected["loss"])
        assert sum(f["right"] for f in found) == expected["right"]
        assert_same(torch.cat([f["embeddings"] for f in found]), expected["embeddings"])
        assert_same(torch.cat([f["gradient"] for f in found]), head.weight.grad)
        after = before.clone()
        after[taken] = head.weight.detach()
        rested, momentum = momentum, torch.cat([f["momentum"] for f in found])
        left = torch.ones(CLASSES, dtype=bool).index_fill(0, taken, False)
        assert left.any()
        assert torch.equal(torch.cat([f["after"] for f in found])[left], before[left])
        assert torch.equal(momentum[left], rested[left])
        assert_same(torch.cat([f["after"] for f in found]), after)
        assert_same(momentum[taken], optimizer.state[head.weight]["momentum_buffer"])


def test_sampling_goes_on_from_its_state():
    undisturbed = run_sampled(slice(None))
    resumed = ShardedHead(whole_head("cosface"), share=0.5, seed=3)
    resumed.load_state_dict(undisturbed["state"])
    optimizer = RowSGD(resumed, **SGD)
    optimizer.load_state_dict(undisturbed["optimizer"])
    whole = ShardedHead(whole_head("cosface"), share=0.5, seed=3)
    first = RowSGD(whole, **SGD)
    for step in range(STEPS + 1):
        run(whole, *batch(seed=step))
        first.step()
    run(resumed, *batch(seed=STEPS))
    optimizer.step()
    assert torch.equal(resumed.rows, whole.rows)
    assert torch.equal(resumed.head.weight, whole.head.weight)


def cut(files, classes, ranks):
    """What so many ranks read of files, and write again: name → tensors."""
    parts = {}
    for rank in range(ranks):
        start, stop = bounds(classes, rank, ranks)
        parts[shard_file(start, stop)] = read_shard(files, files.__getitem__, start, stop)
    return parts


@pytest.mark.parametrize("classes", [5, 6, 7, 13])
def test_shards_are_cut_anew_bit_by_bit(classes):
    weight = torch.randn(classes, 4)
    whole = {"weight": weight, "momentum": weight.bfloat16()}
    two = cut({shard_file(0, classes): whole}, classes, 2)
    three = cut(two, classes, 3)
    one = cut(three, classes, 1)
    assert len(three) == 3
    assert [*one] == [shard_file(0, classes)]
    for name, matrix in whole.items():
        assert torch.equal(one[shard_file(0, classes)][name], matrix)
        sizes = [len(part[name]) for part in three.values()]
        assert sum(sizes) == classes
        assert max(sizes) - min(sizes) <= 1


def test_files_of_other_classes_are_not_read():
    files = cut({shard_file(0, 10): {"weight": torch.randn(10, 4)}}, 10, 5)
    read = []

    def get(name):
        read.append(name)
        return files[name]

    shard = read_shard([*files, "state.pt"], get, 3, 6)
    assert read == ["head-2-4.pt", "head-4-6.pt"]
    assert len(shard["weight"]) == 3


def test_a_sharded_head_goes_on_with_other_numbers_of_ranks(ranks):
    """The shards of 2 or 3 processes, cut anew for 3 or 2."""
    shards = [rank["adaface", torch.float32]["state"]["weight"] for rank in ranks]
    files = {
        shard_file(*bounds(CLASSES, rank, len(ranks))): {"weight": shard}
        for rank, shard in enumerate(shards)
    }
    other = cut(files, CLASSES, 5 - len(ranks))
    assert torch.equal(
        torch.cat([p["weight"] for p in other.values()]), whole_head("adaface").weight
    )


if __name__ == "__main__":
    torch.optim.SGD([torch.zeros(1)])  # imports what the forks need
    for count, folder in zip((2, 3), sys.argv[1:], strict=True):
        multiprocessing.start_processes(process, (count, folder), count, start_method="fork")
