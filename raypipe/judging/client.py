"""Asks a service that speaks OpenAI's protocol; every sheet gets an answer or a reason why not."""

import asyncio
import base64
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raypipe import storage
from raypipe.config.judge import JudgeConfig
from raypipe.errors import UserError
from raypipe.judging import tokens
from raypipe.judging.answers import Answers, Record
from raypipe.judging.question import SCHEMA, Answer, MalformedError, Question, read
from raypipe.judging.sheets import Sheet, size

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_ROOM_FOR_ERRORS = 200  # characters of a service's message that are kept


@dataclass(frozen=True, kw_only=True)
class Opinion:
    """What came of a question.

    Attributes:
        answer: None where the model could not be brought to one.
        problem: why not, in words.
        paid: whether a call was made, and not only a file read.
    """

    answer: Answer | None = None
    problem: str | None = None
    paid: bool = False


def read_key(config: JudgeConfig) -> str:
    """The key, from the file or the environment variable that the configuration names.

    Raises:
        UserError: where there is none.
    """
    if config.key_file is not None:
        key = storage.read_bytes(config.key_file, 10_000).decode(errors="replace").strip()
        if not key:
            raise UserError(f"judge.key_file: {config.key_file} is empty")
        return key
    key = os.environ.get(config.key_variable, "").strip()
    if not key:
        raise UserError(
            f"judge: the environment variable {config.key_variable} holds no key; set it on all "
            "nodes, or name a file by judge.key_file"
        )
    return key


def request(config: JudgeConfig, question: Question, sheet: Sheet) -> dict[str, Any]:
    """What is sent: the body of a chat completion."""
    image = base64.b64encode(sheet.data).decode()
    return {
        "model": config.model,
        "messages": [
            {"role": "system", "content": question.system},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": question.ask(sheet.labels, sheet.anchors)},
                    {
                        "type": "image_url",
                        "image_url": {"url": f"data:image/jpeg;base64,{image}", "detail": "high"},
                    },
                ],
            },
        ],
        "temperature": 0,
        "max_completion_tokens": config.max_output,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "outliers", "strict": True, "schema": SCHEMA},
        },
    }


def expected_tokens(config: JudgeConfig, question: Question, sheet: Sheet) -> int:
    """Tokens that a question sends, as far as they can be known before."""
    width, height = size(len(sheet.labels), config.sheet)
    text = question.ask(sheet.labels, sheet.anchors)
    return tokens.message_tokens([question.system, text]) + tokens.image_tokens(
        width, height, config.prices
    )


class Client:
    """Asks with bounded concurrency, within the limits of the service and a budget; in mode `batch`
    it knows what the batches brought, and asks nothing.

    Retries of 429, 5xx and lost connections, with the pauses that the service asks for, are the
    `openai` client's own. An answer that is not well formed is asked for again. What was paid for
    is written down before anything else happens.

    Args:
        share: part of the configured concurrency and limits that is this client's.
        reserve: asked before a call with what it may cost in dollars; False: the budget is spent.
        settle: told after it with that, and with what it did cost.
    """

    def __init__(
        self,
        config: JudgeConfig,
        question: Question,
        answers: Answers,
        *,
        share: float,
        reserve: Callable[[float], Awaitable[bool]],
        settle: Callable[[float, float], Awaitable[None]],
    ) -> None:
        from aiolimiter import AsyncLimiter

        self.config, self.question, self.answers = config, question, answers
        self._reserve, self._settle = reserve, settle
        self._openai: AsyncOpenAI = _connect(config)
        self._free = asyncio.Semaphore(max(1, round(config.concurrency * share)))
        self._calls = AsyncLimiter(max(1.0, config.requests_per_minute * share))
        self._tokens = AsyncLimiter(max(1.0, config.tokens_per_minute * share))

    async def ask(self, sheet: Sheet) -> Opinion:
        """Asks about a sheet, unless the answer is known.

        Raises:
            UserError: where the budget is spent, or the service takes no question at all: a wrong
                key, address or model.
        """
        key = self.question.key(sheet, self.config.model)
        record = await asyncio.to_thread(self.answers.find, key)
        paid = False
        if self.config.mode == "batch" and record.text is None:
            return Opinion(problem=record.problem or "no batch brought an answer")
        while record.text is None and record.asked < self.config.asks:
            problem = await self._call(key, sheet, record)
            paid = True
            if problem is not None:
                return Opinion(problem=problem, paid=paid)
        if record.text is None:
            return Opinion(problem=f"malformed: {record.problem}", paid=paid)
        return Opinion(answer=read(record.text, sheet), paid=paid)

    async def _call(self, key: str, sheet: Sheet, record: Record) -> str | None:
        """One call; what came back goes into the record. A problem in words where nothing did."""
        import openai
        from openai.types.chat import ChatCompletion

        config = self.config
        sends = expected_tokens(config, self.question, sheet)
        most = tokens.price(sends, config.max_output, config.prices)
        if not await self._reserve(most):
            raise UserError(
                f"judge: the budget of ${config.budget:g} is spent; all answers are kept. Raise "
                "judge.budget, and run again"
            )
        paid = 0.0
        try:
            body = request(config, self.question, sheet)
            await self._calls.acquire()
            await self._tokens.acquire(min(sends, self._tokens.max_rate))
            async with self._free:  # for the call alone: a place is taken again at once
                # Not by chat.completions.create, which walks through the body first: 2 ms a call.
                back = await self._openai.post(
                    "/chat/completions", body=body, cast_to=ChatCompletion
                )
            sent, received = (
                (back.usage.prompt_tokens, back.usage.completion_tokens)
                if back.usage
                else (sends, config.max_output)
            )
            paid = tokens.price(sent, received, config.prices)
            record.asked += 1
            record.sent += sent
            record.received += received
            record.model = back.model
            record.text, record.problem = _text(back, sheet)
            await asyncio.to_thread(self.answers.keep, key, record)
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
        ) as e:
            raise UserError(
                f"judge: {config.base_url} refuses the key or the model {config.model!r} "
                f"(status {e.status_code}); nothing can be asked there"
            ) from None
        except openai.APIStatusError as error:
            return f"status {error.status_code} from the service"
        except openai.APIConnectionError as error:  # timeouts are among them
            return f"no answer from the service ({type(error).__name__})"
        except openai.APIError as error:
            return f"the service's answer cannot be read ({type(error).__name__})"
        except ValueError as error:
            # A body that is no JSON, or JSON of another shape.
            return f"the service's answer cannot be read ({str(error)[:_ROOM_FOR_ERRORS]!r})"
        finally:
            await self._settle(most, paid)
        return None

    async def close(self) -> None:
        """Closes the connections."""
        await self._openai.close()


def _connect(config: JudgeConfig) -> "AsyncOpenAI":
    from openai import AsyncOpenAI

    return AsyncOpenAI(
        api_key=read_key(config),
        base_url=config.base_url,
        timeout=config.timeout,
        max_retries=config.retries,
    )


def _text(back: Any, sheet: Sheet) -> tuple[str | None, str | None]:
    """The answer where it is well formed, else what is wrong with it."""
    if not back.choices:
        return None, "no choice came back"
    choice = back.choices[0]
    if choice.message.refusal:
        return None, "the model refused"
    if choice.finish_reason != "stop":
        return None, f"cut off ({choice.finish_reason})"
    text = choice.message.content or ""
    try:
        read(text, sheet)
    except MalformedError as error:
        return None, str(error)
    return text, None
