"""Where pools land, and how long jobs take there: by hand."""

from dataclasses import replace

import pytest

from raypipe.cluster_files import NodeType
from raypipe.config import parse
from raypipe.config.base import Pool, Workers
from raypipe.errors import UserError
from raypipe.planning.jobs import Job, Part, Step
from raypipe.planning.rates import Rates
from raypipe.planning.timing import (
    Cluster,
    build_times,
    of_nodes,
    part_seconds,
    place,
    step_time,
    this_machine,
)

CPU = NodeType("cpu", {"CPU": 16.0, "memory": 64.0})
L4 = NodeType("l4", {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0, "memory": 32.0})
H100 = NodeType("h100", {"CPU": 64.0, "GPU": 8.0, "accelerator_type:H100": 1.0})
HEAD = NodeType("head", {"CPU": 0.0})
RATES = Rates(
    assumed={
        "peak": {"L4": 100.0, "H100": 1000.0, "core": 10.0},
        "utilisation": {"embed": {"gpu": 0.5, "core": 0.5}},
        "host": {"embed": 1.0, "read": 2.0},
        "overhead": {"stage": 10.0, "pass": 4.0, "task": 1.0, "fit": 20.0, "local": 0.0},
    }
)


def gpus(count, **more):
    return Pool(max=count, num_gpus=1, num_cpus=4, **more)


def test_nodes_with_gpus_are_left_to_those_who_need_them():
    cluster = of_nodes([L4, CPU, HEAD])
    assert cluster.head is HEAD
    assert place(Pool(max=20), cluster, "").node is CPU
    found = place(gpus(3), cluster, "")
    assert (found.node, found.actors, found.nodes, found.accelerator) == (L4, 3, 3, "L4")


def test_the_scarcest_resource_says_how_many_actors_a_node_holds():
    cluster = of_nodes([CPU, H100])
    found = place(Pool(max=10, num_cpus=4, memory=32), cluster, "")
    assert (found.actors, found.nodes) == (10, 5)  # two a node, by memory
    assert place(gpus(20, accelerator_type="H100"), cluster, "").nodes == 3
    shared = Pool(max=20, num_gpus=0.5, num_cpus=1)
    assert place(shared, cluster, "").nodes == 2
    trained = place(Workers(num_workers=4, use_gpu=True, cpus_per_worker=8), cluster, "")
    assert (trained.actors, trained.nodes, trained.accelerator) == (4, 1, "H100")


def test_fewer_nodes_hold_fewer_actors():
    assert place(Pool(max=64), of_nodes([CPU], most=2), "").actors == 32


def test_a_pool_without_a_node_is_named():
    with pytest.raises(UserError, match=r"embed\.pool: no node has"):
        place(Pool(num_gpus=2), of_nodes([CPU, L4]), "embed.pool")
    with pytest.raises(UserError, match="no node type of the cluster file has CPUs"):
        of_nodes([HEAD])


def test_an_assumed_rate_is_operations_by_peak_and_the_work_of_the_host():
    step = Step(name="embed", images=60, operations=100, pool=gpus(2), field="embed.pool")
    found = step_time(step, of_nodes([L4]), RATES)
    # 100 operations at 50 a second are 2 s, 1 s for the host: 60 images, two actors.
    assert found.seconds == 60 * 3 / 2 and not found.measured
    on_cores = step_time(replace(step, pool=Pool(num_cpus=4)), of_nodes([CPU]), RATES)
    assert on_cores.seconds == 60 * (100 / (10 * 4 * 0.5) + 1)
    half = step_time(replace(step, pool=Pool(num_gpus=0.5)), of_nodes([L4]), RATES)
    assert half.seconds == 60 * 3 / 0.5


def test_a_measured_rate_counts_for_its_kind_of_device():
    rates = replace(RATES, measured={"gpu embed": 0.25})
    step = Step(name="embed", images=60, operations=100, pool=gpus(2))
    assert step_time(step, of_nodes([L4]), rates).seconds == 60 * 0.25 / 2
    assert not step_time(replace(step, pool=Pool()), of_nodes([L4]), rates).measured


def test_streamed_steps_take_as_long_as_the_slowest_or_as_the_cores_need():
    steps = tuple(Step(name="read", images=10, pool=Pool(), field="ingest.pool") for _ in range(3))
    part = Part(kind="stage", steps=steps)
    wide = of_nodes([CPU])
    assert part_seconds(part, [step_time(step, wide, RATES) for step in steps], wide) == 20
    narrow = replace(this_machine(parse({"workspace": "w", "embedder": {}}, "w")), cores=2)
    assert part_seconds(part, [step_time(step, narrow, RATES) for step in steps], narrow) == 30
    waiting = replace(part, seconds=100)
    assert part_seconds(waiting, [step_time(step, wide, RATES) for step in steps], wide) == 100


def jobs():
    read = Step(name="read", images=180, pool=Pool(max=2), field="ingest.pool")
    embed = Step(name="embed", images=60, operations=100, pool=gpus(2), field="embed.pool")
    return [
        Job(name="ingest", reads={}, makes={}, bytes=0, parts=(Part(kind="stage", steps=(read,)),)),
        Job(name="embed", reads={}, makes={}, bytes=0, parts=(Part(kind="stage", steps=(embed,)),)),
    ]


def test_node_hours_are_those_of_all_nodes_of_a_job():
    ingest, embed = build_times(jobs(), of_nodes([CPU, L4]), RATES)
    # 180 × 2 s on two actors of one node, and the stage's 10 s.
    assert ingest.node_hours == {"cpu": pytest.approx(190 / 3600), "l4": 0}
    assert embed.node_hours["l4"] == pytest.approx(2 * (90 + 10) / 3600)
    assert ingest.slowest.step.name == "read"
    # The nodes are started first; on one machine nothing is.
    assert ingest.seconds == 190 + 300
    here = Cluster(nodes=[NodeType("here", {**CPU.resources, **L4.resources})], cores=8)
    assert build_times(jobs(), here, RATES)[0].seconds == 190


def test_measured_overheads_scale_with_the_parts():
    rates = replace(RATES, overheads={"ingest": {"seconds": 30.0, "primitives": 20.0}})
    ingest, _ = build_times(jobs(), of_nodes([CPU, L4]), rates)
    assert ingest.seconds == 180 + 10 * 30 / 20 + 300
