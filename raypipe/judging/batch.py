"""The other mode of asking: OpenAI's Batch API, within a day and at half the price.

Questions are written into files of requests. Beside each stands what its answers are checked by
and, from its submission on, a note of its batch: a run after one that was killed goes on with the
batches that it finds, and nothing is submitted or counted twice.
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pydantic import AliasPath, BaseModel, Field, ValidationError

from raypipe import storage
from raypipe.config.judge import JudgeConfig
from raypipe.errors import UserError
from raypipe.judging import tokens
from raypipe.judging.answers import Answers
from raypipe.judging.client import _ROOM_FOR_ERRORS, _connect, _text, expected_tokens, request
from raypipe.judging.question import Question
from raypipe.judging.sheets import Sheet

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types import Batch

_REQUESTS, _BYTES = 50_000, 190_000_000  # of a file; the service takes 200 MB
_URL: Final = "/v1/chat/completions"
_KEPT = 25 * 86_400  # seconds; the service deletes files of batches after 30 days
_THREADS = 32  # an object store takes its time for each answer


def write_questions(
    config: JudgeConfig,
    question: Question,
    sheets: Iterable[Sheet],
    answers: Answers,
    folder: str,
    name: str,
) -> list[str]:
    """Writes requests for all that has no final answer yet.

    Args:
        name: of the files; the same in every round and every run. Whoever writes at the same time
            needs another one.

    Returns:
        JSONL files for `run_batches`: first those that were submitted and not collected, which stay
        as they are, then new ones for all else. None: nothing is left to ask.
    """
    files, seen, number = [], set(), 0
    for entry in storage.listdir(folder):
        if not (match := re.fullmatch(rf"{re.escape(name)}-(\d+)\.jsonl", entry.name)):
            continue
        note = _read_note(entry.path)
        if not note:
            storage.delete(entry.path)
            continue
        number = max(number, int(match[1]) + 1)
        if not note["collected"]:
            files.append(entry.path)
            seen.update(storage.read_json(_about(entry.path)))
    lines: list[bytes] = []
    about: dict[str, Any] = {}
    size = 0

    def write() -> None:
        nonlocal number, size
        files.append(storage.join(folder, f"{name}-{number:04d}.jsonl"))
        storage.write_json(_about(files[-1]), about)
        storage.write_bytes(files[-1], b"".join(lines))
        lines.clear()
        about.clear()
        number, size = number + 1, 0

    for sheet in sheets:
        if (key := question.key(sheet, config.model)) in seen:
            continue
        seen.add(key)
        record = answers.find(key)
        if record.text is not None or record.asked >= config.asks:
            continue
        body = request(config, question, sheet)
        line = json.dumps({"custom_id": key, "method": "POST", "url": _URL, "body": body}) + "\n"
        if lines and (len(lines) == _REQUESTS or size + len(line) > _BYTES):
            write()
        lines.append(line.encode())
        size += len(line)
        about[key] = {
            "labels": sheet.labels,
            "anchors": sorted(sheet.anchors),
            "sends": expected_tokens(config, question, sheet),
            "asked": record.asked,
        }
    if lines:
        write()
    return files


async def run_batches(
    config: JudgeConfig,
    answers: Answers,
    files: Sequence[str],
    *,
    reserve: Callable[[float], Awaitable[bool]],
    settle: Callable[[float, float], Awaitable[None]],
    on_progress: Callable[[str], None],
) -> None:
    """Submits files of `write_questions`, waits for their batches and keeps the answers.

    As many batches run at a time as the budget allows. Questions without a well formed answer are
    left for the next round.

    Args:
        reserve, settle: as for `raypipe.judging.client.Client`, for a file at a time. What a batch
            may cost stays set aside where the run ends before it does.
        on_progress: told after each look at the service how far it is.

    Raises:
        UserError: where the budget does not allow a batch, the service refuses one (after the
            others have ended), or it takes no batches or gives no answer at all.
    """
    waiting = [path for path in files if not _read_note(path).get("collected")]
    running: dict[str, _Running] = {}
    refusal: str | None = None
    with _told(config):
        async with _connect(config) as service:
            while waiting or running:
                while waiting and (one := await _start(config, service, waiting[0], reserve)):
                    running[waiting.pop(0)] = one
                if not running:
                    raise UserError(
                        f"judge: the budget of ${config.budget:g} does not allow what a batch may "
                        "cost; all answers are kept. Raise judge.budget, and run again"
                    )
                for path, one in list(running.items()):
                    batch = await service.batches.retrieve(one.id)
                    if batch.request_counts:
                        one.done = batch.request_counts.completed + batch.request_counts.failed
                    if batch.status == "failed":
                        refusal = _why(batch)
                        waiting.clear()
                        storage.delete(_note(path))
                        await settle(running.pop(path).held, 0.0)
                    elif batch.status in ("completed", "expired", "cancelled"):
                        paid = await _collect(config, answers, service, path, batch)
                        await settle(running.pop(path).held, paid)
                on_progress(
                    f"{len(running)} batches run, with {sum(one.done for one in running.values())} "
                    f"of {sum(one.requests for one in running.values())} requests done; "
                    f"{len(waiting)} wait"
                )
                if running:
                    await asyncio.sleep(config.poll_seconds)
    if refusal is not None:
        raise UserError(f"judge: the service refuses a batch: {refusal}")


@dataclass(kw_only=True)
class _Running:
    id: str
    held: float  # dollars set aside
    requests: int
    done: int = 0


async def _start(
    config: JudgeConfig,
    service: "AsyncOpenAI",
    path: str,
    reserve: Callable[[float], Awaitable[bool]],
) -> _Running | None:
    """Takes up the batch of a file, or submits it; None where the budget does not allow it."""
    about, known = storage.read_json(_about(path)), _read_note(path).get("id")
    sends = sum(one["sends"] for one in about.values())
    most = tokens.price(sends, config.max_output * len(about), config.prices, batch=True)
    allowed = await reserve(most)
    if not allowed and known is None:
        return None
    name = known or await _submit(config, service, path)
    storage.write_json(_note(path), {"id": name, "collected": False})
    return _Running(id=name, held=most if allowed else 0.0, requests=len(about))


async def _submit(config: JudgeConfig, service: "AsyncOpenAI", path: str) -> str:
    """Creates the batch of a file, unless there is one already."""
    import openai

    label = {"raypipe": storage.sha256_file(path), "file": path.rsplit("/", 1)[-1]}
    uploaded, left = None, config.retries
    # The client's own retries would submit again what was created when only the answer was lost.
    once = service.with_options(max_retries=0)
    while True:
        async for batch in service.batches.list(limit=100):
            same = label.items() <= (batch.metadata or {}).items()
            if same and batch.status != "failed" and batch.created_at > time.time() - _KEPT:
                return batch.id
        if uploaded is None:
            data = (label["file"], storage.read_bytes(path))
            uploaded = await service.files.create(file=data, purpose="batch")
        # From here on `write_questions` leaves the file as it is.
        storage.write_json(_note(path), {"id": None, "collected": False})
        try:
            batch = await once.batches.create(
                input_file_id=uploaded.id,
                endpoint=_URL,
                completion_window="24h",
                metadata=label,
            )
            return batch.id
        except (openai.APIConnectionError, openai.APIStatusError) as error:
            status = getattr(error, "status_code", 500)
            if status < 500:
                storage.delete(_note(path))  # it is not there
            if not left or (status < 500 and status != 429):
                raise
        left -= 1
        await asyncio.sleep(config.poll_seconds)


async def _collect(
    config: JudgeConfig, answers: Answers, service: "AsyncOpenAI", path: str, batch: "Batch"
) -> float:
    """Keeps what came back for a file; the dollars that it cost."""
    keep = partial(_keep, config, answers, storage.read_json(_about(path)))
    paid = 0.0
    with ThreadPoolExecutor(_THREADS) as pool:
        for name in filter(None, (batch.output_file_id, batch.error_file_id)):
            back = await service.files.content(name)
            paid += sum(pool.map(keep, back.content.splitlines()))
    storage.write_json(_note(path), {"id": batch.id, "collected": True})
    return paid


def _keep(config: JudgeConfig, answers: Answers, about: dict[str, Any], data: bytes) -> float:
    try:
        line = _Line.model_validate_json(data)
    except ValidationError:
        return 0.0  # nobody knows whose answer it was; it is asked for again
    if line.custom_id not in about:
        return 0.0
    asked, record = about[line.custom_id], answers.find(line.custom_id)
    if record.text is not None or record.asked > asked["asked"]:
        return 0.0  # kept by a run that was killed before it had all of them
    paid = 0.0
    if line.status == 200:
        sent, received = line.sent or asked["sends"], line.received or config.max_output
        paid = tokens.price(sent, received, config.prices, batch=True)
        record.asked += 1
        record.sent += sent
        record.received += received
        record.batch, record.model = True, line.model or ""
        labels, anchors = tuple(asked["labels"]), frozenset(asked["anchors"])
        record.text, record.problem = _text(line, Sheet(labels=labels, anchors=anchors, data=b""))
    else:
        problem = line.error or f"status {line.status} from the service"
        record.problem = problem[:_ROOM_FOR_ERRORS]
    answers.keep(line.custom_id, record)
    return paid


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str


def _at(*path: str) -> Any:
    return Field(None, validation_alias=AliasPath(*path))


class _Line(BaseModel):
    """A line of an output or error file; `_text` reads it like a chat completion."""

    custom_id: str
    error: str | None = _at("error", "message")
    status: int | None = _at("response", "status_code")
    model: str | None = _at("response", "body", "model")
    choices: list[_Choice] = _at("response", "body", "choices")
    sent: int | None = _at("response", "body", "usage", "prompt_tokens")
    received: int | None = _at("response", "body", "usage", "completion_tokens")


def _about(path: str) -> str:
    """Labels, anchors, tokens and earlier answers of a file's questions, by custom_id."""
    return f"{path}.about.json"


def _note(path: str) -> str:
    return f"{path}.batch.json"


def _read_note(path: str) -> dict[str, Any]:
    return storage.read_json(_note(path)) if storage.exists(_note(path)) else {}


def _why(batch: "Batch") -> str:
    errors = (batch.errors and batch.errors.data) or []
    return " ".join(" ".join(error.message or "" for error in errors).split())[:_ROOM_FOR_ERRORS]


@contextmanager
def _told(config: JudgeConfig) -> Iterator[None]:
    """Turns what the service does wrong into a line for the user."""
    import openai

    try:
        yield
    except (openai.APIError, json.JSONDecodeError) as error:
        status: Any = getattr(error, "status_code", None)
        what = {401: "refuses the key", 403: "refuses the key", 404: "has no such batch or file"}
        raise UserError(
            f"judge: {config.base_url} {what.get(status, 'does not answer')} "
            f"({status or type(error).__name__}); what was submitted goes on there. Run again, and "
            "it is collected"
        ) from None
