"""The Batch API with the real client against a service on loopback: faults, kills, budgets."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_judge import FAULTS, KEY, Behaviour, LocalJudge
from raypipe.config.judge import JudgeConfig
from raypipe.errors import UserError
from raypipe.judging import batch, client
from raypipe.judging.answers import Answers, Record
from raypipe.judging.purse import Purse
from raypipe.judging.question import Question, read
from raypipe.judging.sheets import Sheet

IMAGES = 12
QUESTION = Question.load(None)


class KilledError(Exception):
    """Ends a run anywhere."""


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def configured(judge: LocalJudge, **changes: Any) -> JudgeConfig:
    address = {"endpoints": ["127.0.0.1"], "base_url": judge.base_url}
    values = {"mode": "batch", "poll_seconds": 0.02, "timeout": 5.0, **address, **changes}
    return JudgeConfig(kind="openai", **values)


def write(config: JudgeConfig, folder: Path, pictures: list[Sheet]) -> list[str]:
    answers = Answers(str(folder / "answers"))
    return batch.write_questions(
        config, QUESTION, pictures, answers, str(folder / "batches"), "part"
    )


def run(
    config: JudgeConfig,
    folder: Path,
    files: list[str],
    purse: Purse | None = None,
    looks: int | None = None,
) -> list[str]:
    """Runs batches, until it is killed after so many looks; what is said of the progress."""
    purse = purse or Purse(config.budget, 0.0)
    said: list[str] = []

    async def reserve(most: float) -> bool:
        return purse.reserve(most)

    async def settle(most: float, paid: float) -> None:
        purse.settle(most, paid)

    def on_progress(text: str) -> None:
        said.append(text)
        if len(said) == looks:
            raise KilledError

    answers = Answers(str(folder / "answers"))
    asyncio.run(
        batch.run_batches(
            config, answers, files, reserve=reserve, settle=settle, on_progress=on_progress
        )
    )
    return said


def ask(
    judge: LocalJudge,
    folder: Path,
    pictures: list[Sheet],
    purse: Purse | None = None,
    **changes: Any,
) -> int:
    """All rounds; how many it took."""
    config = configured(judge, **changes)
    for done in range(config.asks):
        if not (files := write(config, folder, pictures)):
            return done
        run(config, folder, files, purse)
    return config.asks


def kill(judge: LocalJudge, folder: Path, pictures: list[Sheet]) -> list[str]:
    """A run that ends while the service works; the files that it leaves."""
    judge.behaviour.polls = 10**9
    files = write(configured(judge), folder, pictures)
    with pytest.raises(KilledError):
        run(configured(judge), folder, files, looks=1)
    assert len(judge.batches) == len(files)
    judge.behaviour.polls = 0
    return files


def records(folder: Path, pictures: list[Sheet]) -> list[Record]:
    answers = Answers(str(folder / "answers"))
    return [answers.find(QUESTION.key(sheet, "gpt-4o")) for sheet in pictures]


def said(folder: Path, pictures: list[Sheet]) -> list[set[int]]:
    """Places of the faces that are named, of each sheet."""
    found = zip(records(folder, pictures), pictures, strict=True)
    return [{o.label - 1 for o in read(record.text, sheet).outliers} for record, sheet in found]


def planted(strangers: list[bool]) -> list[set[int]]:
    parts = range(0, len(strangers), IMAGES)
    return [{k for k in range(IMAGES) if strangers[i + k]} for i in parts]


def test_answers_are_those_of_calls_at_half_the_price(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    purse = Purse(None, 0.0)
    with LocalJudge(faces, strangers, Behaviour(polls=3)) as judge:
        config = configured(judge)
        files = write(config, tmp_path, pictures)
        progress = run(config, tmp_path, files, purse)
        assert len(progress) >= 4
        assert progress[-1] == "0 batches run, with 0 of 0 requests done; 0 wait"
        # All is known: nothing is written, and the files are not submitted again.
        assert write(config, tmp_path, pictures) == []
        assert run(config, tmp_path, files, purse) == []
        assert len(judge.batches) == 1
        assert {(b["endpoint"], b["completion_window"]) for b in judge.batches.values()} == {
            ("/v1/chat/completions", "24h")
        }
    assert said(tmp_path, pictures) == planted(strangers)
    assert Counter(judge.answered.values()) == {1: len(pictures)}
    totals = Answers(str(tmp_path / "answers")).totals()
    assert (totals.questions, totals.answered, totals.asked) == (10, 10, 10)
    assert totals.tokens["batch_sent"] == judge.tokens["sent"]
    assert totals.tokens["batch_received"] == judge.tokens["received"]
    paid = judge.tokens["sent"] * 1.25e-6 + judge.tokens["received"] * 5e-6
    assert purse.spent == pytest.approx(paid)

    async def call() -> list[client.Opinion]:
        async def reserve(most: float) -> bool:
            return True

        async def settle(most: float, paid: float) -> None:
            pass

        asking = client.Client(
            configured(judge, mode="calls"),
            QUESTION,
            Answers(str(tmp_path / "calls")),
            share=1.0,
            reserve=reserve,
            settle=settle,
        )
        found = await asyncio.gather(*map(asking.ask, pictures))
        await asking.close()
        return found

    with LocalJudge(faces, strangers) as judge:
        called = asyncio.run(call())
    got = zip(records(tmp_path, pictures), pictures, strict=True)
    assert [opinion.answer for opinion in called] == [read(r.text, sheet) for r, sheet in got]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_now_and_then_takes_another_round(
    fault: str,
    faces: list[np.ndarray],
    strangers: list[bool],
    pictures: list[Sheet],
    tmp_path: Path,
) -> None:
    purse = Purse(None, 0.0)
    with LocalJudge(faces, strangers, Behaviour(faults={fault: 0.3})) as judge:
        assert ask(judge, tmp_path, pictures, purse, asks=8) > 1
    assert judge.faults[fault] > 0
    assert said(tmp_path, pictures) == planted(strangers)
    assert max(judge.answered.values()) == 1
    totals = Answers(str(tmp_path / "answers")).totals()
    answered = fault in ("malformed", "refusal", "unknown_label")
    assert totals.asked == 10 + judge.faults[fault] * answered
    if fault != "truncated":  # what was lost on the way is billed, and no client knows
        assert totals.tokens["batch_sent"] == judge.tokens["sent"]
        assert purse.spent == pytest.approx(
            judge.tokens["sent"] * 1.25e-6 + judge.tokens["received"] * 5e-6
        )


@pytest.mark.parametrize(
    ("fault", "problem", "asked"),
    [
        ("refusal", "the model refused", 2),
        ("500", "status 500 from the service", 0),
        ("429", "status 429 from the service", 0),
        ("timeout", "no answer in time", 0),
    ],
)
def test_what_never_comes_leaves_a_problem(
    fault: str,
    problem: str,
    asked: int,
    faces: list[np.ndarray],
    strangers: list[bool],
    pictures: list[Sheet],
    tmp_path: Path,
) -> None:
    with LocalJudge(faces, strangers, Behaviour(faults={fault: 1.0})) as judge:
        assert ask(judge, tmp_path, pictures[:3], asks=2) == 2
        assert len(judge.batches) == 2
        assert (write(configured(judge, asks=2), tmp_path, pictures[:3]) == []) == (asked == 2)
    found = records(tmp_path, pictures[:3])
    assert [(record.problem, record.asked) for record in found] == [(problem, asked)] * 3


@pytest.mark.parametrize("note", ["whole", "begun", "gone"])
def test_a_killed_run_is_taken_up_where_it_was(
    note: str, faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    with LocalJudge(faces, strangers) as judge:
        (path,) = kill(judge, tmp_path, pictures)
        where = Path(f"{path}.batch.json")
        if note == "begun":  # killed after the creation, before it was noted
            where.write_text(json.dumps({"id": None, "collected": False}))
        elif note == "gone":
            where.unlink()
        assert ask(judge, tmp_path, pictures) == 1
        assert len(judge.batches) == 1
        assert sum(b"/v1/chat" in data for data in judge.files.values()) == 1
    assert said(tmp_path, pictures) == planted(strangers)
    assert Counter(judge.answered.values()) == {1: len(pictures)}


def test_new_questions_do_not_disturb_batches_that_run(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    with LocalJudge(faces, strangers) as judge:
        (path,) = kill(judge, tmp_path, pictures[:4])
        files = write(configured(judge), tmp_path, pictures)
        assert files == [path, path.replace("0000", "0001")]
        # Nothing was submitted of the second: it is written anew.
        assert write(configured(judge), tmp_path, pictures[2:8])[0] == path
        assert ask(judge, tmp_path, pictures) == 1
    assert said(tmp_path, pictures) == planted(strangers)
    assert Counter(judge.answered.values()) == {1: len(pictures)}


def test_answers_that_were_kept_before_a_kill_count_once(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    purse = Purse(None, 0.0)
    with LocalJudge(faces, strangers, Behaviour(faults={"malformed": 0.4})) as judge:
        files = write(configured(judge), tmp_path, pictures)
        run(configured(judge), tmp_path, files, purse)
        before, spent = records(tmp_path, pictures), purse.spent
        assert {record.asked for record in before} == {1}
        assert not all(record.text for record in before)
        note = Path(f"{files[0]}.batch.json")
        note.write_text(json.dumps({**json.loads(note.read_text()), "collected": False}))
        run(configured(judge), tmp_path, files, purse)
    assert records(tmp_path, pictures) == before
    assert purse.spent == spent
    assert len(judge.batches) == 1


@pytest.mark.parametrize("status", [0, 429, 500])
def test_a_creation_that_fails_or_whose_answer_is_lost_is_made_once(
    status: int,
    faces: list[np.ndarray],
    strangers: list[bool],
    pictures: list[Sheet],
    tmp_path: Path,
) -> None:
    with LocalJudge(faces, strangers, Behaviour(creations=[status])) as judge:
        assert ask(judge, tmp_path, pictures) == 1
    assert len(judge.batches) == 1
    assert said(tmp_path, pictures) == planted(strangers)


def test_a_refused_creation_leaves_nothing_behind(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    with LocalJudge(faces, strangers, Behaviour(creations=[400])) as judge:
        with pytest.raises(UserError, match=r"does not answer \(400\)"):
            ask(judge, tmp_path, pictures)
        assert judge.batches == {}
        # The file that was refused is not kept to: some of it may have been answered since.
        assert ask(judge, tmp_path, pictures[:3]) == 1
        assert ask(judge, tmp_path, pictures) == 1
    assert Counter(judge.answered.values()) == {1: len(pictures)}


def test_what_an_expired_batch_brought_is_kept(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    with LocalJudge(faces, strangers, Behaviour(expired=0.5)) as judge:
        assert ask(judge, tmp_path, pictures, asks=1) == 1
        found = records(tmp_path, pictures)
        assert Counter((r.asked, r.problem) for r in found) == {
            (1, None): 5,
            (0, "not reached before it expired"): 5,
        }
        ask(judge, tmp_path, pictures, asks=8)
        assert {b["status"] for b in judge.batches.values()} == {"expired", "completed"}
    assert said(tmp_path, pictures) == planted(strangers)
    assert Counter(judge.answered.values()) == {1: len(pictures)}


def test_the_budget_is_never_overdrawn(
    faces: list[np.ndarray],
    strangers: list[bool],
    pictures: list[Sheet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "_REQUESTS", 2)  # of 50,000: a file is full sooner
    with LocalJudge(faces, strangers, Behaviour(polls=1)) as judge:
        config = configured(judge, budget=0.01)  # of a file 0.0213 may be spent, 0.0016 is
        files = write(config, tmp_path, pictures)
        with pytest.raises(UserError, match=r"the budget of \$0.01 does not allow what a batch"):
            run(config, tmp_path, files)
        assert judge.files == {}
        purse = Purse(0.05, 0.0)
        progress = run(configured(judge, budget=0.05), tmp_path, files, purse)
        assert progress[0].startswith("2 batches run")
        assert progress[0].endswith("3 wait")
        assert purse.spent <= 0.05
        assert purse.reserve(0.05 - purse.spent)  # nothing is set aside any more
    assert said(tmp_path, pictures) == planted(strangers)
    assert len(judge.batches) == 5


def test_a_batch_that_runs_is_collected_whatever_the_budget(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    with LocalJudge(faces, strangers) as judge:
        files = kill(judge, tmp_path, pictures)
        run(configured(judge, budget=0.001), tmp_path, files)
    assert said(tmp_path, pictures) == planted(strangers)


def test_a_refused_batch_is_told_after_the_others_have_ended(
    faces: list[np.ndarray],
    strangers: list[bool],
    pictures: list[Sheet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch, "_REQUESTS", 5)  # of 50,000: a file is full sooner
    with LocalJudge(faces, strangers) as judge:
        first = kill(judge, tmp_path, pictures[:5])
        judge.behaviour.refusal = "Enqueued token limit\nreached. " + "x" * 300
        files = write(configured(judge), tmp_path, pictures)
        purse = Purse(1.0, 0.0)
        with pytest.raises(UserError) as caught:
            run(configured(judge), tmp_path, files, purse)
        text = "judge: the service refuses a batch: Enqueued token limit reached. xxx"
        assert str(caught.value).startswith(text)
        assert len(str(caught.value)) < 300
        assert purse.reserve(1.0 - purse.spent)
        assert said(tmp_path, pictures[:5]) == planted(strangers)[:5]
        judge.behaviour.refusal = None
        assert write(configured(judge), tmp_path, pictures) == files[1:] != first
        assert ask(judge, tmp_path, pictures) == 1
    assert said(tmp_path, pictures) == planted(strangers)
    assert Counter(judge.answered.values()) == {1: len(pictures)}


def test_files_keep_to_the_limits_and_hold_a_question_once(
    faces: list[np.ndarray],
    strangers: list[bool],
    pictures: list[Sheet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with LocalJudge(faces, strangers) as judge:
        config = configured(judge)
        (whole,) = (Path(path) for path in write(config, tmp_path, [*pictures, *pictures]))
        data = whole.read_bytes()
        lines = data.splitlines()
        assert len(lines) == len(pictures)
        first = json.loads(lines[0])
        assert first == {
            "custom_id": QUESTION.key(pictures[0], "gpt-4o"),
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": client.request(config, QUESTION, pictures[0]),
        }
        largest = len(lines[0]) + len(lines[1]) + 2
        for name, most in (("_REQUESTS", 3), ("_BYTES", largest)):
            with monkeypatch.context() as limited:
                limited.setattr(batch, name, most)
                parts = write(config, tmp_path, pictures)
            assert b"".join(Path(path).read_bytes() for path in parts) == data
            sizes = [len(Path(path).read_bytes().splitlines()) for path in parts]
            if name == "_REQUESTS":
                assert sizes == [3, 3, 3, 1]
            else:
                assert all(Path(path).stat().st_size <= largest for path in parts)
                assert sizes[0] == 2
        assert [path.name for path in sorted((tmp_path / "batches").glob("*.jsonl"))] == [
            f"part-{k:04d}.jsonl" for k in range(len(parts))
        ]
    assert judge.files == {}


def test_no_key_is_in_what_is_written_or_said(
    faces: list[np.ndarray],
    strangers: list[bool],
    pictures: list[Sheet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with LocalJudge(faces, strangers) as judge:
        ask(judge, tmp_path, pictures)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) == 10 + 3
        assert not any(KEY.encode() in path.read_bytes() for path in files)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-and-wrong")
        with pytest.raises(UserError, match=r"refuses the key \(401\)") as caught:
            ask(judge, tmp_path / "other", pictures)
        assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match=r"does not answer \(APIConnectionError\)"):
        ask(judge, tmp_path / "other", pictures, retries=0)
