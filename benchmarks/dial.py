"""What similarity a generator's dial gives, and how many images come out in a wanted band.

    python benchmarks/dial.py [--cemiface WEIGHTS]

Sampled vectors through the job `expand` with the small Vec2Face, and with a CemiFace of yours.
First for every value of the dial the measured cosine of images to their identity's vector, and the
curve that the dial is set by. Then for three bands within reach: how many images are in it at their
first draw, and how many without a dial, with the published noise or m; how many passed all checks
at their first draw and in the end; draws; how the kept ones fill the band; and why others were
refused.
"""

import argparse
import os
import platform
import shutil
import tempfile
from collections import Counter

import numpy as np
import ray
import torch

from actors.embed import EmbedActor
from expand import CORES, WANTED, build, new_people
from jobs import expand, screen, vectors
from raypipe import storage
from raypipe.identities import Identity, Image
from throughput import face_set, faces

NEW = 40  # vectors
EASY = ["expand.false_match_rate=0.1", f"expand.images={WANTED}"]  # room for a band


def run(work: str, *changes: str) -> list[Identity]:
    """The expanded people; what the job wrote before is deleted."""
    shutil.rmtree(f"{work}/expand", ignore_errors=True)
    expand.run(build(work, NEW, [*EASY, *changes]))
    return new_people(work)


def similarities(images: list[Image]) -> np.ndarray:
    return np.array([image.similarity for image in images])


def first(people: list[Identity]) -> list[Image]:
    """The images as they were drawn at first."""
    made = [image for person in people for image in person.images[1:]]
    return [image for image in made if "." not in image.image_id]


def measure(work: str, kind: str, *weights: str) -> None:
    what = (f"expand.kind={kind}", *weights)
    free = similarities(first(run(work, *what)))
    run(work, *what, "expand.band=[-1, 1]", "expand.attempts=1")
    curve = storage.read_json(f"{work}/expand/dial.json")["painters"][0]["curve"]
    print(f"{kind}, {NEW} vectors\n\n| dial | mean | spread | curve |\n|---|---|---|---|")
    for row in zip(curve["dials"], curve["means"], curve["spreads"], curve["fitted"], strict=True):
        print("| {:.1f} | {:.4f} | {:.4f} | {:.4f} |".format(*row))
    own = storage.read_json(f"{work}/expand/thresholds.json")["thresholds"]["own"]
    print(f"\nAn image needs {own:.3f} to pass.\n")
    print(
        "| band | in it at once | without | passed at once | in the end | draws an image "
        "| fifths of the band | refused |\n|---|---|---|---|---|---|---|---|"
    )
    low, high = max(own, min(curve["fitted"])), max(curve["fitted"])
    for start, end in ((0.0, 1.0), (0.0, 0.4), (0.5, 0.9)):
        band = (round(low + start * (high - low), 3), round(low + end * (high - low), 3))
        people = run(work, *what, f"expand.band={list(band)}")
        drawn = [image for person in people for image in person.images[1:]]
        begun = first(people)
        kept = [image for person in people for image in person.kept]
        filled = np.histogram(similarities(kept), 5, band)[0] / max(len(kept), 1)
        inside, before = (
            ((values >= band[0]) & (values <= band[1])).mean()
            for values in (similarities(begun), free)
        )
        reasons = Counter(image.rejected for image in drawn if image.rejected)
        print(
            f"| {band[0]} to {band[1]} | {inside:.1%} | {before:.1%} "
            f"| {np.mean([not image.rejected for image in begun]):.1%} "
            f"| {len(kept) / len(begun):.1%} | {len(drawn) / len(begun):.2f} "
            f"| {' '.join(f'{share:.0%}' for share in filled)} "
            f"| {', '.join(f'{reason} {number}' for reason, number in sorted(reasons.items()))} |",
            flush=True,
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cemiface", help="what train_cemiface wrote")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {CORES} cores, torch {torch.__version__}\n")
    with tempfile.TemporaryDirectory() as folder:
        people = faces(folder)
        EmbedActor(embedder={"kind": "dlib"})(people)
        clean = face_set(f"{folder}/clean", people)
        work = f"{folder}/work"
        os.makedirs(work)
        os.symlink(clean, f"{work}/clean")
        config = build(work, NEW, [])
        vectors.run(config)
        screen.run(config)
        measure(work, "vec2face")
        if arguments.cemiface:
            measure(work, "cemiface", f"expand.weights={os.path.abspath(arguments.cemiface)}")
        ray.shutdown()


if __name__ == "__main__":
    main()
