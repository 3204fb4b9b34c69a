"""A base set of generated people with planted faults, and the truth about it.

A person is a latent z of a DCGAN; an image of the person is G(z + noise). Everything is drawn from
the seed, so the same settings give the same bytes.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from raypipe.config.sample import SampleConfig
from raypipe.images import encode_jpeg
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.seeding import generator

SIZE = 112  # pixels, the ArcFace crop
_NEAR_QUALITY = 70


@dataclass(frozen=True, kw_only=True)
class Leak:
    """A person of a gallery to plant in the base set.

    Attributes:
        gallery: name of the gallery.
        gallery_identity: the person's identity there.
        images: JPEG bytes, aligned, none of them in the gallery.
    """

    gallery: str
    gallery_identity: str
    images: list[bytes]


@dataclass(frozen=True, kw_only=True)
class _File:
    """What an image of the base set shows: `person`, as drawn for image `draw` of a folder."""

    person: int
    draw: int
    fault: str | None = None


def weights_path(config: SampleConfig) -> str:
    """File of the generator's weights."""
    return config.weights or shipped("dcgan_digiface.safetensors")


def make_base(
    config: SampleConfig,
    seed: int,
    root: str,
    leaks: Sequence[Leak] = (),
    progress: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Writes `root/base/NNNNNN/NNN.jpg`: `config.identities` generated people and the leaked ones.

    The folders' numbers are their order; where the leaks and the faults stand is drawn.

    Args:
        config: how many of what; `config.leaks` is the number the caller makes `leaks` from.
        seed: of everything drawn.
        root: local folder.
        leaks: real people to plant.
        progress: called once a folder is written.

    Returns:
        The truth, as JSON: "identities" (folder → person and planted fault), "files" (path from
        `base` → person, fault, and for a near-duplicate the image it repeats), "duplicates" (pairs
        of folders of one person), "too_few", "leaks" (folder, gallery, gallery_identity), and
        "faults" (how many files have each).

    Raises:
        UserError: where the weights do not fit the generator.
    """
    network = DCGANGenerator()
    load_into(network, weights_path(config))
    network.eval()
    rng = generator(seed, "base", stream="plan")
    people, few, duplicates = _people(config, rng)
    plan = _plan(config, people, few, rng)
    total = config.identities + len(leaks)
    leaked = sorted(int(i) for i in rng.choice(total, len(leaks), replace=False))
    numbers = [i for i in range(total) if i not in leaked]

    identities: dict[str, dict[str, str | None]] = {}
    files: dict[str, dict[str, str | None]] = {}
    for i, (number, planned) in enumerate(zip(numbers, plan, strict=True)):
        folder = f"{number:06d}"
        twice = people.count(people[i]) > 1
        fault = "too_few" if i in few else "duplicate" if twice else None
        identities[folder] = {"person": _person(people[i]), "fault": fault}
        with _one_thread():
            encoded = _images(network, config, seed, i, planned)
        for k, (file, data) in enumerate(zip(planned, encoded, strict=True)):
            path = f"{folder}/{k:03d}.jpg"
            _write(f"{root}/base/{path}", data)
            files[path] = {"person": _person(file.person), "fault": file.fault}
            if file.fault == "near_duplicate":
                files[path]["of"] = f"{folder}/{file.draw:03d}.jpg"
        progress()
    for number, leak in zip(leaked, leaks, strict=True):
        folder, person = f"{number:06d}", f"{leak.gallery}/{leak.gallery_identity}"
        identities[folder] = {"person": person, "fault": "leak"}
        for k, data in enumerate(leak.images):
            _write(f"{root}/base/{folder}/{k:03d}.jpg", data)
            files[f"{folder}/{k:03d}.jpg"] = {"person": person, "fault": None}
        progress()
    return {
        "seed": seed,
        "identities": identities,
        "files": files,
        "duplicates": [[f"{numbers[a]:06d}", f"{numbers[b]:06d}"] for a, b in duplicates],
        "too_few": [f"{numbers[i]:06d}" for i in few],
        "leaks": [
            {
                "identity": f"{number:06d}",
                "gallery": leak.gallery,
                "gallery_identity": leak.gallery_identity,
            }
            for number, leak in zip(leaked, leaks, strict=True)
        ],
        "faults": dict(Counter(file["fault"] for file in files.values() if file["fault"])),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """Rounding must not depend on the number of cores; small batches gain nothing by them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _person(number: int) -> str:
    return f"person-{number:06d}"


def _people(
    config: SampleConfig, rng: np.random.Generator
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Person of every folder, folders with too few images, and pairs of folders of one person.

    One folder of a pair is in the first half without its last, the other in the second half: they
    are never neighbours.
    """
    people = list(range(config.identities))
    half = config.identities // 2
    first = rng.choice(half - 1, config.duplicates, replace=False)
    second = half + rng.choice(config.identities - half, config.duplicates, replace=False)
    duplicates = sorted((int(a), int(b)) for a, b in zip(first, second, strict=True))
    for a, b in duplicates:
        people[b] = people[a]
    single = [i for i in range(config.identities) if people.count(people[i]) == 1]
    few = sorted(int(i) for i in rng.choice(single, config.too_few, replace=False))
    return people, few, duplicates


def _plan(
    config: SampleConfig, people: list[int], few: list[int], rng: np.random.Generator
) -> list[list[_File]]:
    """The files of every folder; folders with too few images have no other fault."""
    plan = [
        [
            _File(person=person, draw=k)
            for k in range(config.too_few_images if i in few else config.images)
        ]
        for i, person in enumerate(people)
    ]
    cells = [(i, k) for i in range(len(plan)) if i not in few for k in range(config.images)]
    order = [cells[int(j)] for j in rng.permutation(len(cells))]
    for fault, share in (
        ("stranger", config.strangers),
        ("corrupt", config.corrupt),
        ("truncated", config.truncated),
        ("near_duplicate", config.near_duplicates),
    ):
        count = round(share * len(cells))
        for i, k in order[:count]:
            file = replace(plan[i][k], fault=fault)
            if fault == "stranger":
                others = sorted(set(people) - {people[i]})
                file = replace(file, person=int(rng.choice(others)))
            elif fault == "near_duplicate":
                whole = [n for n, other in enumerate(plan[i]) if other.fault is None and n != k]
                if not whole:  # nothing to repeat: the image stays as it is
                    continue
                file = replace(file, draw=int(rng.choice(whole)))
            plan[i][k] = file
        order = order[count:]
    return plan


def _images(
    network: DCGANGenerator, config: SampleConfig, seed: int, folder: int, planned: list[_File]
) -> list[bytes]:
    """File contents of a folder. One folder is one model batch, so the bytes never vary."""
    latents = []
    for file in planned:
        z = generator(seed, _person(file.person), stream="z").standard_normal(LATENT)
        noise = generator(seed, f"folder-{folder}", file.draw, "noise").standard_normal(LATENT)
        latents.append(z + config.z_noise * noise)
    faces = _faces(network, np.stack(latents).astype(np.float32))
    encoded = []
    for k, (file, face) in enumerate(zip(planned, faces, strict=True)):
        if file.fault == "near_duplicate":
            encoded.append(encode_jpeg(_shifted_and_brighter(face), _NEAR_QUALITY))
            continue
        data = encode_jpeg(face)
        if file.fault == "corrupt":
            garbage = generator(seed, f"folder-{folder}", k, "garbage").bytes(len(data))
            data = data[:3] + garbage[3:]  # begins like a JPEG
        elif file.fault == "truncated":
            data = data[: len(data) // 2]
        encoded.append(data)
    return encoded


@torch.inference_mode()
def _faces(network: DCGANGenerator, latents: np.ndarray) -> np.ndarray:
    """float32 (N, 100) to uint8 (N, 112, 112, 3), RGB: made at 64×64, then bicubic."""
    small = ((network(torch.from_numpy(latents)) + 1) * 127.5).round()
    large = F.interpolate(small, size=SIZE, mode="bicubic", align_corners=False)
    return large.clamp(0, 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def _shifted_and_brighter(face: np.ndarray) -> np.ndarray:
    """The same picture one pixel to the left and 4 % brighter, uint8 (H, W, 3)."""
    shifted = np.concatenate([face[:, 1:], face[:, -1:]], axis=1)
    return np.clip(shifted * 1.04, 0, 255).astype(np.uint8)


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
