"""The real client against a service on loopback that errs, fails and counts."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_judge import FAULTS, KEY, Behaviour, LocalJudge
from raypipe.config.judge import JudgeConfig
from raypipe.errors import UserError
from raypipe.judging import client
from raypipe.judging.answers import Answers
from raypipe.judging.client import Client, Opinion
from raypipe.judging.purse import Purse
from raypipe.judging.question import Question
from raypipe.judging.sheets import Sheet

IMAGES = 12


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(
    judge: LocalJudge,
    folder: Path,
    pictures: list[Sheet],
    purse: Purse | None = None,
    **changes: Any,
) -> list[Opinion | BaseException]:
    values = {"timeout": 1.5, "endpoints": ["127.0.0.1"], "base_url": judge.base_url, **changes}
    config = JudgeConfig(kind="openai", **values)
    purse = purse or Purse(None, 0.0)

    async def reserve(most: float) -> bool:
        return purse.reserve(most)

    async def settle(most: float, paid: float) -> None:
        purse.settle(most, paid)

    async def run() -> list[Opinion | BaseException]:
        asking = Client(
            config,
            Question.load(None),
            Answers(str(folder)),
            share=1.0,
            reserve=reserve,
            settle=settle,
        )
        found = await asyncio.gather(*map(asking.ask, pictures), return_exceptions=True)
        await asking.close()
        return found

    return asyncio.run(run())


def said(opinions: list[Any]) -> list[set[int]]:
    """Places of the faces that are named, of each sheet."""
    return [{outlier.label - 1 for outlier in opinion.answer.outliers} for opinion in opinions]


def planted(strangers: list[bool]) -> list[set[int]]:
    parts = range(0, len(strangers), IMAGES)
    return [{k for k in range(IMAGES) if strangers[i + k]} for i in parts]


def test_answers_are_the_truth_and_are_paid_for_once(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    purse = Purse(None, 0.0)
    with LocalJudge(faces, strangers) as judge:
        found = ask(judge, tmp_path, pictures, purse)
        assert said(found) == planted(strangers)
        assert all(opinion.paid for opinion in found)
        again = ask(judge, tmp_path, pictures, purse)
        assert said(again) == said(found)
        assert not any(opinion.paid for opinion in again)
    assert Counter(judge.answered.values()) == {1: len(pictures)}
    totals = Answers(str(tmp_path)).totals()
    assert (totals.questions, totals.answered, totals.asked) == (10, 10, 10)
    assert totals.tokens["sent"] == judge.tokens["sent"]
    assert totals.tokens["received"] == judge.tokens["received"]
    paid = judge.tokens["sent"] * 2.5e-6 + judge.tokens["received"] * 10e-6
    assert purse.spent == pytest.approx(paid)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_now_and_then_changes_nothing(
    fault: str,
    faces: list[np.ndarray],
    strangers: list[bool],
    pictures: list[Sheet],
    tmp_path: Path,
) -> None:
    with LocalJudge(faces, strangers, Behaviour(faults={fault: 0.3})) as judge:
        found = ask(judge, tmp_path, pictures, retries=8, asks=6)
    assert judge.faults[fault] > 0
    assert said(found) == planted(strangers)
    assert max(judge.answered.values()) == 1


def test_a_service_that_never_answers_leaves_a_problem_and_no_answer(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    purse = Purse(None, 0.0)
    with LocalJudge(faces, strangers, Behaviour(faults={"500": 1.0})) as judge:
        found = ask(judge, tmp_path, pictures[:3], purse, retries=1)
    assert [opinion.problem for opinion in found] == ["status 500 from the service"] * 3
    assert judge.faults["500"] == 6
    assert purse.spent == 0
    with LocalJudge(faces, strangers, Behaviour(faults={"refusal": 1.0})) as judge:
        found = ask(judge, tmp_path, pictures[:1], purse, asks=2)
        assert found[0].problem == "malformed: the model refused"
        assert judge.faults["refusal"] == 2
        # It was paid for, and is not asked a third time.
        assert ask(judge, tmp_path, pictures[:1], asks=2)[0].problem == found[0].problem
        assert judge.faults["refusal"] == 2
    assert purse.spent > 0


def test_the_budget_is_never_overdrawn(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    budget = 0.1  # of a question 0.0213 may be spent, and about 0.0016 is
    purse = Purse(budget, 0.0)
    with LocalJudge(faces, strangers, Behaviour(delay=0.05)) as judge:
        found = ask(judge, tmp_path, pictures, purse, budget=budget)
        stopped = [o for o in found if isinstance(o, UserError)]
        assert 0 < len(stopped) < len(pictures)
        assert "the budget of $0.1 is spent; all answers are kept" in str(stopped[0])
        assert purse.spent <= budget
        more = Purse(1.0, purse.spent)
        assert said(ask(judge, tmp_path, pictures, more, budget=1.0)) == planted(strangers)
    assert Counter(judge.answered.values()) == {1: len(pictures)}


def test_calls_at_a_time_are_bounded(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    with LocalJudge(faces, strangers, Behaviour(delay=0.05)) as judge:
        ask(judge, tmp_path, pictures, concurrency=3)
    assert judge.largest == 3


def test_a_wrong_key_ends_it_and_is_shown_nowhere(
    faces: list[np.ndarray],
    strangers: list[bool],
    pictures: list[Sheet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-and-wrong")
    with LocalJudge(faces, strangers) as judge:
        (found,) = ask(judge, tmp_path, pictures[:1])
    assert isinstance(found, UserError)
    assert "refuses the key or the model 'gpt-4o' (status 401)" in str(found)
    assert "secret" not in str(found)
    assert judge.headers == {"Bearer sk-secret-and-wrong"}


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client.read_key(JudgeConfig()) == KEY
    path = tmp_path / "key"
    path.write_text("sk-from-file\n")
    assert client.read_key(JudgeConfig(key_file=str(path))) == "sk-from-file"
    path.write_text("\n")
    with pytest.raises(UserError, match=r"judge\.key_file: .* is empty"):
        client.read_key(JudgeConfig(key_file=str(path)))
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="the environment variable OPENAI_API_KEY holds no key"):
        client.read_key(JudgeConfig())


def test_no_key_is_in_what_is_kept(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    with LocalJudge(faces, strangers) as judge:
        ask(judge, tmp_path, pictures)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 10
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_a_damaged_answer_is_named(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    with LocalJudge(faces, strangers) as judge:
        ask(judge, tmp_path, pictures[:1])
        (path,) = tmp_path.rglob("*.json")
        path.write_text('{"text": ')
        (found,) = ask(judge, tmp_path, pictures[:1])
    assert isinstance(found, UserError)
    assert "not an answer; delete it, and the question is asked again" in str(found)


def test_tokens_that_are_expected_are_those_that_are_billed(
    faces: list[np.ndarray], strangers: list[bool], pictures: list[Sheet], tmp_path: Path
) -> None:
    question = Question.load(None)
    expected = sum(client.expected_tokens(JudgeConfig(), question, sheet) for sheet in pictures)
    with LocalJudge(faces, strangers) as judge:
        ask(judge, tmp_path, pictures)
    assert expected == pytest.approx(judge.tokens["sent"], rel=0.05)
