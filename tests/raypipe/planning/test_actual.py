"""Plan beside actual: a workspace whose times and bytes are known."""

import json

import pytest

from raypipe.manifest import Manifest, Origin, write_manifest
from raypipe.planning.actual import compare, job_seconds, total


def finish(root, job, *, seconds, size, counts, resumed=False):
    folder = root / job
    folder.mkdir(parents=True)
    run = {"seconds": seconds, "resumed": resumed, "stages": []}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "rows.bin").write_bytes(bytes(size))
    origin = Origin(job=job, settings={}, inputs={}, models={})
    write_manifest(str(folder), Manifest(origin=origin, counts=counts, content_digest=""))
    return sum(path.stat().st_size for path in folder.iterdir())


def planned(**jobs):
    return {
        "jobs": {
            name: {"seconds": seconds, "bytes": size, "images": images}
            for name, (seconds, size, images) in jobs.items()
        }
    }


def test_finished_jobs_are_set_beside_their_plan(tmp_path):
    images = {"images": {"total": 120}}
    size = finish(tmp_path, "embed", seconds=20.0, size=5000, counts=images)
    finish(tmp_path, "train", seconds=70.0, size=0, counts={"images": 90}, resumed=True)
    plan = planned(embed=(10.0, 4000, 100), train=(60.0, 300, 90), evaluate=(5.0, 1, 0))
    embed, train = compare(plan, str(tmp_path))  # evaluate is not finished
    assert (embed.job, embed.planned.seconds, embed.actual.seconds) == ("embed", 10, 20)
    assert (embed.actual.bytes, embed.actual.images) == (size, 120)
    assert train.resumed and not embed.resumed
    assert total([embed, train], lambda amount: amount.seconds) == (70, 90)


@pytest.mark.parametrize("first", ["seed", "screen"])
def test_galleries_count_for_the_first_job_that_needs_them(tmp_path, first):
    for job in ("seed", "screen") if first == "seed" else ("screen",):
        finish(tmp_path, job, seconds=10.0, size=0, counts={})
    for part, seconds in (("ingest", 3.0), ("embed", 4.0)):
        folder = f"screen/galleries/orl/{part}"
        finish(tmp_path, folder, seconds=seconds, size=0, counts={})
    assert job_seconds(str(tmp_path), first) == (17.0, False)
    if first == "seed":
        assert job_seconds(str(tmp_path), "screen") == (10.0, False)


def test_a_job_without_notes_has_no_time(tmp_path):
    assert job_seconds(str(tmp_path), "embed") == (None, False)
