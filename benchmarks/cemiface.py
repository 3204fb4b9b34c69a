"""Does CemiFace paint at the similarity asked for, and which one trains the best recognizer?

    python benchmarks/cemiface.py WEIGHTS --pairs runs/demo/sample/pairs.parquet --grid grid.png

Inquiry faces are 100 people of the DCGAN that nothing was trained on, one face each. `sweep` paints
one image of each at nine similarities m from -0.2 to 1, from the same noise for all nine, and
embeds it: similarity is the cosine of features from the centre of the network, `raw` that of the
features as they are. The rank correlation (Spearman) of m and similarity is over the nine means,
over the nine images of a face (mean of the faces), and over all 900 images.

`recognizers` trains on 100 identities × 12 images at each of five similarities, with one recipe and
three seeds, and on the DCGAN's own images of as many people. Inquiry faces have a similarity under
0.3 to each other. Scores are the 10-fold accuracy on 3,000 + 3,000 pairs of 200 further people of
the DCGAN, and on the ORL photographs where --pairs names them.
"""

import argparse
import time

import numpy as np
import torch
from scipy.stats import spearmanr

from in_memory import BATCH, SEED, Judges, People, train_in_memory
from raypipe.config.embed import EmbedderConfig
from raypipe.config.train import TrainConfig
from raypipe.embedders import Embedder, open_embedder
from raypipe.images import encode_png
from raypipe.models.cemiface import CemiFace
from raypipe.models.vec2face import to_pixels
from raypipe.seeding import generator
from raypipe.verification import unit

SWEEP, FACES = np.linspace(-0.2, 1, 9), 100
TRAINED_AT, SEEDS = (1.0, 0.5, 0.2, 0.0, -0.3), 3
PEOPLE, IMAGES, CEILING = 100, 12, 0.3
STEPS = 20
RECIPE = TrainConfig(
    depth="10",
    width=16,
    epochs=20,
    batch_size=128,
    lr=0.1,
    lr_batch=128,
    warmup_epochs=1,
    milestones=[10, 16],
    margin=0.3,
    dropout=0.4,
)


class Studio:
    """The networks on a device."""

    def __init__(self, weights: str, device: torch.device) -> None:
        self.device = device
        self.network = CemiFace.from_checkpoint(weights).prepare(device)
        self.embedder: Embedder = open_embedder(EmbedderConfig(kind="dlib"), str(device))
        self.people = People(device)

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        parts = range(0, len(pixels), BATCH)
        return np.concatenate([self.embedder.embed(pixels[i : i + BATCH]) for i in parts])

    @torch.inference_mode()
    def paint(self, vectors: np.ndarray, similarity: np.ndarray, names: list[str]) -> np.ndarray:
        """An image of each vector; the noise is drawn by its name."""
        side, made = self.network.sizes.side, []
        for i in range(0, len(vectors), BATCH):
            noise = [
                generator(SEED, name, stream="noise").standard_normal((3, side, side), np.float32)
                for name in names[i : i + BATCH]
            ]
            inputs = (vectors[i : i + BATCH], similarity[i : i + BATCH], np.stack(noise))
            made.append(
                to_pixels(
                    self.network.sample(
                        *(torch.from_numpy(np.float32(x)).to(self.device) for x in inputs), STEPS
                    )
                )
            )
        return np.concatenate(made)

    def cosines(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        centre = self.network.centre.cpu().numpy()
        return (unit(first - centre) * unit(second - centre)).sum(axis=1)


def sweep(studio: Studio, grid: str | None) -> None:
    faces = studio.people.faces(0, FACES, 1)
    vectors = studio.embed(faces)
    names = [f"face-{k}" for k in range(FACES)]
    print("| m | similarity | spread | raw | spread |\n|---|---|---|---|---|")
    found, rows = [], [faces]
    for m in SWEEP:
        pixels = studio.paint(vectors, np.full(FACES, m), names)
        made = studio.embed(pixels)
        similarity = studio.cosines(made, vectors)
        raw = (unit(made) * unit(vectors)).sum(axis=1)
        found.append(similarity)
        rows.append(pixels)
        print(
            f"| {m:.2f} | {similarity.mean():.3f} | {similarity.std():.3f} | {raw.mean():.3f} "
            f"| {raw.std():.3f} |",
            flush=True,
        )
    table = np.array(found)  # m × face
    single = [spearmanr(SWEEP, column).statistic for column in table.T]
    print(
        f"\nrank correlation: of the means {spearmanr(SWEEP, table.mean(axis=1)).statistic:.3f}, "
        f"of a face's nine images {np.mean(single):.3f}, of all {table.size} images "
        f"{spearmanr(np.repeat(SWEEP, FACES), table.ravel()).statistic:.3f}\n"
    )
    if grid:
        shown = [np.concatenate(list(row[:12]), axis=1) for row in rows]
        with open(grid, "wb") as file:
            file.write(encode_png(np.concatenate(shown)))


def inquiries(studio: Studio) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Faces and features of people, every two with a similarity under the ceiling; who they are."""
    faces = studio.people.faces(1000, 3 * PEOPLE, 1)
    vectors = studio.embed(faces)
    directions = unit(vectors - studio.network.centre.cpu().numpy())
    chosen: list[int] = []
    for k, direction in enumerate(directions):
        if len(chosen) < PEOPLE and all(directions[chosen] @ direction < CEILING):
            chosen.append(k)
    return faces[chosen], vectors[chosen], [1000 + k for k in chosen]


def recognizers(studio: Studio, pairs_file: str | None) -> None:
    own_faces, vectors, who = inquiries(studio)
    judges = Judges(studio.people, pairs_file)
    labels = np.repeat(np.arange(len(vectors)), IMAGES)
    names = [f"recognizer-{k}" for k in range(len(labels))]
    sets: dict[str, np.ndarray] = {}
    start = time.perf_counter()
    for m in TRAINED_AT:
        pixels = studio.paint(vectors[labels], np.full(len(labels), m), names)
        pixels[::IMAGES] = own_faces  # the inquiry face is one of the images, as published
        sets[f"{m:g}"] = pixels
    seconds = time.perf_counter() - start
    sets["DCGAN"] = np.concatenate([studio.people.faces(k, 1, IMAGES) for k in who])
    print(
        f"{len(vectors)} identities × {IMAGES} images; painted "
        f"{len(labels) * len(TRAINED_AT) / seconds:.0f} images/s\n"
    )
    named = " | ".join(judges.names)
    print(f"| trained on m | similarity to the inquiry face | last loss | {named} |")
    print("|---|---|---|" + "---|" * len(judges.names))
    for name, pixels in sets.items():
        similarity = studio.cosines(studio.embed(pixels), vectors[labels])
        scores, losses = [], []
        for seed in range(SEEDS):
            trained = train_in_memory(pixels, labels, RECIPE, seed, studio.device)
            losses.append(trained.history[-1]["loss"])
            scores.append(judges.accuracies(trained.network, studio.device))
        cells = [f"{np.mean(s):.2%} ± {np.std(s):.2%}" for s in zip(*scores, strict=True)]
        print(
            f"| {name} | {similarity.mean():.3f} ± {similarity.std():.3f} | {np.mean(losses):.2f} "
            f"| {' | '.join(cells)} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="what train_cemiface wrote")
    parser.add_argument("--only", choices=["sweep", "recognizers"])
    parser.add_argument("--pairs", help="verification pairs of the ORL photographs")
    parser.add_argument("--grid", help="PNG to write: 12 faces, and below them the sweep")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{device}, torch {torch.__version__}\n")
    studio = Studio(arguments.weights, device)
    if arguments.only != "recognizers":
        sweep(studio, arguments.grid)
    if arguments.only != "sweep":
        recognizers(studio, arguments.pairs)


if __name__ == "__main__":
    main()
