"""Speed, memory and exactness of screening: identities against a gallery and against each other.

    python benchmarks/screening.py [--identities 100000] [--gallery 100000] [--size 512]

Prints a Markdown table. A fifth of the identities have a near copy in the gallery and a hundredth
are near copies of an earlier identity, so that there is something to find.
"""

import argparse
import os
import platform
import resource
import time

import numpy as np
import psutil

from raypipe.search import nearest, pairs_above
from raypipe.templates import unit

THRESHOLD = 0.5
CHECKED = 50  # rows compared with brute force in float64


def vectors(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Random directions, float32 (count, size)."""
    found = rng.standard_normal((count, size), np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def copies(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Directions with a cosine of about 0.8 to the given ones."""
    noise = rng.standard_normal(rows.shape, np.float32)
    return unit(rows + 0.75 * noise / np.sqrt(rows.shape[1])).astype(np.float32)


def machine() -> str:
    """Processor, cores and memory."""
    model = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as lines:
        models = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return f"{models[0] if models else model}, {cores} cores, {memory:.0f} GiB"


def peak() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def brute(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Inner products of one query with everything, in float64, as float32 (G,)."""
    parts = np.array_split(gallery, max(len(gallery) // 10_000, 1))
    return np.concatenate([part.astype(np.float64) @ query for part in parts]).astype(np.float32)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--identities", type=int, default=100_000)
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=512)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    gallery = vectors(given.gallery, given.size, rng)
    identities = vectors(given.identities, given.size, rng)
    leaks = min(given.identities // 5, given.gallery)
    identities[:leaks] = copies(gallery[:leaks], rng)
    twins = given.identities // 100
    identities[-twins:] = copies(identities[:twins], rng)
    sample = rng.choice(given.identities, min(CHECKED, given.identities), replace=False)
    held = psutil.Process().memory_info().rss / 2**30
    full = given.identities * given.gallery * 4 / 2**30

    start = time.perf_counter()
    similarity, index = nearest(identities, gallery, 1)
    against_gallery, memory_gallery = time.perf_counter() - start, peak() - held
    right = 0
    for row in sample:
        exact = brute(identities[row], gallery)
        right += exact.argmax() == index[row, 0] and abs(exact.max() - similarity[row, 0]) < 1e-6

    start = time.perf_counter()
    i, j, _ = pairs_above(identities, THRESHOLD)
    against_each_other, memory_self = time.perf_counter() - start, peak() - held
    right_pairs = 0
    for row in sample:
        exact = np.flatnonzero(brute(identities[row], identities) >= THRESHOLD)
        mine = np.concatenate([j[i == row], i[j == row], [row]])
        right_pairs += np.array_equal(np.sort(mine), exact)

    print(f"{machine()}; before searching the process holds {held:.2f} GiB; the full similarity")
    print(
        f"matrix would be {full:.1f} GiB. Memory is what the process took beyond that, at most.\n"
    )
    print(
        "| search | comparisons | seconds | million comparisons/s | memory, GiB | = brute force |"
    )
    print("|---|---|---|---|---|---|")
    for name, count, seconds, memory, good in (
        (
            f"{given.identities:,} × {given.size} against {given.gallery:,}",
            given.identities * given.gallery,
            against_gallery,
            memory_gallery,
            right,
        ),
        (
            f"{given.identities:,} against each other",
            given.identities * (given.identities - 1) // 2,
            against_each_other,
            memory_self,
            right_pairs,
        ),
    ):
        print(
            f"| {name} | {count:,} | {seconds:.0f} | {count / seconds / 1e6:.0f} "
            f"| {memory:.2f} | {good} of {len(sample)} rows |"
        )
    print(f"\n{len(i):,} pairs of identities at {THRESHOLD} or above; {twins:,} were planted.")


if __name__ == "__main__":
    main()
