"""What a second opinion is worth, what it costs, and how fast it comes.

    python benchmarks/judge.py

The service is the local judge of the tests, on loopback: it sees the sheets, and errs and fails at
set rates. `fusion`: 200 people of the shipped DCGAN, 12 images each, 8 % of them strangers; the
clustering expert is the cleaning job's on dlib features; the judge is wrong about 10 % of the faces
and 20 % of its answers are faults (429, 500, cut off, malformed, refused). Five seeds. `speed`:
1,000 sheets at a delay of 1 s and 64 calls at a time, against 1,000 / 64 s; memory of the client
before and after. `tokens`: planned against counted by the judge.
"""

import asyncio
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch

sys.path.append(str(Path(__file__).parents[1]))
sys.path.append(str(Path(__file__).parents[1] / "tests"))

from local_judge import KEY, Behaviour, LocalJudge

from raypipe.cleaning.calibration import calibrate
from raypipe.cleaning.cluster import calibrated_cluster
from raypipe.config.embed import EmbedderConfig
from raypipe.config.judge import JudgeConfig, SheetConfig
from raypipe.embedders import open_embedder
from raypipe.judging import fusion, sheets
from raypipe.judging.answers import Answers
from raypipe.judging.client import Client, Opinion, expected_tokens
from raypipe.judging.doubt import doubts
from raypipe.judging.purse import Purse
from raypipe.judging.question import Question
from raypipe.judging.sheets import Sheet
from raypipe.models.cemiface import enlarge
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels
from raypipe.seeding import generator

PEOPLE, IMAGES, STRANGERS, Z_NOISE = 200, 12, 0.08, 0.3
SEEDS = 5
WRONG = 0.1
FAULTS = {"429": 0.06, "500": 0.04, "truncated": 0.02, "malformed": 0.05, "refusal": 0.03}
CALLS, DELAY, CONCURRENCY = 1000, 1.0, 64


@torch.inference_mode()
def world(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces uint8 (PEOPLE × IMAGES, 112, 112, 3), and which of them are strangers."""
    network = DCGANGenerator()
    load_into(network, shipped("dcgan_digiface.safetensors"))
    rng = generator(seed, "judge", stream="benchmark")
    z = np.repeat(rng.standard_normal((PEOPLE, LATENT)), IMAGES, axis=0)
    strangers = rng.random(len(z)) < STRANGERS
    z[strangers] = rng.standard_normal((strangers.sum(), LATENT))
    z += Z_NOISE * rng.standard_normal(z.shape)
    made = [network.eval()(part) for part in torch.from_numpy(z.astype(np.float32)).split(256)]
    return np.concatenate([to_pixels(enlarge(part)) for part in made]), strangers


def clustering(faces: np.ndarray, seed: int) -> np.ndarray:
    """Probability that an image shows somebody else, by the cleaning job's rule and laws."""
    embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")
    vectors = np.concatenate(
        [embedder.embed(faces[i : i + 256]) for i in range(0, len(faces), 256)]
    )
    people = [(f"{p}", vectors[p * IMAGES : (p + 1) * IMAGES]) for p in range(PEOPLE)]
    known = calibrate(people, seed=seed, population=PEOPLE)
    found = []
    for _, own in people:
        cluster = calibrated_cluster(known.transform(own), known.threshold, known.coherence)
        found.append(
            doubts(cluster.similarity, cluster.kept, known)
            if cluster.kept.any()
            else np.full(len(own), np.nan)
        )
    return np.concatenate(found)


async def ask_all(config: JudgeConfig, pictures: list[Sheet], folder: str) -> list[Opinion]:
    purse = Purse(None, 0.0)

    async def reserve(most: float) -> bool:
        return purse.reserve(most)

    async def settle(most: float, paid: float) -> None:
        purse.settle(most, paid)

    client = Client(
        config,
        Question.load(None),
        Answers(folder),
        share=1.0,
        reserve=reserve,
        settle=settle,
    )
    found = await asyncio.gather(*map(client.ask, pictures))
    await client.close()
    return found


def configured(judge: LocalJudge, **changes: object) -> JudgeConfig:
    values = {"base_url": judge.base_url, "endpoints": ["127.0.0.1"], "concurrency": CONCURRENCY}
    limits = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9}
    return JudgeConfig(kind="openai", **values, **limits, **changes)


def f1(said: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((said & truth).sum()) / max(float(said.sum() + truth.sum()), 1.0)


def fuse() -> None:
    print("| seed | clustering | judge | any | all | majority | weights | kappa | not judged |")
    print("|---|---|---|---|---|---|---|---|---|")
    for seed in range(SEEDS):
        faces, truth = world(seed)
        own = clustering(faces, seed)
        parts = range(0, len(faces), IMAGES)
        pictures = [
            sheets.draw(list(faces[i : i + IMAGES]), SheetConfig(), range(IMAGES))[0] for i in parts
        ]
        behaviour = Behaviour(wrong=WRONG, faults=FAULTS)
        with LocalJudge(list(faces), truth.tolist(), behaviour) as judge:
            with tempfile.TemporaryDirectory() as folder:
                opinions = asyncio.run(ask_all(configured(judge), pictures, folder))
        seen = np.full(len(faces), np.nan)
        for place, opinion in zip(parts, opinions, strict=True):
            if opinion.answer is not None:
                seen[place : place + IMAGES] = 0.0
                for outlier in opinion.answer.outliers:
                    seen[place + outlier.label - 1] = outlier.confidence
        both = np.stack([own, seen], axis=1)
        rates = fusion.estimate(both, [True, False])
        scores = [
            f1(own >= 0.5, truth),
            f1(seen >= 0.5, truth),
            *(f1(fusion.by_rule(both, rule), truth) for rule in ("any", "all", "majority")),
            f1(fusion.weigh(both, rates) >= 0.5, truth),
        ]
        cast = fusion.votes(both)
        print(
            f"| {seed} | {' | '.join(f'{score:.3f}' for score in scores)} "
            f"| {fusion.kappa(cast[:, 0], cast[:, 1]):.2f} "
            f"| {sum(o.answer is None for o in opinions)} of {len(opinions)} |",
            flush=True,
        )


def speed() -> None:
    rng = np.random.default_rng(0)
    faces = [np.full((112, 112, 3), rng.integers(0, 255, 3), np.uint8) for _ in range(IMAGES)]
    (sheet,) = sheets.draw(faces, SheetConfig(), range(IMAGES))
    pictures = [replace(sheet, data=sheet.data + bytes([k // 256, k % 256])) for k in range(CALLS)]
    process = psutil.Process()
    with LocalJudge(faces, [False] * IMAGES, Behaviour(delay=DELAY)) as judge:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(ask_all(configured(judge), pictures[:CONCURRENCY], folder + "/warm"))
            before = process.memory_info().rss
            start = time.perf_counter()
            asyncio.run(ask_all(configured(judge), pictures, folder))
            seconds = time.perf_counter() - start
            memory = (process.memory_info().rss - before) / 2**20
    least = CALLS * DELAY / CONCURRENCY
    print(
        f"\n{CALLS} sheets, {DELAY:g} s each, {CONCURRENCY} at a time: {seconds:.1f} s, "
        f"{seconds / least:.2f} times {least:.1f} s; {memory:.0f} MiB more (server included)"
    )


def planned() -> None:
    faces, truth = world(0)
    sizes = [IMAGES * k for k in range(1, 9)]
    pictures = [
        sheet
        for count in sizes
        for sheet in sheets.draw(list(faces[:count]), SheetConfig(), range(count))
    ]
    question = Question.load(None)
    with LocalJudge(list(faces), truth.tolist()) as judge, tempfile.TemporaryDirectory() as folder:
        config = configured(judge)
        expected = sum(expected_tokens(config, question, sheet) for sheet in pictures)
        asyncio.run(ask_all(config, pictures, folder))
        sent = judge.tokens["sent"]
    print(
        f"\ntokens that are sent, {len(pictures)} sheets of {min(sizes)} to {max(sizes)} faces: "
        f"planned {expected:,}, counted {sent:,} ({expected / sent - 1:+.1%})"
    )


def main() -> None:
    os.environ.setdefault("OPENAI_API_KEY", KEY)
    torch.set_num_threads(os.cpu_count() or 1)
    fuse()
    speed()
    planned()


if __name__ == "__main__":
    main()
