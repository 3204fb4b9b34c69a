"""Speed and memory of admitting references, against so many others and the faces of a gallery.

    python benchmarks/admission.py [--references 1000] [--others 100000] [--gallery 100000]

A hundredth of the references each are somebody of the gallery, one of the others, and an earlier
reference; all of them must be refused, and the others admitted. Directions are random, 512 numbers.
The others are compared with each other once, before the first wave; everything after that is timed
as the admission: the search in the gallery, and who is needed.
"""

import argparse
import resource
import time

import numpy as np
import psutil
import pyarrow as pa

from raypipe.admission import admission, others
from raypipe.faceset import Embedded
from raypipe.impostors import Calibration, Histogram
from raypipe.screening import SEARCHED, search_galleries
from raypipe.templates import Gallery
from screening import copies, machine, vectors

SIZE = 512


def known(templates: np.ndarray) -> pa.Table:
    """The others as the search leaves them, none of them in the gallery."""
    count = len(templates)
    columns = {
        "identity_id": [f"base/{i}" for i in range(count)],
        "index": np.arange(count),
        "source": ["base"] * count,
        "template": pa.FixedSizeListArray.from_arrays(templates.ravel(), SIZE).cast(
            SEARCHED.field("template").type
        ),
        "halves": np.full(count, 0.8),
        "people": [["a"]] * count,
        "images": [["b"]] * count,
        "similarities": [[0.0]] * count,
    }
    return pa.table(columns, schema=SEARCHED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--references", type=int, default=1000)
    parser.add_argument("--others", type=int, default=100_000)
    parser.add_argument("--gallery", type=int, default=100_000)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    faces, people = vectors(given.gallery, SIZE, rng), vectors(given.others, SIZE, rng)
    new = vectors(given.references, SIZE, rng)
    some = given.references // 100
    new[-some:] = copies(faces[:some], rng)
    new[-2 * some : -some] = copies(people[:some], rng)
    new[-3 * some : -2 * some] = copies(new[:some], rng)
    gallery = Gallery(
        name="gallery",
        faces=faces,
        people=np.arange(len(faces)),
        names=[str(i) for i in range(len(faces))],
        image_ids=["0"] * len(faces),
    )
    threshold = Calibration(
        threshold=0.5,
        pairs=1,
        impostor=Histogram(),
        genuine=Histogram(),
        recognised=None,
        same=[],
    )
    galleries = {"gallery": threshold}
    rate = 1e-7
    table = known(people)
    start = time.perf_counter()
    rest = others(table, galleries, rate=rate, first="base")
    once = time.perf_counter() - start
    held = psutil.Process().memory_info().rss / 2**30
    start = time.perf_counter()
    rows = (
        Embedded(
            identity_id=f"seed/{i}",
            index=given.others + i,
            source="seed",
            rejected=None,
            image_ids=["seed-00"],
            image_rejected=[None],
            embeddings=vector[None],
        )
        for i, vector in enumerate(new)
    )
    searched = search_galleries(rows, [gallery])
    gone = time.perf_counter() - start
    found = admission(searched, rest, galleries, number=given.references // 2, rate=rate)
    seconds = time.perf_counter() - start
    everything = admission(searched, rest, galleries, number=given.references, rate=rate)
    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{machine()}\n")
    print(f"| others | {given.references:,} references admitted | of it the gallery | memory |")
    print("|---|---|---|---|")
    print(
        f"| {given.others:,}, compared once in {once:.0f} s | {seconds:.1f} s | {gone:.1f} s | "
        f"{top:.2f} GiB, {top - held:.2f} beyond what was held |\n"
    )
    print(f"needed for half of them: the first {found['last'] - given.others + 1:,}")
    print(f"of all: {everything['admitted']:,} admitted, refused {everything['refused']}")


if __name__ == "__main__":
    main()
