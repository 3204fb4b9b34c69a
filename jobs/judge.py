"""Asks further experts about the cleaned set, a vision model among them, and combines them.

1. Where a second embedder or fusion by weights needs it, a sample of the identities is picked, and
   the second embedder's thresholds and the experts' error rates are estimated on it.
2. With the Batch API all questions are asked and waited for.
3. The identities stream through the experts. Every answer of the vision model is kept by what was
   asked, so the sample is not paid for twice, nor is anything after a crash.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import ray
from rich.status import Status

from actors.judge import JudgeActor, OpinionActor, PickActor, SecondActor
from jobs.clean import CALIBRATION
from jobs.cluster import connect
from jobs.progress import console
from jobs.stage import Step, finished, map_files, map_rows, run_task, stream
from jobs.work import Work, begin
from raypipe import storage
from raypipe.cleaning.calibration import Calibration, calibrate
from raypipe.cleaning.sampling import draw
from raypipe.config import Build
from raypipe.config.judge import JudgeConfig
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.judging import batch, fusion
from raypipe.judging.answers import Answers
from raypipe.judging.client import read_key
from raypipe.judging.doubt import open_case
from raypipe.judging.experts import calibrated
from raypipe.judging.experts.vision import draw as draw_sheets
from raypipe.judging.purse import Purse
from raypipe.judging.question import Question
from raypipe.judging.sheets import Sheet
from raypipe.manifest import Manifest
from raypipe.models.loading import shipped

SECOND, RATES = "second.npz", "rates.json"
# Neither where it is asked nor what that may cost changes an answer.
_NOT_SETTINGS = frozenset(
    {
        *("base_url", "endpoints", "key_variable", "key_file", "prompt", "prices", "budget"),
        *("answers", "concurrency", "requests_per_minute", "tokens_per_minute", "timeout"),
        *("retries", "poll_seconds", "mode", "pool", "second", "quality"),
    }
)


def run(config: Build) -> Manifest:
    """Judges `{workspace}/clean` into `{workspace}/judge`.

    Raises:
        UserError: where the configuration has no part `judge`, the set is unfinished, there is no
            key, the service takes no questions, or the budget is spent.
    """
    judge = _checked(config)
    source = storage.join(config.workspace, "clean")
    origin = finished("judge", source)
    work = begin(
        config,
        job="judge",
        settings=_settings(config, judge),
        inputs={"clean": origin.content_digest},
        models=_models(judge),
    )
    if work.manifest:
        return work.manifest
    connect(config)
    arguments: dict[str, Any] = {
        "config": judge.model_dump(),
        "near_duplicate": config.clean.near_duplicate,
        "seed": config.seed,
        "calibration": _calibration(config),
        "second": work.path(SECOND) if judge.second else None,
        "purse": _purse(judge),
    }
    if judge.kind != "none" and judge.mode == "batch":
        with work.timed("batches"):
            asyncio.run(_ask_in_batches(config, judge, source, arguments["purse"]))
    rates = _prepare(config, judge, work, source, arguments)
    step = Step(
        name="judge",
        actor=JudgeActor,
        arguments={**arguments, "rates": rates},
        pool=judge.pool,
    )
    return stream(
        config,
        work,
        sources=[source],
        steps=[step],
        extra=lambda: ray.get(ray.remote(num_cpus=0)(_bill).remote(judge)),
    )


def _checked(config: Build) -> JudgeConfig:
    judge = config.judge
    if judge is None:
        raise UserError("judge: the configuration has no part 'judge'")
    where = judge.answers.replace("{workspace}", config.workspace.rstrip("/"))
    judge = judge.model_copy(update={"answers": where})
    if judge.kind != "none":
        read_key(judge)  # before anything runs
        if judge.ask == "unsure" and config.clean.rule == "share":
            raise UserError(
                "judge.ask: under clean.rule 'share' nobody knows of what clustering is unsure; "
                "use 'calibrated', or ask 'all' or 'audit'"
            )
    return judge


def _settings(config: Build, judge: JudgeConfig) -> dict[str, Any]:
    settings = judge.model_dump(exclude=set(_NOT_SETTINGS)) | {"seed": config.seed}
    if judge.second:
        settings["second"] = judge.second.model_dump(exclude={"weights"})
    if "quality" in judge.experts:
        settings["quality"] = judge.quality.model_dump(exclude={"weights"})
    if judge.kind == "none":
        for name in ("ask", "margin", "audit", "model", "sheet", "asks", "max_output"):
            settings.pop(name)
    else:
        settings["prompt"] = Question.load(judge.prompt).digest
    return settings


def _models(judge: JudgeConfig) -> list[str]:
    files = [judge.second.weights] if judge.second and judge.second.weights else []
    if "quality" in judge.experts:
        files.append(judge.quality.weights or shipped("face_attributes.safetensors"))
    return files


def _calibration(config: Build) -> str | None:
    if config.clean.rule == "share":
        return None
    return storage.join(config.workspace, "clean", CALIBRATION)


def _purse(judge: JudgeConfig) -> Any:
    """What the actors ask for money; None where there is no budget."""
    if judge.kind == "none" or judge.budget is None:
        return None
    spent = ray.remote(num_cpus=0)(_spent).remote(judge)
    # Not restarted: it would forget what was spent. A rerun counts the answers.
    return ray.remote(num_cpus=0)(Purse).remote(judge.budget, spent)


def _spent(judge: JudgeConfig) -> float:
    return Answers(judge.answers).spent(judge.prices)


def _bill(judge: JudgeConfig) -> dict[str, Any]:
    """What left the machine and what it cost, for the manifest; nothing where nothing did."""
    if judge.kind == "none":
        return {}
    answers = Answers(judge.answers)
    return {
        "service": urlsplit(judge.base_url).netloc,
        "model": judge.model,
        "answers": asdict(answers.totals()),
        "dollars": round(answers.spent(judge.prices), 6),
    }


def _prepare(
    config: Build, judge: JudgeConfig, work: Work, source: str, arguments: dict[str, Any]
) -> dict[str, Any] | None:
    """Calibrates the second embedder and estimates the rates, unless a run before did; returns the
    rates."""
    second = judge.second is not None and not storage.exists(work.path(SECOND))
    weights = judge.fusion == "weights" and not storage.exists(work.path(RATES))
    if second or weights:
        with console.status("judge: picking a sample"), work.timed("sample"):
            names = ray.get(ray.remote(num_cpus=1)(_sample).remote(source, judge, config.seed))
            picked = map_files(
                config,
                FaceSet(source).files(),
                PickActor,
                {"source": source, "names": names},
                config.clean.pool,
            )
    if second:
        assert judge.second is not None
        with console.status("judge: calibrating the second embedder"), work.timed("second"):
            found = map_rows(
                config, picked, SecondActor, {"embedder": judge.second.model_dump()}, judge.pool
            )
            run_task("judge", _calibrate, found, work.path(SECOND), config.seed)
    if weights:
        with console.status("judge: estimating how the experts err"), work.timed("rates"):
            heard = map_rows(config, picked, OpinionActor, arguments, judge.pool)
            laws = [name for name in ("calibration", "second") if arguments[name]]
            run_task("judge", _estimate, heard, judge.panel, laws, work.path(RATES))
    return storage.read_json(work.path(RATES)) if judge.fusion == "weights" else None


def _sample(source: str, judge: JudgeConfig, seed: int) -> list[str]:
    sample, _ = draw(FaceSet(source).iter_embeddings(), judge.sample_identities, seed)
    return [name for name, _ in sample]


def _calibrate(found: list["ray.ObjectRef[pa.Table]"], path: str, seed: int) -> None:
    table = pa.concat_tables(ray.get(found)).sort_by("identity_id")
    people = [
        (name, np.array(vectors, np.float32))
        for name, vectors in zip(*table.to_pydict().values(), strict=True)
    ]
    calibrate(people, seed=seed, population=len(people)).save(path)


def _estimate(
    heard: list["ray.ObjectRef[pa.Table]"], panel: list[str], laws: list[str], path: str
) -> None:
    table = pa.concat_tables(ray.get(heard))
    opinions = np.stack([table[name].to_numpy() for name in panel], axis=1)
    # Which rows come first depends on the workers, and sums are rounded.
    order = np.lexsort(np.nan_to_num(opinions, nan=2.0).T)
    storage.write_json(path, fusion.estimate(opinions[order], calibrated(panel, laws)).dump())


async def _ask_in_batches(config: Build, judge: JudgeConfig, source: str, purse: Any) -> None:
    answers = Answers(judge.answers)

    async def reserve(most: float) -> bool:
        return purse is None or await purse.reserve.remote(most)

    async def settle(most: float, paid: float) -> None:
        if purse is not None:
            await purse.settle.remote(most, paid)

    for _ in range(judge.asks):
        with console.status("judge: writing questions"):
            files = await ray.remote(num_cpus=1)(_write_questions).remote(config, judge, source)
        if not files:
            return
        with console.status("judge: waiting for batches") as status:
            await batch.run_batches(
                judge,
                answers,
                files,
                reserve=reserve,
                settle=settle,
                on_progress=partial(_show, status),
            )


def _show(status: Status, text: str) -> None:
    status.update(f"judge: {text}")


def _write_questions(config: Build, judge: JudgeConfig, source: str) -> list[str]:
    answers = Answers(judge.answers)
    return batch.write_questions(
        judge,
        Question.load(judge.prompt),
        _all_sheets(config, judge, source),
        answers,
        storage.join(judge.answers, "batches"),
        "questions",
    )


def _all_sheets(config: Build, judge: JudgeConfig, source: str) -> Iterator[Sheet]:
    path = _calibration(config)
    known = Calibration.load(path) if path else None
    for identity in FaceSet(source).iter_identities():
        case = open_case(identity, judge, known, config.seed)
        if case is not None and case.asked is not None:
            yield from draw_sheets(case, judge)


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("judge")
