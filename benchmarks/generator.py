"""How well a generator for dlib's features keeps people apart, and how much an identity varies.

    python benchmarks/generator.py runs/generator/generator/generator.safetensors --grid grid.png

1,000 people of the DCGAN (z-noise 0.3, not those of configs/generator.yaml) are embedded, and the
law of their class means fitted. From it 200 vectors are drawn, 20 images made of each, and embedded
again. Genuine pairs are an image and the vector it was made from, impostor pairs an image and
another vector; TAR is at FAR 1 %, `centred` with the population's mean subtracted. `similarity` is
the mean cosine to the own vector and to the nearest other (centred). Variety is the mean distance
of two images of an identity: 1 − cosine of their embeddings (centred), and root mean square
difference of their pixels in [0, 255]; that of 200 people of the DCGAN stands beside it.

Modes: `same` vector for all 20 images; `reference` and `mixture` as published (σ 0.2, and 0.3, 0.5,
0.7), in units of the law's spread, and the mixture in half of it.
"""

import argparse
import itertools
from collections.abc import Callable

import numpy as np
import torch

from raypipe import perturb
from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import Embedder, open_embedder
from raypipe.images import encode_png
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import Vec2Face, to_pixels
from raypipe.models.vec2face_sizes import INFERENCE
from raypipe.seeding import generator
from raypipe.vectors import fit, sample

SEED = 20_000  # not the training set's
PEOPLE, PEOPLE_IMAGES, Z_NOISE = 1000, 4, 0.3
VECTORS, IMAGES = 200, 20


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@torch.inference_mode()
def person(network: DCGANGenerator, number: int, images: int) -> np.ndarray:
    """Faces of a person of the DCGAN, uint8 (images, 112, 112, 3)."""
    rng = generator(SEED, f"person-{number}", stream="benchmark")
    latents = rng.standard_normal(LATENT) + Z_NOISE * rng.standard_normal((images, LATENT))
    faces = network(torch.from_numpy(latents.astype(np.float32)))
    return to_pixels(torch.nn.functional.interpolate(faces, size=112, mode="bicubic"))


@torch.inference_mode()
def paint(network: Vec2Face, vectors: np.ndarray, name: str) -> np.ndarray:
    """One image of each vector, uint8 (n, 112, 112, 3)."""
    drawn = [
        INFERENCE.draw(generator(SEED, name, k, "tokens"), network.sizes.side**2)
        for k in range(len(vectors))
    ]
    noise = torch.from_numpy(np.stack([noise for noise, _ in drawn]))
    rates = torch.tensor([rate for _, rate in drawn], dtype=torch.float64)
    return to_pixels(network(torch.from_numpy(vectors), noise, rates))


def variety(embeddings: np.ndarray, pixels: np.ndarray, centre: np.ndarray) -> tuple[float, float]:
    """Mean distances of two images: embeddings (n, D), and uint8 (n, 112, 112, 3)."""
    pairs = list(itertools.combinations(range(len(pixels)), 2))
    a, b = np.array(pairs).T
    units = unit(embeddings - centre)
    small = pixels[:, ::2, ::2].astype(np.float32)
    difference = np.sqrt(((small[a] - small[b]) ** 2).mean(axis=(1, 2, 3)))
    return float((1 - (units[a] * units[b]).sum(axis=1)).mean()), float(difference.mean())


def rates(embeddings: np.ndarray, vectors: np.ndarray) -> tuple[float, float, float, float]:
    """TAR at FAR 1 %, AUC, mean similarity to the own vector, and to the nearest other.

    Embeddings (people, images, D), vectors (people, D).
    """
    people, images, _ = embeddings.shape
    similarity = unit(embeddings.reshape(people * images, -1)) @ unit(vectors).T
    own = np.repeat(np.arange(people), images)
    genuine = similarity[np.arange(len(own)), own]
    others = np.ones_like(similarity, bool)
    others[np.arange(len(own)), own] = False
    impostor = np.sort(similarity[others])
    threshold = impostor[int(np.ceil(0.99 * len(impostor))) - 1]
    below = np.searchsorted(impostor, genuine, "left") + np.searchsorted(impostor, genuine, "right")
    nearest = np.where(others, similarity, -1).max(axis=1)
    return (
        float((genuine > threshold).mean()),
        float(below.mean() / 2 / len(impostor)),
        float(genuine.mean()),
        float(nearest.mean()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="what train_generator wrote")
    parser.add_argument("--grid", help="PNG to write: a row for each of 8 vectors and each mode")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    embedder: Embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")
    dcgan = DCGANGenerator()
    load_into(dcgan, shipped("dcgan_digiface.safetensors"))
    dcgan.eval()
    network = Vec2Face.from_checkpoint(arguments.weights).prepare("cpu")
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters")

    def embed(pixels: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [embedder.embed(pixels[i : i + 32]) for i in range(0, len(pixels), 32)]
        )

    means = [embed(person(dcgan, k, PEOPLE_IMAGES)).mean(axis=0) for k in range(PEOPLE)]
    law = fit(iter(np.float64(means)), "the DCGAN's people")
    centre = law.mean.astype(np.float32)
    distances = []
    for k in range(PEOPLE, PEOPLE + VECTORS):
        pixels = person(dcgan, k, IMAGES)
        distances.append(variety(embed(pixels), pixels, centre))
    print(
        f"{'':12} {'TAR':>6} {'AUC':>7}  centred {'TAR':>6} {'AUC':>7}  similarity own, nearest"
        "  variety embedding, pixels"
    )
    true = np.mean(distances, axis=0)
    print(f"{'DCGAN':12} {'':47} {'':24} {true[0]:10.3f} {true[1]:14.1f}")

    vectors = sample(law, VECTORS, ceiling=1.0, seed=SEED).vectors

    def mixture(scale: float) -> Callable[[np.ndarray, str], np.ndarray]:
        return lambda vector, name: perturb.mixture(
            vector, range(IMAGES), count=IMAGES, seed=SEED, identity_id=name, scale=scale
        )

    modes: dict[str, Callable[[np.ndarray, str], np.ndarray]] = {
        "same": lambda vector, name: np.repeat(vector[None], IMAGES, axis=0),
        "reference": lambda vector, name: perturb.reference(
            vector, range(IMAGES), seed=SEED, identity_id=name, scale=law.spread
        ),
        "half mixture": mixture(law.spread / 2),
        "mixture": mixture(law.spread),
    }
    rows = []
    for mode, vary in modes.items():
        found, distances = [], []
        for k, vector in enumerate(vectors):
            pixels = paint(network, vary(vector, f"vector-{k}"), f"vector-{k}")
            found.append(embed(pixels))
            distances.append(variety(found[-1], pixels, centre))
            if k < 8:
                rows.append(np.concatenate(list(pixels[:10]), axis=1))
        made = np.stack(found)
        tar, auc, _, _ = rates(made, vectors)
        centred = rates(made - centre, vectors - centre)
        mean = np.mean(distances, axis=0)
        print(
            f"{mode:12} {tar:6.3f} {auc:7.4f} {'':8} {centred[0]:6.3f} {centred[1]:7.4f}"
            f" {centred[2]:11.3f} {centred[3]:11.3f} {mean[0]:19.3f} {mean[1]:14.1f}",
            flush=True,
        )
    if arguments.grid:
        with open(arguments.grid, "wb") as file:
            file.write(encode_png(np.concatenate(rows)))


if __name__ == "__main__":
    main()
