import time

import numpy as np
import pytest

from actors.embed import EmbedActor
from face_sets import finish_set
from jobs.cluster import required
from jobs.inspection import print_inspection, print_verification
from jobs.stage import Step, run_stage
from raypipe import images, storage
from raypipe.config import parse
from raypipe.config.base import Pool
from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image

pytestmark = pytest.mark.slow


def build(workspace):
    return parse(
        {
            "workspace": str(workspace),
            "ray": {"rows_per_block": 4, "no_progress_seconds": 60},
            "embedder": {"kind": "dlib"},
            "ingest": {"sources": [{"name": "base", "path": "unused"}]},
        },
        "test",
    )


def source_set(root, identities=10, per_identity=2):

    for part in range(2):
        rng = np.random.default_rng(part)
        write_rows(
            root,
            f"{part}.parquet",
            [
                Identity(
                    identity_id=f"base/{number:03d}",
                    index=number,
                    source="base",
                    images=[
                        Image(
                            image_id=f"{k}.jpg",
                            data=images.encode_jpeg(rng.integers(0, 255, (112, 112, 3), np.uint8)),
                            source="random",
                        )
                        for k in range(per_identity)
                    ],
                )
                for number in range(part, identities, 2)
            ],
        )
    finish_set(root)
    return root


def embed(config, source, *, job="embed", actors=1, settings=None, weights=None, **pool):
    step = Step(
        name="embed",
        actor=EmbedActor,
        arguments={"embedder": {"kind": "dlib", "weights": weights}},
        pool=Pool(min=actors, max=actors, batch_size=2, **pool),
    )
    return run_stage(config, job=job, source=source, steps=[step], settings=settings or {"a": 1})


def test_same_content_for_any_number_of_actors_and_nothing_to_do_twice(ray_cluster, tmp_path):
    config, source = build(tmp_path), source_set(str(tmp_path / "source"))
    one = embed(config, source, job="one")
    two = embed(config, source, job="two", actors=2)
    assert one.content_digest == two.content_digest
    assert one.counts["images"] == {"total": 20, "read": 20, "made": 0, "kept": 20, "rejected": {}}
    assert len(FaceSet(str(tmp_path / "one")).files()) > 1
    files = [entry.mtime_ns for entry in storage.listdir(str(tmp_path / "one/rows"))]
    assert embed(config, source, job="one") == one
    assert files == [entry.mtime_ns for entry in storage.listdir(str(tmp_path / "one/rows"))]
    stage = storage.read_json(str(tmp_path / "two/run.json"))["stages"][0]
    assert stage["rows"] == 10 and stage["images"] == 20 and stage["actors"] in (1, 2)
    assert stage["compute_seconds"] > 0 and stage["images_per_second_per_actor"] > 0
    with pytest.raises(UserError, match=r"settings\.a 1 → 2"):
        embed(config, source, job="one", settings={"a": 2})
    print_inspection(str(tmp_path / "one"))
    assert print_verification(str(tmp_path / "one"))


def test_a_remote_workspace_gives_the_same_content(ray_cluster, s3_bucket, tmp_path):
    local = embed(build(tmp_path), source_set(str(tmp_path / "source")), job="one")
    remote = source_set(f"{s3_bucket}/stage/source")
    made = embed(build(f"{s3_bucket}/stage"), remote, job="one")
    assert made.content_digest == local.content_digest
    assert print_verification(f"{s3_bucket}/stage/one")
    assert not storage.exists(f"{s3_bucket}/stage/one/started.json")


def test_mistakes_are_named(ray_cluster, tmp_path):
    config, source = build(tmp_path), source_set(str(tmp_path / "source"))
    with pytest.raises(UserError, match="not a finished face set"):
        embed(config, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="wide: .*CPU needed, 8 CPU there"):
        embed(config, source, job="wide", actors=7)
    with pytest.raises(UserError, match="GPU needed, 0 GPU there"):
        embed(config, source, job="gpu", num_gpus=1)
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"w\.safetensors"):
        embed(config, source, job="bad", weights=str(tmp_path / "w.safetensors"))


def test_a_changed_row_is_found_and_named(ray_cluster, tmp_path):
    source = source_set(str(tmp_path / "source"))
    people = list(FaceSet(source).iter_identities([FaceSet(source).files()[0]]))
    people[1].images[0].data = b"broken"
    write_rows(source, "0.parquet", people)
    from raypipe.manifest import read_manifest
    from raypipe.verifying import Verification

    problems = Verification(source, read_manifest(source)).run()
    assert len(problems) == 2
    assert "base/002" in problems[0] and "not_an_image" in problems[0]
    assert "content digest" in problems[1]


def test_what_a_stage_needs():
    need = required([Pool(min=2, num_cpus=1.5, num_gpus=0.5, accelerator_type="L4"), Pool()])
    assert need["CPU"] == 3 + 1 + 2 and need["GPU"] == 1
    assert need["accelerator_type:L4"] == pytest.approx(0.002)


class _Slow:
    """Hands on what it gets, after a long start."""

    def __init__(self, seconds):
        time.sleep(seconds)

    def __call__(self, identities):
        return identities


@pytest.mark.parametrize("waits", [(0.0, 6.0), (6.0, 0.0)])
def test_a_pool_that_is_slow_to_start_stops_nobody_for_good(ray_cluster, tmp_path, waits):
    steps = [
        Step(name=f"step {i}", actor=_Slow, arguments={"seconds": seconds}, pool=Pool(max=2))
        for i, seconds in enumerate(waits)
    ]
    source = source_set(str(tmp_path / "source"))
    made = run_stage(build(tmp_path), job="slow", source=source, steps=steps, settings={})
    assert made.counts["identities"]["total"] == 10


def test_pools_that_do_not_fit_are_refused_before_anything_waits(ray_cluster, tmp_path):
    steps = [
        Step(name=f"step {i}", actor=_Slow, arguments={"seconds": 0}, pool=Pool(num_cpus=3.5))
        for i in range(2)
    ]
    source = source_set(str(tmp_path / "source"))
    with pytest.raises(UserError, match="cannot hold the pools and still read: 9 CPU needed, 8"):
        run_stage(build(tmp_path), job="large", source=source, steps=steps, settings={})
