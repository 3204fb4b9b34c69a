"""Speed of the parts of `assemble` on one core, in images a second of processor time.

    python benchmarks/assemble.py [--identities 40]

Prints one line each for: the augmentations alone; a refill (decode, augment, encode); the first and
the second pass of the exchange, the second with both shard formats and their digests.
"""

import argparse
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch

from raypipe import exchange, training_set
from raypipe.augment import augment
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.images import decode, encode_jpeg, resize
from raypipe.refill import refill
from raypipe.seeding import generator

IMAGES, KEPT = 50, 10


def person(number: int) -> Identity:
    """Smooth random pictures of 112×112, about the size of a face in JPEG."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (KEPT, 14, 14, 3), dtype=np.uint8)
    images = [
        Image(image_id=str(k), data=encode_jpeg(resize(rgb, (112, 112))), source="benchmark")
        for k, rgb in enumerate(small)
    ]
    return Identity(identity_id=f"{number:06d}", index=number, source="base", images=images)


def measure(name: str, images: int, work: Callable[[], object]) -> None:
    start = time.process_time()
    work()
    print(f"{name:<40}{images / (time.process_time() - start):>8,.0f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--identities", type=int, default=40)
    count = parser.parse_args().identities
    torch.set_num_threads(1)
    people = [person(n) for n in range(count)]
    pixels = [
        np.stack([decode(i.data, source="") for i in p.images]).repeat(4, axis=0) for p in people
    ]

    def augment_all() -> None:
        for one, batch in zip(people, pixels, strict=True):
            rngs = [generator(0, one.identity_id, k, "augment") for k in range(len(batch))]
            augment(batch, rngs)

    def refill_all() -> None:
        for one in people:
            refill(one, images_per_identity=IMAGES, seed=0, jpeg_quality=95)

    augment(pixels[0], [generator(0, "warm", k) for k in range(len(pixels[0]))])
    measure("augment", sum(map(len, pixels)), augment_all)
    measure("refill: decode, augment, encode", count * (IMAGES - KEPT), refill_all)

    total = count * IMAGES
    labels = {one.identity_id: (n, 0) for n, one in enumerate(people)}
    positions = np.random.default_rng(0).permutation(total)
    ranges = training_set.shard_ranges(total, 1000)
    with tempfile.TemporaryDirectory() as root:
        write_rows(root, "0.parquet", people)

        def spread() -> None:
            rows = (
                training_set.to_rows([one], labels, positions, IMAGES)
                for one in FaceSet(root).iter_identities()
            )
            exchange.spread(exchange.exchange_file(root, 0), rows, ranges)

        def write() -> None:
            for shard, held in enumerate(ranges):
                rows = exchange.gather(root, 1, shard, held)
                training_set.write_shard(root, shard, lambda rows=rows: rows)

        training_set.to_tar(exchange.FLAT.empty_table())  # loads webdataset
        measure("exchange, first pass", total, spread)
        measure("exchange, second pass: both shards", total, write)


if __name__ == "__main__":
    main()
