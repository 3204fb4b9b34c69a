"""What the workers of a job tell each other and the driver, kept by a small actor of its own."""

from collections import Counter, defaultdict


class Ledger:
    """Sums what the actors of a stage report, and remembers what they began and did not end.

    Args:
        failed: rows that failed in earlier sittings of the job.
    """

    def __init__(self, failed: int) -> None:
        self._sums: dict[str, Counter[str]] = defaultdict(Counter)
        self._actors: dict[str, set[str]] = defaultdict(set)
        self._nodes: dict[str, set[str]] = defaultdict(set)
        self._spans: dict[str, tuple[float, float]] = {}
        self._begun: Counter[str] = Counter()
        self._failed = failed

    def add(
        self, step: str, actor: str, node: str, sums: dict[str, float], start: float, end: float
    ) -> None:
        first, last = self._spans.get(step, (start, end))
        self._spans[step] = min(first, start), max(last, end)
        self._sums[step].update(sums)
        self._actors[step].add(actor)
        self._nodes[step].add(node)

    def begin(self, key: str) -> int:
        """How often something was begun before and not ended."""
        self._begun[key] += 1
        return self._begun[key] - 1

    def end(self, key: str) -> None:
        self._begun.pop(key, None)  # unknown where the ledger itself was started anew

    def fail(self) -> int:
        """Counts a failed row; returns how many there are."""
        self._failed += 1
        return self._failed

    def read(self) -> dict[str, dict[str, float]]:
        """Sums by step, with "actors", "nodes" and "span": seconds from the first rows to the
        last."""
        return {
            step: {
                **sums,
                "actors": len(self._actors[step]),
                "nodes": len(self._nodes[step]),
                "span": self._spans[step][1] - self._spans[step][0],
            }
            for step, sums in self._sums.items()
        }


class TrainingProgress:
    """What the first worker of a training says of itself, for the bar."""

    def __init__(self) -> None:
        self._state = (0, "")

    def report(self, images: int, remark: str) -> None:
        self._state = (images, remark)

    def read(self) -> tuple[int, str]:
        return self._state
