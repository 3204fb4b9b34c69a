"""Trains recognizers on images in memory, by the trainer of the job and without Ray, and scores
them on people of the shipped DCGAN and on the ORL photographs. Used by other benchmarks."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from raypipe.batch_augment import draw
from raypipe.config.train import TrainConfig
from raypipe.images import decode
from raypipe.models.cemiface import enlarge
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.iresnet import EMBEDDING
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels
from raypipe.recognizer import Recognizer, flip_sum, normalised
from raypipe.schedule import Schedule, Steps
from raypipe.seeding import generator
from raypipe.training import Batch, Training
from raypipe.verification import read_pairs, squared_distances, unit, verify

SEED = 20_000  # not the training set's
Z_NOISE = 0.3
BATCH = 256
JUDGED, JUDGED_IMAGES, PAIRS = 200, 8, 3000


class People:
    """People of the shipped DCGAN, by their number."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._dcgan = DCGANGenerator()
        load_into(self._dcgan, shipped("dcgan_digiface.safetensors"))
        self._dcgan.eval().to(device)

    @torch.inference_mode()
    def faces(self, first: int, count: int, images: int) -> np.ndarray:
        """Faces of some of them, uint8 (count × images, 112, 112, 3)."""
        latents = []
        for number in range(first, first + count):
            rng = generator(SEED, f"person-{number}", stream="benchmark")
            noise = Z_NOISE * rng.standard_normal((images, LATENT))
            latents.append(rng.standard_normal(LATENT) + noise)
        z = torch.from_numpy(np.concatenate(latents).astype(np.float32)).to(self._device)
        return np.concatenate([to_pixels(enlarge(self._dcgan(part))) for part in z.split(BATCH)])


@torch.inference_mode()
def embeddings(network: torch.nn.Module, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    """Unit vectors of faces, float32 (N, 512), of image and mirrored image."""
    trained = Recognizer("", EMBEDDING, str(device), lambda images: network(normalised(images)))
    parts = [flip_sum(trained, part).cpu() for part in torch.from_numpy(pixels).split(BATCH)]
    return unit(torch.cat(parts).numpy())


class Judges:
    """Verification sets, embedded once for each recognizer.

    3,000 + 3,000 pairs of 200 people of the DCGAN in ten folds, nobody in two of them, and the ORL
    photographs of a pairs file.
    """

    def __init__(self, people: People, pairs_file: str | None) -> None:
        pixels, pairs, same, folds = _pairs_of_people(people)
        self._sets = {"DCGAN pairs": (pixels, pairs[:, 0], pairs[:, 1], same, folds)}
        if pairs_file:
            orl = read_pairs(pairs_file, "ORL")
            index = {data: k for k, data in enumerate(dict.fromkeys([*orl.first, *orl.second]))}
            shown = np.stack([decode(data, source="ORL") for data in index])
            places = [[index[data] for data in side] for side in (orl.first, orl.second)]
            self._sets["ORL"] = (shown, *places, orl.same, orl.folds)
        self.names = list(self._sets)

    def accuracies(self, network: torch.nn.Module, device: torch.device) -> list[float]:
        """Mean accuracy over the folds of each set."""
        found = []
        for pixels, first, second, same, folds in self._sets.values():
            vectors = embeddings(network, pixels, device)
            distances = squared_distances(vectors[first], vectors[second])
            found.append(float(np.mean(verify(distances, same, folds, [0.01]).accuracies)))
        return found


def _pairs_of_people(people: People) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    images = people.faces(5000, JUDGED, JUDGED_IMAGES)
    rng = generator(SEED, "pairs")
    pairs, same, folds = [], [], []
    each = JUDGED // 10
    for fold in range(10):
        members = range(fold * each, (fold + 1) * each)
        own = [
            (p * JUDGED_IMAGES + a, p * JUDGED_IMAGES + b)
            for p in members
            for a, b in itertools.combinations(range(JUDGED_IMAGES), 2)
        ]
        other = [
            (p * JUDGED_IMAGES + rng.integers(JUDGED_IMAGES), q * JUDGED_IMAGES + a)
            for p, q in itertools.combinations(members, 2)
            for a in range(JUDGED_IMAGES)
        ]
        for kind, label in ((own, True), (other, False)):
            chosen = rng.choice(len(kind), PAIRS // 10, replace=False)
            pairs += [kind[i] for i in chosen]
            same += [label] * len(chosen)
            folds += [fold] * len(chosen)
    return images, np.array(pairs), np.array(same), np.array(folds)


def train_in_memory(
    pixels: np.ndarray,
    labels: np.ndarray,
    config: TrainConfig,
    seed: int,
    device: torch.device,
    phases: np.ndarray | None = None,
) -> Training:
    """A finished training.

    Args:
        pixels: uint8 (N, 112, 112, 3), RGB.
        labels: int64 (N,), in [0, classes).
        phases: int (N,) of the images; none: one phase.
    """
    phases = np.zeros(len(labels), np.int64) if phases is None else phases
    schedule = Schedule(
        config.curriculum, phases, np.zeros(1, np.int64), epochs=config.epochs, seed=seed
    )
    steps = Steps.of(config.batch_size, config.micro_batch, 1)
    training = Training(config, int(labels.max()) + 1, seed, steps, device)
    faces, classes = torch.from_numpy(pixels), torch.from_numpy(labels)

    def batches(epoch: int) -> Iterator[Batch]:
        order = np.concatenate(steps.of_worker(schedule.windows(epoch), 0))
        for positions in order.reshape(-1, steps.micro):
            yield {
                "images": faces[positions],
                "labels": classes[positions],
                "positions": torch.from_numpy(positions),
                **draw(config.augment, seed, epoch, positions),
            }

    for epoch in range(config.epochs):
        images = schedule.length(epoch)
        training.run_epoch(batches(epoch), images, on_step=None)
        training.end_epoch(images)
    training.network.eval()
    return training
