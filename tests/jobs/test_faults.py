"""What goes wrong in a stage costs the row that it is about, or ends with a word that names it."""

import os
import signal
import time
from pathlib import Path

import pytest

from face_sets import write_set
from jobs.stage import Step, run_stage
from raypipe import storage
from raypipe.config import parse
from raypipe.config.base import Pool
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import Identity, Image

pytestmark = pytest.mark.slow

ROWS = 40


class Poisoned:
    """Marks every image as seen, and breaks on some identities, each in its way."""

    def __init__(self, poison):
        self.poison = poison

    def __call__(self, identities):
        for identity in identities:
            for image in identity.images:
                image.similarity = 0.5
            match self.poison.get(identity.identity_id):
                case "raise":
                    raise ValueError(f"cannot digest {identity.identity_id}")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "disk":
                    raise OSError("the share is gone")
                case "hang":
                    time.sleep(1000)
        return identities


class DiesAtOnce:
    """Ends the process before it can be told anything."""

    def __init__(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, identities):
        return identities


def name(number):
    return f"base/{number:03d}"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = str(tmp_path_factory.mktemp("faults") / "source")
    people = (
        Identity(
            identity_id=name(number),
            index=number,
            source="base",
            images=[Image(image_id="0.jpg", data=b"\xff" * 50, source="made")],
        )
        for number in range(ROWS)
    )
    write_set(root, people)
    return root


def run(source, workspace, poison, actor=Poisoned, **ray_options):
    config = parse(
        {
            "workspace": str(workspace),
            "ray": {"rows_per_block": 10, "no_progress_seconds": 60, **ray_options},
            "embedder": {"kind": "dlib"},
        },
        "test",
    )
    arguments = {"poison": poison} if actor is Poisoned else {}
    step = Step(name="digest", actor=actor, arguments=arguments, pool=Pool(max=2, batch_size=5))
    return run_stage(config, job="embed", source=source, steps=[step], settings={})


@pytest.fixture(scope="module")
def undisturbed(ray_cluster, source, tmp_path_factory):
    workspace = tmp_path_factory.mktemp("undisturbed")
    run(source, workspace, {})
    return rows(workspace)


def rows(workspace):
    return {item.identity_id: item for item in FaceSet(f"{workspace}/embed").iter_identities()}


@pytest.mark.parametrize(("how", "reason"), [("raise", "failed"), ("die", "crashed")])
def test_a_poisoned_row_costs_that_row_and_no_other(how, reason, source, undisturbed, tmp_path):
    made = run(source, tmp_path, {name(17): how})
    assert made.counts["identities"] == {
        "total": ROWS,
        "kept": ROWS - 1,
        "rejected": {f"embed:{reason}": 1},
    }
    found = rows(tmp_path)
    lost = found.pop(name(17))
    assert lost.rejected == f"embed:{reason}" and lost.images[0].data == b"\xff" * 50
    assert lost.images[0].similarity is None, "the row is as it came"
    assert found == {key: value for key, value in undisturbed.items() if key != name(17)}
    (failure,) = Path(tmp_path, "embed", "failures").iterdir()
    told = storage.read_json(str(failure))
    assert told["identity_id"] == name(17) and told["step"] == "digest"
    assert ("cannot digest base/017" if how == "raise" else "died 3 times") in told["error"]


def test_a_fault_of_all_rows_ends_the_stage(ray_cluster, source, tmp_path):
    poison = {name(number): "raise" for number in range(ROWS)}
    with pytest.raises(UserError) as caught:
        run(source, tmp_path, poison, failed_rows=7)
    said = str(caught.value)
    assert "more than ray.failed_rows allows (7)" in said and "cannot digest base/0" in said
    assert "\n" not in said
    # What failed before counts when it is resumed.
    with pytest.raises(UserError, match=r"more than ray.failed_rows allows \(9\)"):
        run(source, tmp_path, poison, failed_rows=9)


def test_a_fault_of_the_machine_rejects_nobody(ray_cluster, source, tmp_path):
    with pytest.raises(UserError, match=r"embed: .*the share is gone.*resume"):
        run(source, tmp_path, {name(3): "disk"})
    assert not storage.exists(f"{tmp_path}/embed/failures")
    assert run(source, tmp_path, {}).counts["identities"]["kept"] == ROWS


def test_a_row_that_never_ends_ends_the_stage(ray_cluster, source, tmp_path):
    with pytest.raises(UserError, match=r"embed: no row moved .*MapBatches\(digest\)"):
        run(source, tmp_path, {name(3): "hang"}, no_progress_seconds=15)


def test_an_actor_that_dies_at_its_start_ends_the_stage(ray_cluster, source, tmp_path):
    with pytest.raises(UserError, match="embed: .* died 3 times .* step digest loaded"):
        run(source, tmp_path, {}, actor=DiesAtOnce)
