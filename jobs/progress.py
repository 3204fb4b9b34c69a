"""Progress a person can read: a bar at a terminal, a line now and then in a log."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)
LINE_SECONDS = 15.0


class Bar:
    """A bar of `total` units; `poll` says every half second how many are done, and a remark.

    At a terminal it moves; elsewhere a line is printed every 15 seconds and at the end.
    """

    def __init__(self, name: str, total: int, poll: Callable[[], tuple[int, str]]) -> None:
        self._name = name
        self._total = total
        self._poll = poll
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._bar = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(name, total=total, remark="")

    def __enter__(self) -> "Bar":
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._show(*self._poll())
        self._bar.stop()
        if not console.is_terminal:
            self._line(*self._poll())

    def _show(self, done: int, remark: str) -> None:
        self._bar.update(self._task, completed=done, remark=remark)

    def _line(self, done: int, remark: str) -> None:
        console.print(f"{self._name}: {done:,} of {self._total:,} {remark}".rstrip())

    def _watch(self) -> None:
        printed = time.monotonic()
        while not self._stop.wait(0.5):
            done, remark = self._poll()
            self._show(done, remark)
            if not console.is_terminal and time.monotonic() - printed > LINE_SECONDS:
                printed = time.monotonic()
                self._line(done, remark)
