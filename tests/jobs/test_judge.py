"""The judging job through Ray, with the real client and a service on loopback that sees."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import clean, ingest, judge
from local_judge import KEY, Behaviour, LocalJudge
from raypipe.config import Build, parse
from raypipe.config.sample import SampleConfig
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import Identity
from raypipe.images import decode
from raypipe.judging.answers import Answers
from raypipe.judging.planning import plan
from raypipe.manifest import read_manifest
from raypipe.world import make_base

PEOPLE, IMAGES = 24, 12
WORLD = SampleConfig(
    identities=PEOPLE,
    images=IMAGES,
    strangers=0.12,
    near_duplicates=0.02,
    corrupt=0,
    truncated=0,
    duplicates=0,
    too_few=0,
    leaks=0,
)
FAULTS = {"429": 0.08, "500": 0.06, "malformed": 0.06}


def build(folder: Path, workspace: str, **judge: Any) -> Build:
    values = {
        "workspace": str(folder / workspace),
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": str(folder / "base")}]},
        "ray": {"rows_per_block": 4},
        "judge": judge,
    }
    return parse(values, "test")


def service(found: LocalJudge, **changes: Any) -> dict[str, Any]:
    pool = {"batch_size": 4}
    values = {"kind": "openai", "base_url": found.base_url, "endpoints": ["127.0.0.1"]}
    return {**values, "concurrency": 8, "timeout": 5.0, "pool": pool, **changes}


def truth(folder: Path) -> dict[str, bool]:
    """Path of every image, and whether it shows somebody else."""
    known = json.loads((folder / "truth.json").read_text())
    return {
        path: file["person"] != known["identities"][path.split("/")[0]]["person"]
        for path, file in known["files"].items()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A world, cleaned in the folder `start`."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "truth.json").write_text(json.dumps(make_base(WORLD, 3, str(folder))))
    config = build(folder, "start", kind="none")
    ingest.run(config)
    clean.run(config)
    return folder


@pytest.fixture
def local(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalJudge]:
    """The service, told the truth; the workers of the cluster read the key from a file."""
    known = truth(made)
    faces = [decode((made / "base" / path).read_bytes(), source=path) for path in known]
    with LocalJudge(faces, list(known.values()), Behaviour(wrong=0.05, faults=FAULTS)) as found:
        yield found


@pytest.fixture
def key_file(tmp_path: Path) -> str:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    return str(path)


def started(made: Path, workspace: str) -> Path:
    """A workspace with the cleaned set."""
    shutil.copytree(made / "start" / "clean", made / workspace / "clean")
    return made / workspace


def rows(root: Path) -> dict[str, Identity]:
    return {item.identity_id: item for item in FaceSet(str(root)).iter_identities()}


def f1(made: Path, found: dict[str, Identity]) -> float:
    known, hits, said = truth(made), 0, 0
    out = {
        f"{name.rpartition('/')[2]}/{image.image_id}"
        for name, item in found.items()
        for image in item.images
        if image.rejected in ("clean:other_person", "judge:other_person", "judge:inconsistent")
    }
    hits, said = sum(known[path] for path in out), len(out)
    return 2 * hits / (said + sum(known.values()))


@pytest.mark.slow
def test_every_identity_is_judged_or_listed_and_nothing_is_lost(
    made: Path, local: LocalJudge, key_file: str
) -> None:
    root = started(made, "whole")
    manifest = judge.run(build(made, "whole", **service(local, key_file=key_file, asks=1)))
    before, after = rows(root / "clean"), rows(root / "judge")
    assert after.keys() == before.keys()
    listed = 0
    for name, item in after.items():
        assert [image.image_id for image in item.images] == [
            image.image_id for image in before[name].images
        ]
        if before[name].rejected:
            assert item.judge is None
            continue
        assert item.judge is not None and item.judge.asked == "all"
        spoke = {verdict.expert for verdict in item.judge.verdicts}
        listed += item.judge.problem is not None
        assert ("vision" in spoke) == (item.judge.problem is None)
        assert {"clustering", "combined"} <= spoke
    assert 0 < listed < PEOPLE / 2
    assert local.faults["malformed"] == listed
    counts = manifest.counts["images"]
    assert counts["kept"] + sum(counts["rejected"].values()) == counts["total"] == PEOPLE * IMAGES
    assert max(local.answered.values()) == 1
    assert manifest.extra["answers"]["answered"] == PEOPLE - listed
    assert manifest.extra["dollars"] > 0


@pytest.mark.slow
def test_together_they_are_better_than_clustering(
    made: Path, local: LocalJudge, key_file: str
) -> None:
    root = started(made, "better")
    judge.run(build(made, "better", **service(local, key_file=key_file)))
    assert f1(made, rows(root / "judge")) >= f1(made, rows(root / "clean"))
    assert (root / "judge" / "rates.json").exists()


@pytest.mark.slow
def test_the_plan_is_what_was_counted(made: Path, local: LocalJudge, key_file: str) -> None:
    local.behaviour.faults = {}
    started(made, "planned")
    config = build(made, "planned", **service(local, key_file=key_file))
    planned = plan(config)
    assert planned is not None and planned.exact
    judge.run(config)
    asked = sum(local.answered.values())
    assert planned.calls == asked == planned.asked
    assert planned.sent + planned.received == pytest.approx(sum(local.tokens.values()), rel=0.05)


@pytest.mark.slow
def test_no_file_holds_the_key(made: Path, local: LocalJudge, key_file: str) -> None:
    root = started(made, "secret")
    judge.run(build(made, "secret", **service(local, key_file=key_file)))
    found = [path for path in root.rglob("*") if path.is_file()]
    assert any("answers" in path.parts for path in found)
    for path in found:
        assert KEY.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_kind_none_sends_nothing(made: Path, local: LocalJudge) -> None:
    root = started(made, "alone")
    settings = {**service(local), "kind": "none", "experts": ["clustering", "quality", "vision"]}
    manifest = judge.run(build(made, "alone", **settings, fusion="all"))
    assert not local.answered and not local.headers
    assert manifest.extra == {}
    assert {v.expert for item in rows(root / "judge").values() if item.judge
            for v in item.judge.verdicts} == {"clustering", "quality", "combined"}  # fmt: skip


@pytest.mark.slow
def test_a_spent_budget_stops_and_a_higher_one_goes_on(
    made: Path, local: LocalJudge, key_file: str
) -> None:
    started(made, "money")
    local.behaviour.faults = {}
    settings = service(local, key_file=key_file, concurrency=2, max_output=64)
    # A question of 12 faces costs 0.0012 dollars and may cost 0.0006 more.
    with pytest.raises(UserError, match=r"budget of \$0.01 is spent"):
        judge.run(build(made, "money", **settings, budget=0.01))
    paid = Answers(str(made / "money" / "answers")).totals()
    assert 0 < paid.answered < PEOPLE
    judge.run(build(made, "money", **settings, budget=1.0))
    assert max(local.answered.values()) == 1
    assert Answers(str(made / "money" / "answers")).totals().answered > paid.answered


@pytest.mark.slow
def test_a_killed_run_goes_on_and_pays_nothing_twice(
    made: Path, local: LocalJudge, key_file: str, killed_once_saved: Any
) -> None:
    local.behaviour.faults, local.behaviour.delay = {}, 0.1
    started(made, "undisturbed")
    expected = judge.run(build(made, "undisturbed", **service(local, key_file=key_file)))
    local.answered.clear()
    started(made, "killed")
    config = build(made, "killed", **service(local, key_file=key_file, concurrency=4))
    killed_once_saved("judge", config, "answers/??/*.json")
    before = sum(local.answered.values())
    found = judge.run(config)
    assert found.content_digest == expected.content_digest
    kept = Answers(str(made / "killed" / "answers")).totals()
    assert kept.answered == len(local.answered)
    # What was under way when the process died was paid for, and its answer had nowhere to go.
    assert sum(local.answered.values()) - len(local.answered) <= 4
    assert before < sum(local.answered.values())


@pytest.mark.slow
def test_batches_bring_what_calls_bring(made: Path, local: LocalJudge, key_file: str) -> None:
    local.behaviour.faults = {"malformed": 0.1}
    root = started(made, "batches")
    settings = service(local, key_file=key_file, mode="batch", poll_seconds=0.1)
    manifest = judge.run(build(made, "batches", **settings))
    judged = [item.judge for item in rows(root / "judge").values() if item.judge]
    assert all(evidence.problem is None for evidence in judged)
    assert manifest.extra["answers"]["tokens"]["sent"] == 0
    assert manifest.extra["answers"]["tokens"]["batch_sent"] > 0
    asked = sum(local.answered.values())
    local.behaviour.faults = {}
    started(made, "calls")
    called = judge.run(build(made, "calls", **service(local, key_file=key_file)))
    assert sum(local.answered.values()) == 2 * asked
    assert called.content_digest == manifest.content_digest


@pytest.mark.slow
def test_only_the_unsure_are_asked(made: Path, local: LocalJudge, key_file: str) -> None:
    root = started(made, "unsure")
    settings = service(local, key_file=key_file, ask="unsure", audit=0.2, margin=0.001)
    manifest = judge.run(build(made, "unsure", **settings))
    asked = [item.judge.asked for item in rows(root / "judge").values() if item.judge]
    assert {None, "audit"} < set(asked) <= {None, "audit", "unsure"}
    assert manifest.extra["answers"]["questions"] == sum(why is not None for why in asked)


@pytest.mark.slow
def test_a_second_embedder_is_an_expert(made: Path) -> None:
    root = started(made, "second")
    settings = {"kind": "none", "experts": ["clustering", "embedder"], "second": {"kind": "dlib"}}
    judge.run(build(made, "second", **settings))
    judged = [item.judge for item in rows(root / "judge").values() if item.judge]
    votes: dict[str, list[bool]] = {"clustering": [], "embedder": []}
    for evidence in judged:
        for verdict in evidence.verdicts:
            if verdict.expert in votes:
                votes[verdict.expert].append(verdict.outlier >= 0.5)
    # The same network, calibrated anew without repeated pictures: it differs at the threshold only.
    assert len(votes["embedder"]) == len(votes["clustering"]) > 200
    differ = sum(a != b for a, b in zip(votes["clustering"], votes["embedder"], strict=True))
    assert differ <= 3


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no part 'judge'"):
        judge.run(parse({**json.loads(build(tmp_path, "x").model_dump_json()), "judge": None}, ""))
    local = {"kind": "openai", "base_url": "http://127.0.0.1:1/v1", "endpoints": ["127.0.0.1"]}
    with pytest.raises(UserError, match="MISSING holds no key"):
        judge.run(build(tmp_path, "x", **local, key_variable="MISSING"))
    assert read_manifest(str(tmp_path / "x" / "judge")) is None
