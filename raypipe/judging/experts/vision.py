"""A vision model as an expert: it looks at numbered faces and names those of somebody else."""

import asyncio
from collections.abc import Sequence

import numpy as np

from raypipe.config.judge import JudgeConfig
from raypipe.judging import sheets
from raypipe.judging.answers import Answers
from raypipe.judging.client import Client, Opinion
from raypipe.judging.experts import Case, Expert, Tools, View
from raypipe.judging.question import Question

LAWS = None


def expert(tools: Tools) -> Expert:
    """See `raypipe.judging.experts`.

    Identities of a call are asked about at once, within the limits; of those that wait no sheet is
    drawn yet.
    """
    config = tools.config
    client = Client(
        config,
        Question.load(config.prompt),
        Answers(config.answers),
        share=tools.share,
        reserve=tools.reserve,
        settle=tools.settle,
    )
    loop = asyncio.new_event_loop()
    drawn = asyncio.Semaphore(max(2, round(2 * config.concurrency * tools.share)))

    async def opinion(case: Case) -> View:
        if case.asked is None:
            return View(outlier=np.full(len(case.images), np.nan))
        async with drawn:
            pictures = await asyncio.to_thread(draw, case, config)
            found = await asyncio.gather(*map(client.ask, pictures))
        return _view(len(case.images), pictures, found)

    async def everybody(cases: Sequence[Case]) -> list[View]:
        # All of them come to an end, so that every answer that was paid for is kept.
        found = await asyncio.gather(*map(opinion, cases), return_exceptions=True)
        for one in found:
            if isinstance(one, BaseException):
                raise one
        return [one for one in found if isinstance(one, View)]

    def opinions(cases: Sequence[Case]) -> list[View]:
        return loop.run_until_complete(everybody(cases))

    return opinions


def draw(case: Case, config: JudgeConfig) -> list[sheets.Sheet]:
    """The sheets of an identity; faces that clustering is surest of stand on all of them."""
    return sheets.draw(case.pixels(), config.sheet, np.argsort(case.doubt, kind="stable").tolist())


def _view(count: int, pictures: Sequence[sheets.Sheet], found: Sequence[Opinion]) -> View:
    """What was said of all sheets; of a face on several, the mean."""
    said: list[list[float]] = [[] for _ in range(count)]
    reasons: dict[int, str] = {}
    for sheet, opinion in zip(pictures, found, strict=True):
        if opinion.answer is None:
            continue
        named = {outlier.label - 1: outlier for outlier in opinion.answer.outliers}
        for label in sheet.labels:
            outlier = named.get(label - 1)
            said[label - 1].append(outlier.confidence if outlier else 0.0)
        reasons |= {place: outlier.reason for place, outlier in named.items()}
    return View(
        outlier=np.array([np.mean(values) if values else np.nan for values in said]),
        reasons=reasons,
        problem=next((opinion.problem for opinion in found if opinion.problem), None),
        sheets=len(pictures),
    )
