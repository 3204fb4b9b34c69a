"""What the vision model will be asked and what that costs, before it is asked."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from raypipe import storage
from raypipe.cleaning.calibration import Calibration
from raypipe.config import Build
from raypipe.config.judge import JudgeConfig
from raypipe.faceset import FaceSet
from raypipe.formats import open_reader
from raypipe.judging.client import expected_tokens
from raypipe.judging.doubt import open_case
from raypipe.judging.question import Question
from raypipe.judging.sheets import Sheet, layout
from raypipe.judging.tokens import price
from raypipe.manifest import read_manifest

CALIBRATION = "calibration.npz"  # of the cleaning job
# An answer's tokens: an empty list, and each face that is named, with a reason of ten words. By
# cl100k_base; assumed for others.
_EMPTY, _NAMED = 6, 28
_STRANGERS = 0.05  # share of outliers that is assumed where nothing is measured


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the vision model will be asked.

    Attributes:
        basis: what the numbers come from.
        exact: whether they were counted on the cleaned set; else they are estimates.
        identities: that can be judged.
        asked: those of them whose faces are sent.
        faces: that are sent; a face on several sheets counts once.
        calls: one for each sheet.
        sent, received: tokens.
        dollars, batch_dollars: for calls, and by the Batch API.
    """

    basis: str
    exact: bool
    identities: int
    asked: int
    faces: int
    calls: int
    sent: int
    received: int
    dollars: float
    batch_dollars: float


def plan(config: Build) -> Plan | None:
    """Counts on the cleaned set, or estimates from what there is of the set before.

    Answers that are kept from before are counted as if they were asked for again. None where no
    vision model is asked.

    Raises:
        UserError: where a source cannot be read.
    """
    judge = config.judge
    if judge is None or judge.kind == "none":
        return None
    clean = storage.join(config.workspace, "clean")
    if read_manifest(clean) is not None:
        return _counted(config, judge, clean)
    return _estimated(config, judge)


def _counted(config: Build, judge: JudgeConfig, clean: str) -> Plan:
    calibration = None
    if config.clean.rule == "calibrated":
        calibration = Calibration.load(storage.join(clean, CALIBRATION))
    identities, asked, named = 0, [], 0.0
    for identity in FaceSet(clean).iter_without_bytes(
        ["image_id", "embedding", "similarity", "rejected"]
    ):
        case = open_case(identity, judge, calibration, config.seed)
        if case is None:
            continue
        identities += 1
        if case.asked is not None:
            asked.append(len(case.images))
            named += float(case.doubt.sum())
    return _plan(
        judge, asked, named, basis=f"counted on {clean}", exact=True, identities=identities
    )


def _estimated(config: Build, judge: JudgeConfig) -> Plan:
    counts, basis = _sizes(config)
    share = {"all": 1.0, "unsure": 1.0, "audit": judge.audit}[judge.ask]
    asked = counts[: round(share * len(counts))]
    if judge.ask == "unsure":
        basis += "; how many are unsure is known after cleaning, these are all"
    return _plan(
        judge,
        asked,
        _STRANGERS * sum(asked),
        basis=basis,
        exact=False,
        identities=len(counts),
    )


def _sizes(config: Build) -> tuple[list[int], str]:
    """Images of each identity that will be cleaned, and what that is known from."""
    for job in ("embed", "ingest"):
        root = storage.join(config.workspace, job)
        if manifest := read_manifest(root):
            people, images = (manifest.counts[unit]["kept"] for unit in ("identities", "images"))
            each = round(images / max(people, 1))
            return [each] * people, f"estimated from the counts of {root}"
    if config.sample is not None:
        made = config.sample
        return [made.images] * made.identities, "estimated from the part sample"
    found: list[int] = []
    for source in config.ingest.sources:
        found += np.asarray(open_reader(source.path, mask=source.mask).survey().counts).tolist()
    return found, "estimated from the labels of the sources"


def _plan(
    judge: JudgeConfig,
    asked: Iterable[int],
    named: float,
    *,
    basis: str,
    exact: bool,
    identities: int,
) -> Plan:
    question = Question.load(judge.prompt)
    known: dict[int, tuple[int, int]] = {}
    asked = list(asked)
    calls = sent = 0
    for count in asked:
        if count not in known:
            known[count] = _questions(judge, question, count)
        calls += known[count][0]
        sent += known[count][1]
    received = round(calls * _EMPTY + named * _NAMED)
    return Plan(
        basis=basis,
        exact=exact,
        identities=identities,
        asked=len(asked),
        faces=sum(asked),
        calls=calls,
        sent=sent,
        received=received,
        dollars=price(sent, received, judge.prices),
        batch_dollars=price(sent, received, judge.prices, batch=True),
    )


def _questions(judge: JudgeConfig, question: Question, count: int) -> tuple[int, int]:
    """Sheets of an identity with so many images, and the tokens that they send."""
    pages = layout(count, judge.sheet, range(count))
    sheets = [
        Sheet(
            labels=tuple(k + 1 for k in shown),
            anchors=frozenset(k + 1 for k in anchors),
            data=b"",
        )
        for shown, anchors in pages
    ]
    return len(pages), sum(expected_tokens(judge, question, sheet) for sheet in sheets)
