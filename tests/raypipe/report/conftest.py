"""A small finished workspace, written with the same functions as the jobs write theirs."""

import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.stage import totals
from raypipe import ijb, seeding, storage, verification
from raypipe.cleaning.calibration import Calibration, histogram
from raypipe.config.train import TrainConfig
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import (
    NO_PICTURE,
    CleanEvidence,
    ExpandEvidence,
    Identity,
    Image,
    ScreenEvidence,
)
from raypipe.images import encode_jpeg, encode_png, resize
from raypipe.impostors import Calibration as GalleryCalibration
from raypipe.impostors import Histogram
from raypipe.manifest import Manifest, Origin, digest_of, summarise, write_manifest
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.planning.plan import PLAN
from raypipe.recheck import IN_GALLERY, NOT_THE_PERSON, SOMEBODY_ELSE
from raypipe.report.sections.expansion import THRESHOLDS
from raypipe.report.sections.leakage import LEAKAGE
from raypipe.report.sections.similarity import CALIBRATION
from raypipe.training_set import FLAT, PARQUET, shard_name, to_parquet

IMAGES = 14
EVIL = '<script>alert("1")</script>&x'
PEOPLE = ["000000", "000001", "000002", "000003", "000004", "000005", "000006", EVIL]

VECTORS = 6
WANTED, ATTEMPTS = 12, 3  # images of a vector
OWN, OTHER = 0.6, 0.75  # cosines that decide about them


class Painter:
    """Faces of people who do not exist."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.network = DCGANGenerator()
        load_into(self.network, shipped("dcgan_digiface.safetensors"))
        self.network.eval()

    @torch.inference_mode()
    def faces(self, person: str, count: int) -> list[np.ndarray]:
        """`count` uint8 (112, 112, 3) pictures of a person."""
        rng = seeding.generator(7, person)
        latents = rng.standard_normal(LATENT) + 0.2 * rng.standard_normal((count, LATENT))
        made = self.network(torch.from_numpy(latents.astype(np.float32)))
        pictures = ((made + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        return [resize(np.ascontiguousarray(picture), (112, 112)) for picture in pictures]


def finish(
    root: str,
    job: str,
    people: list[Identity],
    *,
    made: int = 0,
    inputs: dict | None = None,
    settings: dict | None = None,
    models: dict | None = None,
    drawn: dict | None = None,
    extra: dict | None = None,
) -> None:
    """Writes rows, `run.json` and manifest as the stage runner does."""
    folder = storage.join(root, job)
    write_rows(folder, "part-0.parquet", people[: len(people) // 2])
    write_rows(folder, "part-1.parquet", people[len(people) // 2 :])
    counts, digest = summarise(folder)
    stage = {
        "name": job.rsplit("/", 1)[-1],
        "seconds": 2.5,
        "rows": counts.identities,
        "images": counts.images,
        "bytes": 1000,
        "images_per_second": counts.images / 2.5,
        "images_per_second_per_actor": counts.images / 2.0,
        "actors": 2,
        "compute_seconds": 3.1,
        "convert_seconds": 0.3,
        "wait_seconds": 1.2,
        "rejected": dict(counts.rejected_images),
    }
    storage.write_json(
        storage.join(folder, "run.json"),
        {"job": job, "started": 0.0, "seconds": 3.0, "resumed": False, "stages": [stage]},
    )
    origin = Origin(
        job=job,
        settings=settings or {"min_images": 10},
        inputs=inputs or {},
        models={"dlib_resnet_v1.safetensors": digest_of("weights"), **(models or {})},
    )
    totalled = totals(counts, images_made=made) | ({"drawn": drawn} if drawn else {})
    write_manifest(
        folder,
        Manifest(origin=origin, counts=totalled, content_digest=digest, extra=extra or {}),
    )


def base_set(painter: Painter) -> list[Identity]:
    """Ingested identities: some files are no images."""
    people = []
    for index, name in enumerate(PEOPLE):
        pictures = [encode_jpeg(face) for face in painter.faces(name, IMAGES)]
        pictures[5] = encode_jpeg(painter.faces(PEOPLE[index - 1], 1)[0])
        images = [
            Image(image_id=f"{i:03d}.jpg", data=data, source=f"{name}/{i:03d}.jpg")
            for i, data in enumerate(pictures)
        ]
        if index == 2:
            images[3] = replace(images[3], data=b"\xff\xd8\xffgarbage", rejected="ingest:corrupt")
            images[4] = replace(images[4], data=images[4].data[:900], rejected="ingest:truncated")
        people.append(Identity(identity_id=name, index=index, source="base", images=images))
    empty = Identity(
        identity_id="000009", index=9, source="base", images=[], rejected="ingest:empty"
    )
    return [*people, empty]


def cleaned(people: list[Identity]) -> list[Identity]:
    """The base set with marks and evidence of cleaning."""
    result = []
    for person in people:
        rng = seeding.generator(3, person.identity_id)
        images = []
        for i, image in enumerate(person.images):
            if image.rejected:
                images.append(image)
                continue
            similarity = float(rng.uniform(0.05, 0.2) if i == 5 else rng.uniform(0.6, 0.95))
            rejected = "clean:other_person" if i == 5 else None
            if i == 8 and person.index == 1:
                rejected = "clean:near_duplicate"
            embedding = rng.standard_normal(16).astype(np.float32)
            images.append(
                replace(
                    image,
                    similarity=similarity,
                    rejected=rejected,
                    embedding=embedding,
                    cluster=-1 if rejected else 0,
                )
            )
        evidence = CleanEvidence(rule="calibrated", threshold=0.42, cluster_sizes=[12, 1])
        rejected = person.rejected
        if person.identity_id == "000006":
            rejected = "clean:duplicate_identity"
            evidence = replace(
                evidence,
                duplicates=["000004"],
                duplicate_similarity=0.93,
                duplicate_threshold=0.71,
            )
        result.append(
            replace(person, images=images, clean=evidence if images else None, rejected=rejected)
        )
    return result


def vectors() -> list[Identity]:
    """Vectors of people, who have no picture yet."""
    return [
        Identity(
            identity_id=f"vec/{i:07d}",
            index=10 + i,
            source="vec",
            images=[
                Image(
                    image_id="vector",
                    data=b"",
                    source=f"candidate {i}",
                    embedding=seeding.generator(5, f"{i}").standard_normal(16).astype(np.float32),
                    rejected=NO_PICTURE,
                )
            ],
        )
        for i in range(VECTORS)
    ]


def screened(people: list[Identity]) -> list[Identity]:
    """The set with the evidence of screening: one picture and one vector leaked, one of each is
    not unique."""
    result = []
    for person in people:
        if person.rejected:
            result.append(person)
            continue
        leaked = person.identity_id in (EVIL, "vec/0000004")
        similar = person.identity_id in ("000003", "vec/0000005")
        similarity = 0.81 if leaked else 0.2 + 0.03 * min(person.index, 6)
        evidence = ScreenEvidence(
            gallery="public",
            gallery_identity=f"person{person.index % 3}",
            gallery_image="1.png",
            gallery_similarity=similarity,
            gallery_threshold=0.55,
            nearest="000000",
            nearest_similarity=0.9 if similar else 0.3,
            nearest_threshold=0.6,
        )
        rejected = None
        if leaked:
            rejected = "screen:in_gallery"
        elif similar:
            rejected = "screen:not_unique"
        result.append(replace(person, screen=evidence, rejected=rejected))
    return result


def draw(rng: np.random.Generator, own: float) -> tuple[float, float, str, str | None]:
    """Similarity of an image to its vector, to the nearest other one, who that is, and whether it
    is refused; about the own similarity that is asked for."""
    mine, near = float(np.tanh(rng.normal(own, 0.25))), float(np.tanh(rng.normal(0.5, 0.15)))
    who, reason = "000000", None
    if rng.random() < 0.03:
        near, who, reason = 0.8, "gallery public: person1", IN_GALLERY
    elif near >= OTHER:
        reason = SOMEBODY_ELSE
    elif mine < OWN:
        reason = NOT_THE_PERSON
    return mine, near, who, reason


def expanded(people: list[Identity], painter: Painter) -> list[Identity]:
    """The screened set with images of the admitted vectors; one comes short."""
    result = []
    for person in people:
        if person.source != "vec" or person.rejected:
            result.append(person)
            continue
        rng = seeding.generator(9, person.identity_id)
        short = person.identity_id == "vec/0000002"
        pictures = painter.faces(person.identity_id, ATTEMPTS * WANTED)
        made: list[Image] = []
        missing = list(range(WANTED))
        for attempt in range(ATTEMPTS):
            for number in missing.copy():
                similarity, near, who, reason = draw(rng, 0.75 if short else 1.1)
                missing = [other for other in missing if other != number or reason]
                made.append(
                    Image(
                        image_id=f"vec2face-{number:04d}" + (f".{attempt}" if attempt else ""),
                        data=encode_jpeg(pictures[len(made)]),
                        source="vec2face",
                        parent="vector",
                        generator="vec2face",
                        weights=digest_of("generator"),
                        embedding=rng.standard_normal(16).astype(np.float32),
                        similarity=similarity,
                        nearest=who,
                        nearest_similarity=near,
                        rejected=reason,
                    )
                )
        evidence = ExpandEvidence(wanted=WANTED, drawn=len(made), threshold=OWN)
        result.append(replace(person, images=[*person.images, *made], expand=evidence))
    return result


def gallery(painter: Painter) -> list[Identity]:
    """Three people of a public gallery, two pictures each."""
    return [
        Identity(
            identity_id=f"person{i}",
            index=i,
            source="public",
            images=[
                Image(image_id=f"{k}.png", data=encode_png(face), source="gallery")
                for k, face in enumerate(painter.faces(f"public{i}", 2))
            ],
        )
        for i in range(3)
    ]


def calibrations(root: str, rate: float = 1e-5) -> None:
    """What cleaning and screening measured, written by their own classes."""
    rng = seeding.generator(11, "calibrations")

    def drawn(mean: float, count: int) -> np.ndarray:
        return np.tanh(rng.normal(mean, 0.12, count))

    calibration = Calibration(
        mean=np.zeros(16, np.float32),
        projection=np.eye(16, dtype=np.float32),
        coherence=0.5,
        threshold=0.42,
        duplicate_threshold=0.71,
        strangers=0.07,
        genuine=histogram(drawn(0.9, 3000)),
        impostor=histogram(drawn(0.0, 9000)),
        duplicate_genuine=histogram(drawn(1.2, 100)),
        duplicate_impostor=histogram(drawn(0.1, 900)),
        identities=8,
        images=110,
    )
    calibration.save(storage.join(root, "clean", CALIBRATION))

    def measured(threshold: float) -> dict:
        found = GalleryCalibration(
            threshold=threshold,
            pairs=4000,
            impostor=Histogram().add(drawn(0.1, 4000)),
            genuine=Histogram().add(drawn(0.9, 200)),
            recognised=0.93,
            same=[],
        )
        return found.to_json([])

    people = [0.2 + 0.03 * i for i in range(6)] + [0.38] * 5 + [0.81] * 2
    nearest = Histogram().add(np.array(people))
    gallery_facts = {
        **measured(0.55),
        "people": 3,
        "faces": 6,
        "compared": 13,
        "refused": 2,
        "nearest": nearest.to_json(),
    }
    storage.write_json(
        storage.join(root, "screen", LEAKAGE),
        {
            "galleries": {"public": gallery_facts},
            "unique": {**measured(0.6), "compared": 11, "refused": 2},
            "false_match_rate": rate,
            "warnings": ["gallery 'public': only 93% of its own faces are recognised"],
        },
    )


@pytest.fixture(scope="session")
def row_workspace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A workspace whose row jobs are finished, and nothing after them."""
    root = str(tmp_path_factory.mktemp("rows"))
    painter = Painter()
    people = base_set(painter)
    finish(root, "ingest", people)
    finish(root, "embed", people, inputs={"ingest": digest_of(1)})
    clean = cleaned(people)
    finish(root, "clean", clean, inputs={"embed": digest_of(2)})
    finish(root, "screen/galleries/public/embed", gallery(painter))
    new = vectors()
    law = {"digest": digest_of("law"), "identities": 8, "components": 7, "spread": 1.0}
    finish(
        root,
        "vectors",
        new,
        made=VECTORS,
        inputs={"clean": digest_of(3)},
        settings={"law": "components", "source": "clean", "ceiling": 0.4, "away_from_source": True},
        drawn={"total": 9, "accepted": VECTORS, "refused": 3},
        extra={"law": {**law, "note": "fitted on 8 identities with 16 dimensions"}},
    )
    screen = screened([*clean, *new])
    finish(root, "screen", screen, inputs={"clean": digest_of(3), "vectors": digest_of(4)})
    calibrations(root)
    people = expanded(screen, painter)
    finish(
        root,
        "expand",
        people,
        made=sum(person.expand.drawn for person in people if person.expand),
        inputs={"screen": digest_of(5)},
        settings={"sources": ["vec"], "images": WANTED, "attempts": ATTEMPTS},
        models={"vec2face_small.safetensors": digest_of("generator")},
    )
    storage.write_json(
        storage.join(root, "expand", THRESHOLDS),
        {
            "thresholds": {"own": OWN, "other": OTHER, "galleries": {"public": 0.55}},
            "scale": 1.0,
            "false_match_rates": {"own": 1e-3, "other": 1e-5},
            "recognised": 0.97,
            "impostor_pairs": 4000,
        },
    )
    return root


def assemble(root: str, people: list[Identity]) -> None:
    """Two Parquet shards in two phases, and the manifest."""
    rows = []
    new = next(person for person in people if person.expand)
    for phase, person in enumerate([new, people[1]]):
        for image in person.kept:
            rows.append(
                {
                    "key": f"{phase:07d}_{len(rows):04d}",
                    "data": image.data,
                    "label": phase,
                    "identity_id": person.identity_id,
                    "image_id": image.image_id,
                    "source": person.source,
                    "phase": phase,
                    "position": len(rows),
                    "origin": image.source,
                    "parent": image.parent or ("000.jpg" if len(rows) % 3 == 0 else None),
                    "generator": image.generator or ("augment" if len(rows) % 3 == 0 else None),
                    "similarity": 0.9 - 0.02 * len(rows),
                }
            )
    for number, part in enumerate((rows[:16], rows[16:])):
        table = pa.Table.from_pylist(part, schema=FLAT)
        path = storage.join(root, "assemble", PARQUET, f"{shard_name(number)}.parquet")
        storage.write_bytes(path, to_parquet(table))
    made = sum(row["generator"] == "augment" for row in rows)
    counts = {
        "identities": {"total": 2, "kept": 2, "rejected": {}},
        "images": {
            "total": len(rows),
            "read": len(rows) - made,
            "made": made,
            "kept": len(rows),
            "rejected": {},
        },
        "sources": {},
        "bytes": 1,
        "training_set": {"images": len(rows), "identities": 2, "augmented": made},
    }
    origin = Origin(job="assemble", settings={}, inputs={"expand": digest_of(4)}, models={})
    manifest = Manifest(origin=origin, counts=counts, content_digest=digest_of(5))
    write_manifest(storage.join(root, "assemble"), manifest)


def train(root: str) -> None:
    """The history of six epochs."""
    epochs = [
        {
            "epoch": number + 1,
            "loss": 20 * 0.7**number,
            "accuracy": 1 - 0.8**number,
            "images": 28,
            "learning_rate": 0.1,
            "seconds": 3.0,
            "wait_seconds": 0.4,
            "step_seconds": 2.6,
        }
        for number in range(6)
    ]
    folder = storage.join(root, "train")
    storage.write_json(storage.join(folder, "history.json"), {"workers": 1, "epochs": epochs})
    card = {"config": TrainConfig().model_dump(mode="json")}
    storage.write_json(storage.join(folder, "recognizer.json"), card)
    counts = {"classes": 2, "images": 28, "epochs": 6}
    origin = Origin(job="train", settings={}, inputs={"assemble": digest_of(5)}, models={})
    write_manifest(folder, Manifest(origin=origin, counts=counts, content_digest=digest_of(6)))


def evaluate(root: str) -> None:
    """The results of the real protocols on drawn distances: two sets of pairs, one of them with
    groups, two epochs, and templates of IJB."""
    rng = seeding.generator(5, "evaluate")
    sets = {}
    for name, mean in (("orl", 0.6), ("other", 0.9)):
        same = np.tile([True, False], 300)
        folds = np.repeat(np.arange(10), 60)
        distances = np.clip(rng.normal(np.where(same, mean, 1.7), 0.35), 0, 4)
        found = verification.verify(distances, same, folds, [0.001, 0.01])
        sets[name] = {
            "pairs": len(same),
            "genuine": 300,
            "impostor": 300,
            "accuracy": float(np.mean(found.accuracies)),
            "std": float(np.std(found.accuracies)),
            "accuracies": found.accuracies,
            "tar_at_far": {
                str(far): {"mean": mean, "std": std, "far": reached}
                for far, (mean, std, reached) in found.tars.items()
            },
            "auc": found.auc,
            "roc": found.roc,
            "histogram": verification.histogram(distances, same),
        }
    # What is left of the loop is the second set.
    groups = ["north", "south", None] * (len(same) // 3)
    by_group = verification.by_group(distances, same, folds, groups, found.thresholds, [0.01])
    sets["other"]["groups"] = {
        group: {
            "genuine": result.genuine,
            "impostor": result.impostor,
            "accuracy": result.accuracy,
            "tar": result.tar,
            "far": result.far,
            "tar_at_far": {
                str(far): {"tar": tar, "far": reached}
                for far, (tar, reached) in result.tars.items()
            },
        }
        for group, result in by_group.items()
    }
    epochs = [
        {
            "epoch": epoch,
            "sets": {n: {**s, "accuracy": s["accuracy"] - 0.1 / epoch} for n, s in sets.items()},
        }
        for epoch in (1, 2)
    ]
    curve = ijb.roc_curve(-distances, same)
    templates = {
        "IJBC": {
            "pairs": len(same),
            "auc": curve.auc,
            "roc": verification.thinned(curve.fars, curve.tars),
            "tar_at_far": {
                f"{far:g}": {"tar": ijb.operating_point(curve, far)[0]} for far in ijb.FARS
            },
        }
    }
    folder = storage.join(root, "evaluate")
    results = {"sets": sets, "ijb": templates, "epochs": epochs}
    storage.write_json(storage.join(folder, "results.json"), results)
    origin = Origin(job="evaluate", settings={}, inputs={"train": digest_of(6)}, models={})
    write_manifest(folder, Manifest(origin=origin, counts={}, content_digest=digest_of(7)))


@pytest.fixture(scope="session")
def finished_workspace(row_workspace: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A workspace in which every job is finished."""
    root = str(tmp_path_factory.mktemp("finished") / "workspace")
    shutil.copytree(row_workspace, root)
    assemble(root, list(FaceSet(storage.join(root, "expand")).iter_identities()))
    train(root)
    evaluate(root)
    expected = {"seconds": 20.0, "bytes": 50_000, "images": 100}
    plan = {"rates": "", "jobs": dict.fromkeys(("ingest", "clean", "assemble", "train"), expected)}
    storage.write_json(storage.join(root, PLAN), plan)
    return root
