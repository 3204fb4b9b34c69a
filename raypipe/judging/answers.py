"""Answers that were paid for, in a folder, by what was asked: nothing is paid for twice.

A file for each question, written after every call that cost something, before the next is made.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from raypipe import storage
from raypipe.errors import UserError


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
        for entry in storage.listdir(self.root, recursive=True):
            if entry.path.endswith(".json"):
                yield _parse(entry.path)

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
