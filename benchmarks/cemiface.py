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
import itertools
import time

import numpy as np
import torch
from scipy.stats import spearmanr

from raypipe import training
from raypipe.config.embed import EmbedderConfig
from raypipe.config.train import TrainConfig
from raypipe.embedders import Embedder, open_embedder
from raypipe.images import decode, encode_png
from raypipe.models.cemiface import CemiFace, enlarge
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels
from raypipe.recognizer import flip_sum
from raypipe.seeding import generator, torch_seed
from raypipe.verification import read_pairs, squared_distances, unit, verify

SEED = 20_000  # not the training set's
Z_NOISE = 0.3
SWEEP, FACES = np.linspace(-0.2, 1, 9), 100
TRAINED_AT, SEEDS = (1.0, 0.5, 0.2, 0.0, -0.3), 3
PEOPLE, IMAGES, CEILING = 100, 12, 0.3
JUDGED, JUDGED_IMAGES, PAIRS = 200, 8, 3000
STEPS, BATCH = 20, 256
RECIPE = TrainConfig(
    depth="10",
    width=16,
    epochs=20,
    batch_size=128,
    lr=0.1,
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
        self.dcgan = DCGANGenerator()
        load_into(self.dcgan, shipped("dcgan_digiface.safetensors"))
        self.dcgan.eval().to(device)

    @torch.inference_mode()
    def people(self, first: int, count: int, images: int) -> np.ndarray:
        """Faces of people of the DCGAN, uint8 (count × images, 112, 112, 3)."""
        latents = []
        for number in range(first, first + count):
            rng = generator(SEED, f"person-{number}", stream="benchmark")
            noise = Z_NOISE * rng.standard_normal((images, LATENT))
            latents.append(rng.standard_normal(LATENT) + noise)
        z = torch.from_numpy(np.concatenate(latents).astype(np.float32)).to(self.device)
        return np.concatenate([to_pixels(enlarge(self.dcgan(part))) for part in z.split(BATCH)])

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
    faces = studio.people(0, FACES, 1)
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
    faces = studio.people(1000, 3 * PEOPLE, 1)
    vectors = studio.embed(faces)
    directions = unit(vectors - studio.network.centre.cpu().numpy())
    chosen: list[int] = []
    for k, direction in enumerate(directions):
        if len(chosen) < PEOPLE and all(directions[chosen] @ direction < CEILING):
            chosen.append(k)
    return faces[chosen], vectors[chosen], [1000 + k for k in chosen]


def judged(studio: Studio) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images of people, and pairs of them with their folds; nobody is in two folds."""
    images = studio.people(5000, JUDGED, JUDGED_IMAGES)
    rng = generator(SEED, "pairs")
    pairs, same, folds = [], [], []
    each = JUDGED // 10
    for fold in range(10):
        people = range(fold * each, (fold + 1) * each)
        own = [
            (p * JUDGED_IMAGES + a, p * JUDGED_IMAGES + b)
            for p in people
            for a, b in itertools.combinations(range(JUDGED_IMAGES), 2)
        ]
        other = [
            (p * JUDGED_IMAGES + rng.integers(JUDGED_IMAGES), q * JUDGED_IMAGES + a)
            for p, q in itertools.combinations(people, 2)
            for a in range(JUDGED_IMAGES)
        ]
        for kind, label in ((own, True), (other, False)):
            chosen = rng.choice(len(kind), PAIRS // 10, replace=False)
            pairs += [kind[i] for i in chosen]
            same += [label] * len(chosen)
            folds += [fold] * len(chosen)
    return images, np.array(pairs), np.array(same), np.array(folds)


def recognizer(pixels: np.ndarray, labels: np.ndarray, seed: int, device: torch.device):
    """A network trained on images, in an order of its own in every epoch."""
    module = training.Recognition(RECIPE, int(labels.max()) + 1, seed).to(device)
    optimizer = training.make_optimizer(module, RECIPE)
    steps = -(-len(pixels) // RECIPE.batch_size)
    faces, classes = torch.from_numpy(pixels), torch.from_numpy(labels)
    for epoch in range(RECIPE.epochs):
        rng = generator(seed, "recognizer", epoch)
        order = rng.permutation(len(pixels))
        mirrored = rng.random(len(pixels)) < 0.5

        def batches(order: np.ndarray = order, mirrored: np.ndarray = mirrored):
            for i in range(0, len(order), RECIPE.batch_size):
                places = order[i : i + RECIPE.batch_size]
                images = faces[places]
                turn = torch.from_numpy(mirrored[places])
                images[turn] = images[turn].flip(2)
                positions = torch.arange(i, i + len(places))
                yield {"images": images, "labels": classes[places], "positions": positions}

        torch.manual_seed(torch_seed(seed, "recognizer", epoch, "dropout"))
        result = training.train_epoch(
            module,
            optimizer,
            batches(),
            config=RECIPE,
            epoch=epoch,
            steps=steps,
            on_step=lambda *_: None,
        )
    return module.network.eval(), result


@torch.inference_mode()
def embeddings(network: torch.nn.Module, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    parts = [
        flip_sum(network, part.to(device)).cpu() for part in torch.from_numpy(pixels).split(BATCH)
    ]
    return unit(torch.cat(parts).numpy())


def recognizers(studio: Studio, pairs_file: str | None) -> None:
    own_faces, vectors, who = inquiries(studio)
    images, places, same, folds = judged(studio)
    orl = read_pairs(pairs_file, "ORL") if pairs_file else None
    if orl:
        index = {data: k for k, data in enumerate(dict.fromkeys([*orl.first, *orl.second]))}
        shown = np.stack([decode(data, source="ORL") for data in index])
    labels = np.repeat(np.arange(len(vectors)), IMAGES)
    names = [f"recognizer-{k}" for k in range(len(labels))]
    sets: dict[str, np.ndarray] = {}
    start = time.perf_counter()
    for m in TRAINED_AT:
        pixels = studio.paint(vectors[labels], np.full(len(labels), m), names)
        pixels[::IMAGES] = own_faces  # the inquiry face is one of the images, as published
        sets[f"{m:g}"] = pixels
    seconds = time.perf_counter() - start
    sets["DCGAN"] = np.concatenate([studio.people(k, 1, IMAGES) for k in who])
    print(
        f"{len(vectors)} identities × {IMAGES} images; painted "
        f"{len(labels) * len(TRAINED_AT) / seconds:.0f} images/s\n"
    )
    print("| trained on m | similarity to the inquiry face | last loss | DCGAN pairs | ORL |")
    print("|---|---|---|---|---|")
    for name, pixels in sets.items():
        similarity = studio.cosines(studio.embed(pixels), vectors[labels])
        scores: list[list[float]] = [[], []]
        losses = []
        for seed in range(SEEDS):
            network, result = recognizer(pixels, labels, seed, studio.device)
            losses.append(result["loss"])
            found = embeddings(network, images, studio.device)
            distances = squared_distances(found[places[:, 0]], found[places[:, 1]])
            scores[0].append(np.mean(verify(distances, same, folds, [0.01]).accuracies))
            if orl:
                found = embeddings(network, shown, studio.device)
                distances = squared_distances(
                    found[[index[x] for x in orl.first]], found[[index[x] for x in orl.second]]
                )
                scores[1].append(np.mean(verify(distances, orl.same, orl.folds, [0.01]).accuracies))
        cells = [f"{np.mean(s):.2%} ± {np.std(s):.2%}" if s else "" for s in scores]
        print(
            f"| {name} | {similarity.mean():.3f} ± {similarity.std():.3f} | {np.mean(losses):.2f} "
            f"| {cells[0]} | {cells[1]} |",
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
