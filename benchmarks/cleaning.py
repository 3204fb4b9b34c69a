"""How well the two rules of the cleaning job find planted mistakes.

    python benchmarks/cleaning.py [--seeds 5]

For every seed it makes a base set with known truth (60 people × 20 images, z-noise 0.2, 10 % of
the images show somebody else, 2 people have two folders), embeds it with the demo's network, and
cleans it by both rules; the input is the same. No Ray: this is the library code that the job runs.

Printed as Markdown: F1, precision and recall of the removed images, how many of the folders of
people with two were found, identities lost although they had 10 good images (rejected, or left with
fewer than 10, without being the second folder of a person), and the calibrated threshold.
"""

import argparse
import platform
import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raypipe.cleaning.calibration import Calibration, calibrate
from raypipe.cleaning.cluster import calibrated_cluster
from raypipe.cleaning.doubles import Double, find_doubles
from raypipe.cleaning.marking import mark
from raypipe.cleaning.sampling import draw
from raypipe.config.clean import CleanConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.config.sample import SampleConfig
from raypipe.embedders import Embedder, open_embedder
from raypipe.faceset import Embedded
from raypipe.formats import open_reader
from raypipe.identities import Identity
from raypipe.images import decode
from raypipe.world import make_base

WORLD = SampleConfig(
    identities=60,
    images=20,
    z_noise=0.2,
    strangers=0.1,
    duplicates=2,
    near_duplicates=0,
    corrupt=0,
    truncated=0,
    too_few=0,
    leaks=0,
)
GOOD = 10


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a rule did to one world."""

    true: int
    false: int
    missed: int
    doubles: int
    lost: int
    threshold: float

    @property
    def precision(self) -> float:
        return self.true / max(self.true + self.false, 1)

    @property
    def recall(self) -> float:
        return self.true / max(self.true + self.missed, 1)

    @property
    def f1(self) -> float:
        return 2 * self.true / max(2 * self.true + self.false + self.missed, 1)


def read_and_embed(path: str, embedder: Embedder) -> list[Identity]:
    """The identities of an image folder, every image embedded."""
    reader = open_reader(path, source="base", max_bytes=2**20)
    identities = [reader.read(listing.identity) for listing in reader.identities()]
    for identity in identities:
        faces = np.stack([decode(image.data, source=image.source) for image in identity.images])
        for image, embedding in zip(identity.images, embedder.embed(faces), strict=True):
            image.embedding = embedding
    return identities


def prepare(identities: list[Identity], seed: int) -> tuple[Calibration, dict[str, Double]]:
    """Thresholds of a set, and its identities that are one person."""
    rows = [
        Embedded(
            identity_id=identity.identity_id,
            index=identity.index,
            source=identity.source,
            rejected=None,
            image_ids=[image.image_id for image in identity.images],
            image_rejected=[None] * len(identity.images),
            embeddings=np.stack([image.embedding for image in identity.images]),
        )
        for identity in identities
    ]
    sample, population = draw(rows, CleanConfig().sample_identities, seed)
    calibration = calibrate(sample, seed=seed, population=population)
    kept, centres = [], []
    for row in rows:
        vectors = calibration.transform(row.embeddings)
        cluster = calibrated_cluster(vectors, calibration.threshold, calibration.coherence)
        centre = vectors[cluster.kept].sum(axis=0)
        kept.append(int(cluster.kept.sum()))
        centres.append(centre / np.linalg.norm(centre))
    doubles = find_doubles(
        [row.identity_id for row in rows],
        np.array([row.index for row in rows]),
        np.array(kept),
        np.stack(centres),
        calibration.duplicate_threshold,
    )
    return calibration, doubles


def score(identities: list[Identity], truth: dict[str, Any], threshold: float) -> Score:
    """Compares verdicts with the truth."""
    true = false = missed = lost = 0
    pairs = {folder: set(pair) - {folder} for pair in truth["duplicates"] for folder in pair}
    found = 0
    for identity in identities:
        name = identity.identity_id
        strangers = {
            path
            for path, file in truth["files"].items()
            if path.startswith(f"{name}/") and file["fault"] == "stranger"
        }
        removed = {
            image.source[image.source.index(f"{name}/") :]
            for image in identity.images
            if image.rejected
        }
        true += len(removed & strangers)
        false += len(removed - strangers)
        missed += len(strangers - removed)
        others = set(identity.clean.duplicates) if identity.clean else set()
        found += name in pairs and others == pairs[name]
        second = identity.rejected == "clean:duplicate_identity" and name in pairs
        good = len(identity.images) - len(strangers)
        gone = identity.rejected is not None or len(identity.kept) < GOOD
        lost += good >= GOOD and gone and not second
    return Score(
        true=true, false=false, missed=missed, doubles=found, lost=lost, threshold=threshold
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    start = time.perf_counter()
    embedder = open_embedder(EmbedderConfig(kind="dlib"))
    print("| seed | rule | F1 | precision | recall | two folders found | lost | threshold |")
    print("|---|---|---|---|---|---|---|---|")
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            truth = make_base(WORLD, seed, folder)
            identities = read_and_embed(f"{folder}/base", embedder)
        calibration, doubles = prepare(identities, seed)
        for rule in ("calibrated", "share"):
            config = CleanConfig(rule=rule)
            cleaned = deepcopy(identities)
            for identity in cleaned:
                if rule == "share":
                    mark(identity, config, None, {})
                else:
                    mark(identity, config, calibration, doubles)
            threshold = calibration.threshold if rule == "calibrated" else float("nan")
            result = score(cleaned, truth, threshold)
            print(
                f"| {seed} | {rule} | {result.f1:.4f} | {result.precision:.4f} | "
                f"{result.recall:.4f} | {result.doubles} of {2 * WORLD.duplicates} | "
                f"{result.lost} | {result.threshold:.3f} |",
                flush=True,
            )
    print(
        f"\n{platform.platform()}, {platform.machine()}, {torch.get_num_threads()} threads, "
        f"{time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
