"""Does cleaning help, and does the order help? Recognizers of the demo's sets, three seeds each.

    make demo && python benchmarks/curricula.py runs/demo [--only cleaning|schedules]

`cleaning`: the demo's base set as it came (with planted strangers, doubles and damaged folders)
against what `clean` kept of it. `schedules`: the demo's training set, whose phases are vectors'
people, prompts' people and the base set, under each schedule, and with phases by similarity to the
identity's centre. All with one recipe and the same number of epochs. Scores are the mean of ten
folds on pairs of people of the DCGAN that nothing was trained on, and on the ORL photographs: mean
and spread over the seeds.
"""

import argparse

import numpy as np
import torch

from in_memory import Judges, People, train_in_memory
from raypipe import storage
from raypipe.config.curriculum import CurriculumConfig
from raypipe.config.train import TrainConfig
from raypipe.faceset import FaceSet
from raypipe.images import ImageError, decode
from raypipe.train_rows import RowGroups

SEEDS = 3
CPU = torch.device("cpu")
RECIPE = {
    "depth": "10",
    "width": 8,
    "epochs": 4,
    "batch_size": 32,
    "lr": 0.1,
    "lr_batch": 32,
    "warmup_epochs": 0.3,
    "milestones": [3],
    "margin": 0.3,
    "dropout": 0.4,
    "curriculum": {"schedule": "mixed"},
}
SCHEDULES = {
    "mixed": {"schedule": "mixed"},
    "sequential, by source": {"schedule": "sequential"},
    "paced, by source": {"schedule": "paced"},
    "paced with fading 0.3, by source": {"schedule": "paced", "fade": 0.3},
    "paced, by similarity": {"schedule": "paced", "by": "similarity"},
}


def of_face_set(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Kept images of a face set that decode, and their identities."""
    pixels, labels = [], []
    for identity in FaceSet(path).iter_identities():
        if identity.rejected is not None:
            continue
        for image in identity.kept:
            try:
                face = decode(image.data, source=image.image_id)
            except ImageError:
                continue
            if face.shape == (112, 112, 3):
                pixels.append(face)
                labels.append(identity.identity_id)
    return np.stack(pixels), np.unique(labels, return_inverse=True)[1]


def of_training_set(rows: RowGroups) -> tuple[np.ndarray, np.ndarray]:
    table = rows.read(np.arange(rows.images), ("image", "label"))
    faces = [decode(image["bytes"].as_py(), source="set") for image in table["image"]]
    return np.stack(faces), rows.labels


def score(
    name: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    judges: Judges,
    curriculum: dict,
    phases: np.ndarray | None = None,
) -> None:
    config = TrainConfig(**(RECIPE | {"curriculum": curriculum}))
    scores, losses, seen = [], [], 0
    for seed in range(SEEDS):
        trained = train_in_memory(pixels, labels, config, seed, CPU, phases)
        losses.append(trained.history[-1]["loss"])
        seen = sum(epoch["images"] for epoch in trained.history)
        scores.append(judges.accuracies(trained.network, CPU))
    cells = [
        f"{100 * np.mean(s):.2f} ± {100 * np.std(s, ddof=1):.2f} %"
        for s in zip(*scores, strict=True)
    ]
    print(
        f"| {name} | {labels.max() + 1:,} | {seen:,} | {np.mean(losses):.2f} | "
        f"{' | '.join(cells)} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workspace", help="of a finished demo")
    parser.add_argument("--only", choices=["cleaning", "schedules"])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pairs = storage.join(arguments.workspace, "sample", "pairs.parquet")
    judges = Judges(People(CPU), pairs)
    columns = ["trained on", "identities", "images seen", "last loss", *judges.names]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    if arguments.only != "schedules":
        for name, job in (("base set as it came", "ingest"), ("base set, cleaned", "clean")):
            faces = of_face_set(storage.join(arguments.workspace, job))
            score(name, *faces, judges, RECIPE["curriculum"])
    if arguments.only != "cleaning":
        folder = storage.join(arguments.workspace, "assemble", "parquet")
        rows = RowGroups.of([entry.path for entry in storage.listdir(folder)])
        pixels, labels = of_training_set(rows)
        for name, settings in SCHEDULES.items():
            phases = rows.phases(CurriculumConfig(**settings))
            score(name, pixels, labels, judges, settings, phases)


if __name__ == "__main__":
    main()
