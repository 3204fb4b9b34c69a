"""Milliseconds an image of the dlib embedder on this machine's CPU, by batch and threads.

    python benchmarks/embedders.py

`wall` is the fastest of the repetitions, `cpu` the smallest processor time; on a busy machine only
the second says something about the network. The last column is a digest of the
embeddings: the same in all rows of a batch size means that the number of threads does not change a
byte.
"""

import hashlib
import time

import numpy as np
import torch

from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import Embedder, open_embedder

REPETITIONS = 10


def measure(embedder: Embedder, images: np.ndarray) -> tuple[float, float, str]:
    """Wall and processor milliseconds an image, and the digest of the embeddings."""
    embeddings = embedder.embed(images)
    walls, cpus = [], []
    for _ in range(REPETITIONS):
        wall, cpu = time.perf_counter(), time.process_time()
        embeddings = embedder.embed(images)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    each = 1000 / len(images)
    return (
        min(walls) * each,
        min(cpus) * each,
        hashlib.sha256(embeddings.tobytes()).hexdigest()[:12],
    )


def main() -> None:
    embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")
    print(f"{'batch':>5} {'threads':>7} {'wall ms':>8} {'cpu ms':>7}  digest")
    for batch in (20, 32):
        images = np.random.default_rng(0).integers(0, 256, (batch, 112, 112, 3), dtype=np.uint8)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            wall, cpu, digest = measure(embedder, images)
            print(f"{batch:5} {threads:7} {wall:8.2f} {cpu:7.2f}  {digest}")


if __name__ == "__main__":
    main()
