"""How often AttrOP reaches its goals on a generator for dlib's features, and how long it takes.

    python benchmarks/attributes.py raypipe/weights/vec2face_small.safetensors --grid attributes.png

100 vectors are drawn as in benchmarks/generator.py, from the law of the class means of 1,000 people
of the DCGAN. For each case, every vector is optimised for one image, with the estimators that ship
with raypipe, 60 steps at most. `reached` is the share of vectors whose image is at all its goals at
the end, `before` at the start. `distance` is 1 − cosine of the image's feature to the vector, with
the population's mean subtracted, before and after. Then for each attribute its mean distance from
the goal, before and after, as the estimator sees it; and as dlib's detector and landmarks do, which
the estimator learnt from and which no gradient has seen (over the images in which they find a face
both times). The last case cannot converge.
"""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generator import PEOPLE, PEOPLE_IMAGES, SEED, person
from raypipe import estimators
from raypipe.attributes import AttributeControl, Optimised, short_of
from raypipe.config.attributes import AttributeConfig, AttributesConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import Embedder, open_embedder
from raypipe.estimator_labels import Labeller
from raypipe.generator_losses import FaceFeatures
from raypipe.images import encode_png
from raypipe.models.dcgan import DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import Vec2Face, to_pixels
from raypipe.models.vec2face_sizes import INFERENCE
from raypipe.seeding import generator
from raypipe.vectors import Distribution, fit, sample

VECTORS, BATCH, STEPS = 100, 20, 60


def goal(name: str, **settings: Any) -> AttributeConfig:
    return AttributeConfig(name=name, estimator=f"raypipe.estimators:face_{name}", **settings)


QUALITY = goal("quality", goal="at_least", value=2.0, tolerance=0.1, weight=10.0)
YAW = goal("yaw", goal="magnitude", value=[0.0, 10.0, 20.0, 30.0], tolerance=5.0)
PITCH = goal("pitch", goal="value", value=[0.0, 5.0, 10.0], tolerance=5.0)
CASES = {
    "quality": [QUALITY],
    "yaw": [YAW],
    "pitch": [PITCH],
    "quality and yaw": [QUALITY, YAW],
    "yaw of 170°": [goal("yaw", goal="magnitude", value=170.0, tolerance=5.0)],
}


def people(embedder: Embedder) -> Distribution:
    """The law of the DCGAN's people, as in benchmarks/generator.py."""
    dcgan = DCGANGenerator()
    load_into(dcgan, shipped("dcgan_digiface.safetensors"))
    dcgan.eval()
    means = [embedder.embed(person(dcgan, k, PEOPLE_IMAGES)).mean(axis=0) for k in range(PEOPLE)]
    return fit(iter(np.float64(means)), "the DCGAN's people")


def optimise(control: AttributeControl, *inputs: Tensor) -> Optimised:
    """All vectors, a batch at a time."""
    parts = [
        control.optimise(*(x[first : first + BATCH] for x in inputs))
        for first in range(0, VECTORS, BATCH)
    ]
    names = Optimised.__dataclass_fields__
    return Optimised(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})


def by_dlib(images: np.ndarray, goals: Sequence[AttributeConfig]) -> Tensor:
    """Attributes (n, A) by dlib; NaN where it finds no face."""
    labeller = Labeller()
    labels = [labeller.label(image) for image in images]
    return torch.tensor([[getattr(label, item.name) for item in goals] for label in labels])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="what train_generator wrote")
    parser.add_argument("--grid", help="PNG to write: 12 vectors before, and after each case")
    parser.add_argument("--distance", type=float, default=0.6, help="identity distance allowed")
    parser.add_argument("--weight", type=float, default=10.0, help="of the identity distance")
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=STEPS, help="at most")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")
    law = people(embedder)
    network = Vec2Face.from_checkpoint(arguments.weights).prepare("cpu")
    faces = FaceFeatures(embedder)
    vectors = torch.from_numpy(sample(law, VECTORS, ceiling=1.0, seed=SEED).vectors)
    drawn = [
        INFERENCE.draw(generator(SEED, f"vector-{k}", 0, "tokens"), network.sizes.side**2)
        for k in range(VECTORS)
    ]
    noise = torch.from_numpy(np.stack([noise for noise, _ in drawn]))
    rates = torch.tensor([rate for _, rate in drawn], dtype=torch.float64)

    @torch.inference_mode()
    def paint(vectors: Tensor) -> np.ndarray:
        return to_pixels(network(vectors, noise, rates))

    before = paint(vectors)
    rows = [before]
    print(f"{'':15} before reached steps images/s seconds        distance")
    for name, goals in CASES.items():
        wanted = torch.tensor([[item.value_for(k) for item in goals] for k in range(VECTORS)])
        loaded = [estimators.load(item, "cpu") for item in goals]
        ends = []
        for steps in (0, arguments.steps):
            config = AttributesConfig(
                goals=goals,
                steps=steps,
                rate=arguments.rate,
                identity_weight=arguments.weight,
                identity_distance=arguments.distance,
            )
            control = AttributeControl(
                config,
                network,
                faces,
                loaded,
                spread=law.spread,
                centre=torch.from_numpy(law.mean.astype(np.float32)),
            )
            begun = time.perf_counter()
            ends.append(optimise(control, vectors, vectors, wanted, noise, rates))
            seconds = time.perf_counter() - begun
        start, end = ends
        rows.append(paint(end.vectors))
        ours = [short_of(goals, part.values, wanted).mean(0) for part in ends]
        dlib = [by_dlib(images, goals) for images in (before, rows[-1])]
        found = ~(dlib[0] + dlib[1]).isnan().any(1)
        theirs = [short_of(goals, values[found], wanted[found]).mean(0) for values in dlib]
        print(
            f"{name:15} {start.converged.float().mean():6.2f} {end.converged.float().mean():7.2f} "
            f"{end.steps.float().mean():5.1f} {VECTORS / seconds:8.2f} {seconds:7.1f}   "
            f"{start.distances.mean():.3f} → {end.distances.mean():.3f}",
            *(
                f"{item.name} {ours[0][k]:.2f} → {ours[1][k]:.2f} (dlib {theirs[0][k]:.2f} → "
                f"{theirs[1][k]:.2f}, {int(found.sum())} faces)"
                for k, item in enumerate(goals)
            ),
            sep="   ",
            flush=True,
        )
    if arguments.grid:
        with open(arguments.grid, "wb") as file:
            file.write(encode_png(np.concatenate([np.concatenate(list(r[:12]), 1) for r in rows])))


if __name__ == "__main__":
    main()
