"""What a second opinion is worth, what it costs, and how fast it comes.

    python benchmarks/judge.py

The service is the local judge of the tests, on loopback: it sees the sheets, and errs and fails at
set rates. `fusion`: 200 people of the shipped DCGAN, 12 images each, 8 % of them strangers; the
clustering expert is the cleaning job's on dlib features; the judge is wrong about 10 % of the faces
and 20 % of its answers are faults (429, 500, cut off, malformed, refused). Five seeds. `speed`:
1,000 identities at a delay of 1 s and 64 calls at a time, against 1,000 / 64 s; memory of the
process before and after. `tokens`: planned against counted by the judge.
"""

import asyncio
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
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
from raypipe.identities import Identity, Image
from raypipe.images import encode_jpeg
from raypipe.judging import fusion, sheets
from raypipe.judging.answers import Answers
from raypipe.judging.client import Client, Opinion, expected_tokens
from raypipe.judging.doubt import doubts
from raypipe.judging.experts import Case, Tools, open_experts
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
        unit = known.transform(own)
        cluster = calibrated_cluster(unit, known.threshold, known.coherence)
        found.append(
            doubts(cluster.similarity, unit, cluster.kept, known)
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


def configured(base_url: str, **changes: object) -> JudgeConfig:
    values = {"base_url": base_url, "endpoints": ["127.0.0.1"], "concurrency": CONCURRENCY}
    limits = {"requests_per_minute": 10**6, "tokens_per_minute": 10**9}
    return JudgeConfig(kind="openai", **values, **limits, **changes)


def f1(said: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((said & truth).sum()) / max(float(said.sum() + truth.sum()), 1.0)


def fuse() -> None:
    print("| seed | clustering | judge | any | all | majority | weights | kappa | not judged |")
    print("|---|---|---|---|---|---|---|---|---|")
    pooled: list[list[np.ndarray]] = []
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
                opinions = asyncio.run(ask_all(configured(judge.base_url), pictures, folder))
        seen = np.full(len(faces), np.nan)
        for place, opinion in zip(parts, opinions, strict=True):
            if opinion.answer is not None:
                seen[place : place + IMAGES] = 0.0
                for outlier in opinion.answer.outliers:
                    seen[place + outlier.label - 1] = outlier.confidence
        both = np.stack([own, seen], axis=1)
        rates = fusion.estimate(both, [True, False])
        said = [
            own >= 0.5,
            seen >= 0.5,
            *(fusion.by_rule(both, rule) for rule in ("any", "all", "majority")),
            fusion.weigh(both, rates) >= 0.5,
        ]
        pooled.append([*said, truth])
        cast = fusion.votes(both)
        print(
            f"| {seed} | {' | '.join(f'{f1(one, truth):.3f}' for one in said)} "
            f"| {fusion.kappa(cast[:, 0], cast[:, 1]):.2f} "
            f"| {sum(o.answer is None for o in opinions)} of {len(opinions)} |",
            flush=True,
        )
    *said, truth = (np.concatenate(parts) for parts in zip(*pooled, strict=True))
    print(f"| all | {' | '.join(f'{f1(one, truth):.3f}' for one in said)} | | |")


def serve(faces: np.ndarray, pipe: Connection) -> None:
    with LocalJudge(list(faces), [False] * len(faces), Behaviour(delay=DELAY)) as judge:
        pipe.send(judge.base_url)
        pipe.recv()


@contextmanager
def slow_service(faces: np.ndarray) -> Iterator[str]:
    """The local judge in a process of its own; its address."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(faces, there), daemon=True)
    process.start()
    yield here.recv()
    here.send(None)
    process.join()


def speed(faces: np.ndarray) -> None:
    """Through the expert, as an actor of the job calls it: 512 identities at a time, sheets drawn
    on the way."""
    rng = generator(0, "judge", stream="speed")
    encoded = [encode_jpeg(face) for face in faces]
    cases = []
    for number in range(CALLS + CONCURRENCY):
        chosen = rng.choice(len(encoded), IMAGES, replace=False)
        images = [Image(image_id=f"{k}", data=encoded[k], source="made") for k in chosen]
        identity = Identity(identity_id=f"{number}", index=number, source="base", images=images)
        doubt = np.zeros(IMAGES)
        cases.append(Case(identity=identity, images=images, doubt=doubt, asked="all"))

    async def allow(_: float) -> bool:
        return True

    async def note(_: float, __: float) -> None:
        pass

    process = psutil.Process()
    with slow_service(faces) as base_url:
        with tempfile.TemporaryDirectory() as folder:
            config = configured(base_url, experts=["vision"], answers=folder)
            tools = Tools(
                config=config,
                calibration=None,
                second=None,
                share=1.0,
                reserve=allow,
                settle=note,
            )
            (expert,) = open_experts(tools)
            expert(cases[:CONCURRENCY])  # connections, imports
            before = process.memory_info().rss
            start = time.perf_counter()
            for i in range(CONCURRENCY, len(cases), config.pool.batch_size):
                expert(cases[i : i + config.pool.batch_size])
            seconds = time.perf_counter() - start
            memory = (process.memory_info().rss - before) / 2**20
    least = CALLS * DELAY / CONCURRENCY
    print(
        f"\n{CALLS} identities, {DELAY:g} s a call, {CONCURRENCY} at a time: {seconds:.1f} s, "
        f"{seconds / least:.2f} times {least:.1f} s; {memory:.0f} MiB more"
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
        config = configured(judge.base_url)
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
    speed(world(0)[0][:240])  # the judge looks each face up among them
    planned()


if __name__ == "__main__":
    main()
