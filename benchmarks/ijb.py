"""Speed, memory and exactness of 1:1 verification at the size of IJB-C, with random features.

    OMP_NUM_THREADS=1 python benchmarks/ijb.py [--part 1.0]

Prints a Markdown table. The sizes are those of the published lists (469,375 images, 23,124
templates, 15,658,489 pairs); templates are of 3,531 people, and features lie around a centre for
each, so that there is something to recognise. Images are made block by block, as actors hand them
on, and making them is not counted.
"""

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv
import sklearn.metrics

from raypipe.formats.ijb import read_ijb
from raypipe.ijb import FARS, cosines, operating_point, roc_curve, template_features
from screening import machine

IMAGES, TEMPLATES, PAIRS, PEOPLE, SIZE = 469_375, 23_124, 15_658_489, 3_531, 512
GENUINE = 19_557
_BLOCK = 8192


def peak() -> float:
    """Largest resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def write_list(path: str, blocks: Iterator[pa.Table]) -> None:
    """Writes tables as a list with spaces and without a header."""
    options = pa.csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none")
    with open(path, "wb") as file:
        for block in blocks:
            pa.csv.write_csv(block, file, options)


def write_meta(root: str, part: float) -> None:
    """Writes the three lists, block by block; template t shows person t % people."""
    rng = np.random.default_rng(0)
    images, templates, pairs = (int(n * part) for n in (IMAGES, TEMPLATES, PAIRS))
    people = int(PEOPLE * part)
    member = np.sort(
        np.append(np.arange(templates), rng.integers(0, templates, images - templates))
    )
    names = pa.array([f"{i}.jpg" for i in range(images)])
    media = pa.table({"name": names, "t": member, "m": rng.integers(0, 100_000, images)})
    points = {f"p{i}": rng.uniform(10, 100, images).round(3) for i in range(10)}
    faces = pa.table({"name": names, **points, "score": rng.uniform(0.5, 1, images).round(3)})

    def compared() -> Iterator[pa.Table]:
        for start in range(0, pairs, 2**20):
            count = min(2**20, pairs - start)
            first = rng.integers(0, templates, count)
            second = rng.integers(0, templates, count)
            genuine = rng.random(count) < GENUINE / PAIRS
            second[genuine] = (first[genuine] + people) % (templates - templates % people)
            label = (first % people == second % people).astype(int)
            yield pa.table({"first": first, "second": second, "label": label})

    os.mkdir(os.path.join(root, "meta"))
    for ending, blocks in (
        ("face_tid_mid", iter([media])),
        ("name_5pts_score", iter([faces])),
        ("template_pair_label", compared()),
    ):
        write_list(os.path.join(root, "meta", f"ijbc_{ending}.txt"), blocks)


class Features:
    """Blocks of random features, and the seconds it took to make them."""

    def __init__(self, templates: np.ndarray, part: float) -> None:
        self._rng = np.random.default_rng(1)
        self._centres = self._rng.standard_normal((int(PEOPLE * part), SIZE), np.float32)
        self._templates = templates
        self.seconds = 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._templates), _BLOCK):
            begun = time.perf_counter()
            people = self._templates[start : start + _BLOCK] % len(self._centres)
            noise = self._rng.standard_normal((len(people), SIZE), np.float32)
            block = self._centres[people] + 8 * noise
            self.seconds += time.perf_counter() - begun
            yield block


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", type=float, default=1.0)
    part = parser.parse_args().part
    rows = []

    def timed(name: str, start: float, less: float = 0.0) -> None:
        rows.append((name, time.perf_counter() - start - less, peak()))

    with tempfile.TemporaryDirectory() as root:
        write_meta(root, part)
        before = peak()
        start = time.perf_counter()
        pairs = read_ijb(root)
        timed("read the lists", start)
    made = Features(pairs.templates, part)
    start = time.perf_counter()
    features = template_features(pairs, made)
    timed("features of templates", start, made.seconds)
    start = time.perf_counter()
    scores = cosines(features, pairs.first, pairs.second)
    timed("scores of pairs", start)
    start = time.perf_counter()
    roc = roc_curve(scores, pairs.same)
    found = [operating_point(roc, far) for far in FARS]
    timed("curve and operating points", start)

    print(f"{machine()}; {len(pairs.names):,} images, {len(features):,} templates,")
    print(
        f"{len(pairs.same):,} pairs ({int(pairs.same.sum()):,} genuine); {before:.2f} GiB before."
    )
    print("Memory is the most the process has held until then, all of it.\n")
    print("| step | seconds | memory, GiB |\n|---|---|---|")
    for name, seconds, memory in rows:
        print(f"| {name} | {seconds:.1f} | {memory:.2f} |")
    print("\n| FAR | TAR | FAR reached |\n|---|---|---|")
    for far, (tar, reached, _) in zip(FARS, found, strict=True):
        print(f"| {far:g} | {100 * tar:.2f} % | {reached:.3g} |")
    fars, tars, _ = sklearn.metrics.roc_curve(pairs.same, scores)
    equal = np.array_equal(fars, roc.fars) and np.array_equal(tars, roc.tars)
    print(f"\nscikit-learn's curve is {'the same' if equal else 'ANOTHER'}, {len(fars):,} points.")


if __name__ == "__main__":
    main()
