"""Images a second of what a batch goes through before a recognizer trains on it.

    python benchmarks/augment.py

Random smooth pictures of 112×112, JPEG of quality 95, in batches of 128: decoding on one thread and
on all, and by nvImageCodec on the CPU and the GPU; drawing; augmenting with every preset on the CPU
and, where there is one, on a GPU. The best of some rounds counts. On a busy machine only the figure
per processor second says something, and only with one thread. Prints a Markdown table.
"""

import os
import platform
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch

from raypipe.batch_augment import augment, draw
from raypipe.batch_decode import decode_faces
from raypipe.config.augment import PRESETS, AugmentConfig
from raypipe.device_decode import DeviceDecoder, pack
from raypipe.images import encode_jpeg, resize

BATCH, ROUNDS = 128, 20


def measure(name: str, work: Callable[[int], object]) -> None:
    """A line of the table; the work on a batch gets the number of the round."""
    work(0)
    walls, cpus = [], []
    for number in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        work(number)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    print(f"| {name} | {BATCH / min(walls):,.0f} | {BATCH / min(cpus):,.0f} |")


def machine() -> str:
    """Name of the processor, and of the GPU where there is one."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            name = next((x.split(":")[1].strip() for x in lines if "model name" in x), name)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}"


def presets(device: str, name: str) -> None:
    """A line for every preset."""
    pixels = torch.from_numpy(pictures()).to(device)

    def run(drawn: list[dict[str, torch.Tensor]], number: int) -> None:
        augment({"images": pixels, **drawn[number]})
        if device == "cuda":
            torch.cuda.synchronize()

    for preset in PRESETS:
        config = AugmentConfig.preset(preset)
        drawn = [
            {key: value.to(device) for key, value in draw(config, 0, 0, positions(n)).items()}
            for n in range(ROUNDS)
        ]
        measure(f"augment, {preset}, {name}", lambda n, drawn=drawn: run(drawn, n))  # type: ignore


def pictures() -> np.ndarray:
    """uint8 (BATCH, 112, 112, 3)."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (BATCH, 14, 14, 3), dtype=np.uint8)
    return np.stack([resize(image, (112, 112)) for image in small])


def positions(number: int) -> np.ndarray:
    """Of the images of a batch."""
    return np.arange(number * BATCH, (number + 1) * BATCH)


def main() -> None:
    threads = os.cpu_count() or 1
    blobs = [encode_jpeg(image) for image in pictures()]
    sources = [""] * BATCH
    cv2.setNumThreads(1)

    def opencv(number: int) -> None:
        for blob in blobs:
            cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR_RGB)

    print(f"{machine()}; batches of {BATCH}, images a second, the best of {ROUNDS}\n")
    print("| | images/s | per processor second |\n|---|---:|---:|")
    for count in sorted({1, threads}):
        decoding = f"decode, {count} thread{'s' * (count > 1)}"
        measure(decoding, lambda _, count=count: decode_faces(blobs, sources, threads=count))  # type: ignore
    torch.set_num_threads(1)
    for device in ("cpu", "cuda:0") if torch.cuda.is_available() else ("cpu",):
        decoder = DeviceDecoder(torch.device(device), 1)

        def on_device(number: int, decoder=decoder, device=device) -> None:  # type: ignore
            decoder.decode(**pack(blobs), sources=sources)
            if device != "cpu":
                torch.cuda.synchronize()

        measure(f"decode by nvImageCodec, {device}, 1 thread", on_device)
    measure("decode by OpenCV, 1 thread, not used", opencv)
    hsface = AugmentConfig.preset("hsface")
    measure("draw, hsface", lambda number: draw(hsface, 0, 0, positions(number)))
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        presets("cpu", f"CPU, {count} thread{'s' * (count > 1)}")
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # as in `train`
        presets("cuda", "GPU")


if __name__ == "__main__":
    main()
