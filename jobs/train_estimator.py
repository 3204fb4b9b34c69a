"""Trains a small network for quality, yaw and pitch of faces, on what dlib's detector says of them.

`{workspace}/estimator` then holds the weights, `card.json` with what was measured on people who
were held out, and the labels. It needs one process: most of the time dlib looks at faces. A killed
run keeps the labels of every file of the set that was finished.
"""

import hashlib
import time
from typing import Any

import torch

from jobs.progress import Bar
from jobs.stage import finished
from jobs.work import Work, begin
from raypipe import estimator_training as training
from raypipe import storage
from raypipe.config import Build
from raypipe.estimator_labels import Labeller
from raypipe.faceset import FaceSet
from raypipe.manifest import Manifest
from raypipe.models.face_attributes import FaceAttributes

WEIGHTS, CARD, LABELS = "face_attributes.safetensors", "card.json", "labels"


def run(config: Build) -> Manifest:
    """Labels and trains; writes weights, card and labels.

    Raises:
        UserError: where the set is unfinished or too small, an image of it cannot be decoded, or
            dlib is missing.
    """
    options = config.estimator
    source = options.faces.replace("{workspace}", config.workspace.rstrip("/"))
    faces = finished("train_estimator", source)
    work = begin(
        config,
        job="estimator",
        settings={**options.model_dump(exclude={"faces"}), "seed": config.seed},
        inputs={"faces": faces.content_digest},
    )
    if work.manifest:
        return work.manifest
    torch.set_num_threads(1)  # rounding must not depend on the number of cores
    face_set = FaceSet(source)
    people = _first(face_set, options.people)
    with work.timed("label"):
        labels = _label(work, face_set, people)
    examples = training.gather(
        (item for item in face_set.iter_identities() if item.identity_id in people),
        labels,
        held_out=options.held_out,
        seed=config.seed,
    )
    done, remark = 0, ""

    def on_step(images: int, losses: list[float]) -> None:
        nonlocal done, remark
        done = images
        remark = f"loss {losses[-1]:.3f}" if losses else ""

    images = int((~examples.held_out).sum())
    begun = time.perf_counter()
    with Bar("train", images * options.epochs, lambda: (done, remark)):
        network, losses = training.train(examples, options, config.seed, on_step)
    work.timing("train", time.perf_counter() - begun, images=images * options.epochs)
    return _finish(config, work, network, losses, examples)


def _first(face_set: FaceSet, count: int) -> set[str]:
    """The first kept identities in the order of their source."""
    found: list[tuple[int, str]] = []
    for table in face_set.tables(["identity_id", "index", "rejected"]):
        found += [
            (row["index"], row["identity_id"])
            for row in table.to_pylist()
            if row["rejected"] is None
        ]
    return {identity_id for _, identity_id in sorted(found)[:count]}


def _label(work: Work, face_set: FaceSet, people: set[str]) -> list[training.Row]:
    """Labels of some people's images; those of a file are written once it is finished."""
    labeller = Labeller()
    rows: list[training.Row] = []
    done = 0
    with Bar("label", len(people), lambda: (done, f"people, {len(rows):,} faces")):
        for file in face_set.files():
            path = work.path(LABELS, file.rsplit("/", 1)[-1] + ".json")
            if not storage.exists(path):
                found: list[training.Row] = []
                for identity in face_set.iter_identities([file]):
                    if identity.identity_id in people:
                        found += training.label(identity, labeller)
                        done += 1
                storage.write_json(path, found)
            else:
                found = storage.read_json(path)
                done += len({row["identity_id"] for row in found})
            rows += found
    return rows


def _finish(
    config: Build,
    work: Work,
    network: FaceAttributes,
    losses: list[float],
    examples: training.Examples,
) -> Manifest:
    weights = network.to_safetensors()
    storage.write_bytes(work.path(WEIGHTS), weights)
    digest = hashlib.sha256(weights).hexdigest()
    held_out = int(examples.held_out.sum())
    counts: dict[str, Any] = {"trained": len(examples.images) - held_out, "held_out": held_out}
    card = {
        "sha256": digest,
        "parameters": sum(p.numel() for p in network.parameters()),
        **counts,
        "seed": config.seed,
        "config": config.estimator.model_dump(),
        "faces": work.origin.inputs["faces"],
        "losses": losses,
        # Of the weights as they are stored.
        "measured": training.measure(FaceAttributes.from_checkpoint(work.path(WEIGHTS)), examples),
    }
    storage.write_json(work.path(CARD), card)
    return work.finish(counts, digest)


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("train_estimator")
