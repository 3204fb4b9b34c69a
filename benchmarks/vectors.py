"""Time, memory and exactness of sampling identity vectors under a cosine ceiling.

    python benchmarks/vectors.py [--count 300000] [--size 512] [--ceiling 0.3] [--people 20000]

The law is fitted on the class means of made-up people: independent normal numbers along 512 axes,
with variance 1 / (1 + k / 30) along the k-th, in rotated axes; so some candidates are too similar
to others, as with features of real faces. Prints a Markdown table. All pairs of some rows are
compared with everything by brute force in float64.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import psutil

from raypipe.templates import unit
from raypipe.vectors import Distribution, fit, sample
from raypipe.vectors.distribution import DRAWN
from screening import brute, machine, peak

CHECKED = 100  # vectors, and as many refused candidates, compared with everything
FALL = 30


def class_means(people: int, size: int) -> Iterator[np.ndarray]:
    """The class means of made-up people, float64 (size,) each."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((size, size)))[0]
    factor = axes / np.sqrt(1 + np.arange(size) / FALL)
    for _ in range(people):
        yield factor @ rng.standard_normal(size)


def candidate(law: Distribution, place: int) -> np.ndarray:
    """One candidate as a direction, float32 (D,)."""
    return unit(law.draw(0, place // DRAWN)[place % DRAWN]).astype(np.float32)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300_000)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--ceiling", type=float, default=0.3)
    parser.add_argument("--people", type=int, default=20_000)
    given = parser.parse_args()
    held = psutil.Process().memory_info().rss / 2**30

    start = time.perf_counter()
    law = fit(class_means(given.people, given.size), "the made-up people")
    fitted = time.perf_counter() - start
    start = time.perf_counter()
    found = sample(law, given.count, ceiling=given.ceiling, seed=0)
    sampled, memory = time.perf_counter() - start, peak() - held

    rng = np.random.default_rng(1)
    units = unit(found.vectors).astype(np.float32)
    limit = np.float32(given.ceiling)
    right = 0
    for row in rng.choice(given.count, CHECKED, replace=False):
        similarity = brute(units[row], units)
        similarity[row] = -1
        right += similarity.max() < limit
    refused = np.setdiff1d(np.arange(found.drawn), found.places)
    checked = rng.choice(refused, min(CHECKED, len(refused)), replace=False)
    rightly = sum(
        brute(candidate(law, place), units[: np.searchsorted(found.places, place)]).max() >= limit
        for place in checked
    )

    print(
        f"{machine()}; before fitting the process holds {held:.2f} GiB. Memory is what the process"
    )
    print("took beyond that, at most; the vectors and their directions are in it.\n")
    print("| step | seconds | memory, GiB |")
    print("|---|---|---|")
    print(
        f"| fit on {given.people:,} class means × {given.size}, made on the way | {fitted:.0f} | |"
    )
    print(
        f"| {given.count:,} × {given.size} under {given.ceiling:g} | {sampled:.0f} | {memory:.2f} |"
    )
    print(
        f"\n{found.drawn:,} candidates drawn, {found.refused:,} refused "
        f"({found.refused / found.drawn:.2%}). Brute force: {right} of {CHECKED} vectors are under "
        f"the ceiling with all {given.count - 1:,} others, {rightly} of {len(checked)} refused "
        "candidates reach it with an earlier vector."
    )


if __name__ == "__main__":
    main()
