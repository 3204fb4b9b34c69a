"""The `train` job beside a hand-written PyTorch loop with a DataLoader, on the same JPEG files.

    python benchmarks/training.py [--rounds 2]

Both train the same network with the same head, batch and SGD on all cores, flips only. The loop
reads JPEG files with the DataLoader's worker processes; the job reads the assembled Parquet set
through Ray Data. Loop and job take turns; the first epoch of each run is left out, for it holds
what starts up. The share of a step that the job waits for data is that of the same epochs.

The job's workers keep the memory that they free. A loop that does so as well:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=1099511627776 MALLOC_ARENA_MAX=1 \\
        python benchmarks/training.py
"""

import argparse
import hashlib
import os
import platform
import tempfile
import time

import numpy as np
import pyarrow as pa
import ray
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from in_memory import People
from jobs import train
from jobs.work import begin
from raypipe import storage
from raypipe.config import Build, parse
from raypipe.heads import make_head
from raypipe.images import encode_jpeg
from raypipe.models.iresnet import EMBEDDING, iresnet
from raypipe.training_set import FLAT, to_parquet

CORES = os.cpu_count() or 1
IDENTITIES, IMAGES, BATCH, EPOCHS = 128, 8, 64, 3
DEPTH, WIDTH = "10", 16


class Files(Dataset):
    def __init__(self, folder: str) -> None:
        names = sorted(os.listdir(folder))
        self._items = [(f"{folder}/{name}", int(name.split("_")[0])) for name in names]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self._items[index]
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB")))
        image = pixels.permute(2, 0, 1).float().div_(127.5).sub_(1)
        return (image.flip(2) if torch.rand(()) < 0.5 else image), label


def loop(folder: str, config: Build) -> float:
    """Images a second of the hand-written loop."""
    torch.manual_seed(0)
    torch.set_num_threads(CORES)
    network = iresnet(DEPTH, width=WIDTH)
    head = make_head(config.train, EMBEDDING, IDENTITIES)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(
        Files(folder), BATCH, shuffle=True, num_workers=CORES, persistent_workers=True
    )
    start, seen = 0.0, 0
    for epoch in range(EPOCHS):
        if epoch == 1:
            start = time.perf_counter()
        for images, labels in loader:
            loss, _ = head.loss(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 5)
            optimizer.step()
            seen += len(labels) if epoch else 0
    return seen / (time.perf_counter() - start)


def job(config: Build) -> tuple[float, float]:
    """Images a second of the job, and its share of waiting."""
    train.run(config)
    root = storage.join(config.workspace, "train")
    epochs = storage.read_json(storage.join(root, "history.json"))["epochs"][1:]
    seconds = sum(epoch["seconds"] for epoch in epochs)
    waited = sum(epoch["wait_seconds"] for epoch in epochs)
    storage.delete(root)
    return sum(epoch["images"] for epoch in epochs) / seconds, waited / seconds


def make_set(folder: str) -> Build:
    """The same faces as JPEG files and as an assembled set."""
    config = parse(
        {
            "workspace": f"{folder}/run",
            "embedder": {"kind": "dlib"},
            "train": {
                "depth": DEPTH,
                "width": WIDTH,
                "epochs": EPOCHS,
                "batch_size": BATCH,
                "lr": 0.05,
                "lr_batch": BATCH,
                "milestones": [],
                "cpus_per_worker": CORES,
                "curriculum": {"schedule": "mixed"},
            },
        },
        "benchmark",
    )
    os.makedirs(f"{folder}/faces")
    faces = People(torch.device("cpu")).faces(0, IDENTITIES, IMAGES)
    rows = []
    for number, face in enumerate(faces):
        data, label = encode_jpeg(face), number // IMAGES
        storage.write_bytes(f"{folder}/faces/{label:04d}_{number:06d}.jpg", data)
        rows.append({"key": f"{number:07d}", "data": data, "label": label, "position": number})
        rows[-1] |= {"phase": 0}
    work = begin(config, job="assemble", settings={})
    table = to_parquet(pa.Table.from_pylist(rows, schema=FLAT))
    storage.write_bytes(work.path("parquet", "shard-000000.parquet"), table)
    work.finish({"images": len(rows)}, hashlib.sha256(table).hexdigest())
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    print(
        f"{platform.processor() or platform.machine()}, {CORES} cores, torch {torch.__version__}; "
        f"IResNet-{DEPTH}, width {WIDTH}, {IDENTITIES} identities × {IMAGES} images, batch {BATCH}"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = make_set(folder)
        # Ray's workers are nice by 15 otherwise, the loop is not: what else runs would count twice.
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        loops, jobs = [], []
        for number in range(2 * rounds + 1):
            if number % 2:
                rate, wait = job(config)
                print(f"job: {rate:.1f} images/s, {wait:.2%} of the time waiting", flush=True)
                jobs.append(rate)
            else:
                loops.append(loop(f"{folder}/faces", config))
                print(f"loop: {loops[-1]:.1f} images/s", flush=True)
        ray.shutdown()
    ratio = np.mean(jobs) / np.mean(loops)
    print(f"the job reaches {ratio:.3f} of the loop")


if __name__ == "__main__":
    main()
