"""What the jobs of a configuration read and make."""

from pathlib import Path

import pytest

from raypipe.cluster_files import offers
from raypipe.config import load
from raypipe.config.curriculum import CurriculumConfig
from raypipe.errors import UserError
from raypipe.manifest import Manifest, Origin, write_manifest
from raypipe.planning.facts import Facts, factors
from raypipe.planning.new_jobs import filled, waves
from raypipe.planning.plan import make_plan
from raypipe.planning.rates import shipped
from raypipe.planning.set_jobs import admitted
from raypipe.planning.timing import of_nodes, this_machine
from raypipe.planning.walk import walk

ROOT = Path(__file__).parents[3]
BEST = [
    "plan.sources.base={identities: 10000, images: 500000}",
    "plan.galleries={webface4m: {identities: 50000, images: 1022444}, "
    "casia: {identities: 10572, images: 490623}, lfw: {identities: 5749, images: 13233}}",
]


def config(name, workspace, *overrides):
    path = str(ROOT / "configs" / f"{name}.yaml")
    return load(path, [f"workspace={workspace}", *overrides])


def walked(name, workspace, *overrides):
    found = Facts(config(name, workspace, *overrides), shipped())
    return {job.name: job for job in walk(found)}


def test_the_demo_as_its_configuration_says(tmp_path):
    jobs = walked("demo", tmp_path)
    assert list(jobs) == [
        *("sample", "ingest", "embed", "clean", "judge", "vectors", "seed", "screen", "expand"),
        *("assemble", "train", "evaluate", "report"),
    ]
    # 300 people × 12, three of whom have 4 images, and 14 photographs of each of three leaks: what
    # the sample job counts.
    base = jobs["ingest"].reads["base"]
    assert (base.identities, base.images) == (303, 300 * 12 - 3 * 8 + 3 * 14)
    kept = jobs["ingest"].makes["base"].images_kept
    assert kept == pytest.approx(base.images * (1 - 0.01))  # the corrupt and truncated files
    assert jobs["vectors"].makes["vec"].images == 16
    # Every kept person has 12 images in the set, whether drawn, kept or augmented.
    people = jobs["assemble"].makes["set"]
    assert people.images == people.identities * 12
    assert jobs["train"].operations == pytest.approx(
        2 * people.images * 3 * (2.235843e8 + 2 * 512 * people.identities)
    )


def test_new_people_get_the_images_that_they_lack(tmp_path):
    jobs = walked("demo", tmp_path)
    screened, expanded = jobs["screen"].makes, jobs["expand"].makes
    wanted = 12 * screened["vec"].kept
    grown = expanded["vec"]
    assert grown.images_kept == pytest.approx(wanted)
    assert grown.images - screened["vec"].images == pytest.approx(1.08 * wanted)
    # A reference is one of the twelve.
    assert expanded["seed"].images_kept == pytest.approx(12 * screened["seed"].kept)
    assert expanded["base"] == screened["base"]


def test_galleries_are_made_ready_by_the_first_job_that_needs_them(tmp_path):
    with_seeds, without = walked("demo", tmp_path), walked("demo", tmp_path, "seeds=null",
        "expand.sources=[vec]", "assemble.phases=[vec, base]")  # fmt: skip
    embeds = {name: [s.name for part in job.parts for s in part.steps] for name, job in
              with_seeds.items()}  # fmt: skip
    assert "embed" in embeds["seed"] and "embed" not in embeds["screen"]
    steps = [step.name for part in without["screen"].parts for step in part.steps]
    assert steps.count("embed") == 1


def test_a_finished_job_takes_the_place_of_estimates(tmp_path):
    counts = {
        "identities": {"total": 50, "kept": 40, "rejected": {}},
        "images": {"total": 600, "kept": 300, "rejected": {}},
        "sources": {
            "base": {"identities": 50, "identities_kept": 40, "images": 600, "images_kept": 300}
        },
        "bytes": 1234,
    }
    origin = Origin(job="clean", settings={}, inputs={}, models={})
    write_manifest(
        str(tmp_path / "clean"), Manifest(origin=origin, counts=counts, content_digest="")
    )
    jobs = walked("demo", tmp_path)
    assert jobs["clean"].bytes == 1234 and jobs["clean"].basis == "counted"
    assert jobs["clean"].makes["base"].images_kept == 300
    assert jobs["vectors"].reads["base"].kept == 40
    assert jobs["ingest"].basis == "the part sample"


def test_shares_are_those_that_jobs_counted():
    def of(people, images):
        return {"identities": {"kept": people, "total": 100}, "images": {"kept": images,
                "total": 1000, "made": 0}}  # fmt: skip

    counts = {"ingest": of(100, 950), "embed": of(100, 950), "clean": of(90, 684)}
    found = factors(counts)
    assert found["ingest lost"] == pytest.approx(0.05)
    assert found["clean people lost"] == pytest.approx(0.1)
    assert found["clean lost"] == pytest.approx(1 - 684 / (950 * 0.9))
    screened, grown = of(10, 100), of(10, 300)
    grown["images"]["made"] = 250
    assert factors({"screen": screened, "expand": grown})["expand drawn"] == 1.25


def test_waves_are_those_of_the_seed_job():
    # The demo with seed 0 drew so many.
    assert waves(24, 3, 10, passed=0.6, admitted=0.59) == [24, 25]
    drawn = waves(10_000, 3, 10, passed=0.6, admitted=0.594)
    assert drawn[0] == 1000
    assert sum(drawn) == pytest.approx(10_000 / 0.594, rel=0.02)
    with pytest.raises(UserError, match="are admitted, not"):
        waves(100, 1, 1, passed=0.5, admitted=0.5)


def test_the_last_batch_of_a_block_is_filled_up():
    assert filled(24, rows_per_block=16, batch=8) == 24
    assert filled(25, rows_per_block=16, batch=8) == 32
    assert filled(3, rows_per_block=16, batch=8) == 8
    assert filled(40, rows_per_block=12, batch=8) == 3 * 16 + 8


def test_a_paced_curriculum_begins_with_a_part_of_the_set():
    assert admitted(CurriculumConfig(), 26) == 26
    paced = CurriculumConfig(schedule="paced", start=0.25, full_at=0.5)
    # Epochs 0 to 4 of 8: a quarter, then a fifth of the rest each until all are in.
    assert admitted(paced, 8) == pytest.approx(0.25 + 0.4375 + 0.625 + 0.8125 + 4)


def test_what_cannot_be_read_has_to_be_stated():
    best = load(str(ROOT / "configs" / "best.yaml"), ["plan.sources={}"])
    with pytest.raises(
        UserError, match=r"hsface10k\.lmdb cannot be read here.*plan\.sources\.base"
    ):
        make_plan(best, of_nodes(offers(str(ROOT / "cluster.yaml"))))


def test_a_folder_is_surveyed(tmp_path):
    from raypipe.config.sample import FAULTLESS, SampleConfig
    from raypipe.world import make_base

    make_base(SampleConfig(identities=6, images=3, **FAULTLESS), 0, str(tmp_path))
    demo = config(
        "demo",
        tmp_path / "work",
        "sample=null",
        f"ingest.sources=[{{name: base, path: {tmp_path}/base}}]",
        "screen.galleries=[]",
    )
    groups, basis = Facts(demo, shipped()).sources()
    assert basis == "surveyed"
    assert (groups["base"].identities, groups["base"].images) == (6, 18)
    sizes = [path.stat().st_size for path in (tmp_path / "base").rglob("*.jpg")]
    assert groups["base"].image_bytes == pytest.approx(sum(sizes) / 18)


def test_the_best_configuration_on_the_cluster_that_ships():
    best = load(str(ROOT / "configs" / "best.yaml"), BEST)
    plan = make_plan(best, of_nodes(offers(str(ROOT / "cluster.yaml"))))
    assert not plan.reached  # its workspace is to be filled in
    jobs = {time.job.name: time for time in plan.times}
    assert jobs["expand"].slowest.place.node.name == "gpu_l4"
    assert jobs["seed"].slowest.place.node.name == "gpu_l40s"
    assert jobs["train"].slowest.place.accelerator == "H100"
    # The header says 30,000 people; a lost one is dropped.
    assert 29_000 < jobs["assemble"].job.identities < 30_000
    assert plan.questions.calls == 10_000
    fewer = make_plan(best, of_nodes(offers(str(ROOT / "cluster.yaml")), 1))
    assert fewer.seconds > 2 * plan.seconds
    assert set(plan.hours) == {"cpu", "gpu_l4", "gpu_l40s", "gpu_h100", "head"}
    assert plan.hours["head"] == pytest.approx(plan.seconds / 3600)


def test_the_vision_model_is_waited_for(tmp_path):
    judge = "judge={kind: openai, experts: [clustering, vision], ask: all, concurrency: 1}"
    asked = make_plan(config("demo", tmp_path, judge), this_machine(config("demo", tmp_path)))
    (time,) = (time for time in asked.times if time.job.name == "judge")
    assert asked.questions.calls == 303
    assert time.seconds > 303 * 4
