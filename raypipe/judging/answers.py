"""Answers that were paid for, in a folder, by what was asked: nothing is paid for twice.

A file for each question, written after every call that cost something, before the next is made.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from raypipe import storage
from raypipe.config.judge import PriceConfig
from raypipe.errors import UserError
from raypipe.judging.tokens import price

_READERS = 32  # an object store takes its time for each file


@dataclass(kw_only=True)
class Record:
    """What came back for a question.

    Attributes:
        text: the answer, as the model wrote it; None as long as none was well formed.
        problem: what was wrong with the last answer; None where it was well formed.
        asked: answers that came back.
        sent, received: tokens of all of these, as the service counted them.
        batch: whether they were asked for at the price of a batch.
        model: as the service calls it.
    """

    text: str | None = None
    problem: str | None = None
    asked: int = 0
    sent: int = 0
    received: int = 0
    batch: bool = False
    model: str = ""


@dataclass(kw_only=True)
class Totals:
    """What all questions of a folder came to."""

    questions: int = 0
    answered: int = 0
    asked: int = 0
    tokens: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("sent", "received", "batch_sent", "batch_received"), 0
        )
    )


class Answers:
    """The folder; any filesystem that `raypipe.storage` opens.

    Args:
        root: the folder.
    """

    def __init__(self, root: str) -> None:
        self.root = root

    def _path(self, key: str) -> str:
        return storage.join(self.root, key[:2], f"{key}.json")

    def find(self, key: str) -> Record:
        """What came back for a question so far.

        Raises:
            UserError: where the file is damaged.
        """
        path = self._path(key)
        return _parse(path) if storage.exists(path) else Record()

    def keep(self, key: str, record: Record) -> None:
        """Writes the record, whole or not at all."""
        storage.write_json(self._path(key), asdict(record))

    def __iter__(self) -> Iterator[Record]:
        found = storage.listdir(self.root, recursive=True) if storage.exists(self.root) else []
        # By what they are called, not all JSON: batches keep notes here too.
        paths = [entry.path for entry in found if len(entry.name) == len(f"{'0' * 64}.json")]
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(_parse, paths)

    def spent(self, prices: PriceConfig) -> float:
        """Dollars that all answers cost."""
        tokens = self.totals().tokens
        return price(tokens["sent"], tokens["received"], prices) + price(
            tokens["batch_sent"], tokens["batch_received"], prices, batch=True
        )

    def totals(self) -> Totals:
        """Sums over all records."""
        found = Totals()
        for record in self:
            found.questions += 1
            found.answered += record.text is not None
            found.asked += record.asked
            kind = "batch_" if record.batch else ""
            found.tokens[f"{kind}sent"] += record.sent
            found.tokens[f"{kind}received"] += record.received
        return found


def _parse(path: str) -> Record:
    try:
        values: Any = json.loads(storage.read_bytes(path, 1 << 20))
        return Record(**values)
    except (ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path}: not an answer; delete it, and the question is asked again"
        ) from None
