"""Plan against actual of a finished build: time and bytes of every job.

    raypipe plan configs/demo.yaml --calibrate
    make demo
    python benchmarks/plan.py runs/demo

`raypipe build` writes `plan.json` before its first job. Ends with status 1 where the time of all
jobs is more than 25 % off, or their bytes more than 10 %.
"""

import sys

from raypipe import storage
from raypipe.planning.actual import compare, total
from raypipe.planning.plan import PLAN
from raypipe.report.sections.planned import BYTES_OFF, SECONDS_OFF


def main() -> int:
    (root,) = sys.argv[1:]
    planned = storage.read_json(storage.join(root, PLAN))
    rows = compare(planned, root)
    print(f"rates: {planned['rates'] or 'assumed'}")
    print(
        "| job | s planned | s | ratio | MB planned | MB | ratio |\n|---|--:|--:|--:|--:|--:|--:|"
    )
    for row in rows:
        seconds = (row.planned.seconds, row.actual.seconds)
        size = (row.planned.bytes, row.actual.bytes)
        again = " (resumed)" if row.resumed else ""
        print(f"| {row.job}{again} | {_pair(seconds, 1)} | {_pair(size, 1e6)} |")
    seconds = total(rows, lambda amount: amount.seconds)
    size = total(rows, lambda amount: amount.bytes)
    print(f"| all | {_pair(seconds, 1)} | {_pair(size, 1e6)} |")
    good = abs(_off(seconds)) <= SECONDS_OFF and abs(_off(size)) <= BYTES_OFF
    return 0 if good else 1


def _off(both: tuple[float, float]) -> float:
    return both[1] / both[0] - 1


def _pair(both: tuple[float | None, float | None], unit: float) -> str:
    planned, actual = both
    if planned is None or actual is None:
        return "– | – | –"
    return f"{planned / unit:.1f} | {actual / unit:.1f} | {actual / max(planned, 1e-9):.2f}"


if __name__ == "__main__":
    sys.exit(main())
