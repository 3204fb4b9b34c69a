"""Makes the demo's world with known truth: a base set with planted faults, a gallery, pairs.

`{workspace}/sample` then holds `base/` and `gallery/orl/` (image folders), `pairs.parquet`
(verification pairs) and `truth.json`, which no other job reads. The world is made in a folder of
its own and moved into place part by part, the manifest last: a killed run leaves no half a part.
"""

import hashlib
import json
import os
import time
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pyarrow import fs

from jobs.progress import Bar
from jobs.work import Work, begin
from raypipe import orl, storage
from raypipe.aligners import open_aligner
from raypipe.config import Build
from raypipe.config.align import AlignerConfig
from raypipe.config.sample import SampleConfig
from raypipe.errors import UserError
from raypipe.images import decode
from raypipe.manifest import Manifest
from raypipe.scratch import scratch
from raypipe.world import make_base, weights_path

PARTS = ("base", "gallery", "pairs.parquet", "truth.json")
_MAKING = "making"


def run(config: Build) -> Manifest:
    """Makes the world in `{workspace}/sample`; the same seed and settings give the same bytes.

    Raises:
        UserError: where the photographs or the weights are missing, or the folder was made with
            other settings.
    """
    if config.sample is None:
        raise UserError("sample: the configuration has no part 'sample'")
    photos = orl.photographs()
    work = begin(
        config,
        job="sample",
        settings={**config.sample.model_dump(exclude={"weights"}), "seed": config.seed},
        inputs={"photographs": orl.digest(photos)},
        models=[weights_path(config.sample)],
    )
    if work.manifest:
        return work.manifest
    with scratch() as remote_making:
        local = not storage.is_uri(work.root)
        making = work.path(_MAKING) if local else remote_making
        storage.delete(making)
        os.makedirs(making, exist_ok=True)
        counts = _make(config.sample, config.seed, photos, making, work)
        digest = content_digest(making)
        for part in PARTS:
            _move(os.path.join(making, part), work.path(part), local)
        storage.delete(making)
    return work.finish(counts, digest)


def content_digest(root: str) -> str:
    """Hex SHA-256 over (relative path, SHA-256) of every file in a local folder, by path."""
    paths = sorted(
        os.path.relpath(os.path.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
    )
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0{storage.sha256_file(os.path.join(root, path))}\n".encode())
    return digest.hexdigest()


def _make(
    config: SampleConfig, seed: int, photos: list[orl.Photograph], root: str, work: Work
) -> dict[str, Any]:
    """Makes everything in a local folder; returns the counts."""
    start = time.perf_counter()
    faces = _align(photos)
    aligned = sum(len(numbers) for numbers in faces.values())
    work.timing("align", time.perf_counter() - start, rows=len(faces), images=len(photos))
    leaked = orl.leaked_people(faces, config.leaks, seed)
    in_gallery = orl.write_gallery(faces, leaked, root)
    pairs = orl.make_pairs(faces, leaked, seed)
    # A photograph is in many pairs; the dictionary stores it once.
    pq.write_table(pairs, os.path.join(root, "pairs.parquet"), dictionary_pagesize_limit=64 * 2**20)

    start = time.perf_counter()
    folders = config.identities + config.leaks
    written: Counter[str] = Counter()
    with Bar("sample", folders, lambda: (written["folders"], "folders of faces")):
        truth = make_base(
            config,
            seed,
            root,
            orl.make_leaks(faces, leaked),
            lambda: written.update(["folders"]),
        )
    images = len(truth["files"])
    work.timing("generate", time.perf_counter() - start, rows=folders, images=images)
    with open(os.path.join(root, "truth.json"), "w") as file:
        json.dump(truth, file, indent=1, sort_keys=True)
    return {
        "photographs": {
            "read": len(photos),
            "kept": aligned,
            "rejected": {"align:no_face": len(photos) - aligned},
        },
        "base": {"folders": folders, "files": images, "planted": truth["faults"]},
        "gallery": {"people": len(faces), "images": in_gallery},
        "pairs": {"folds": orl.FOLDS, "pairs": len(pairs)},
    }


def _align(photos: list[orl.Photograph]) -> dict[str, dict[int, np.ndarray]]:
    """The photographs with a face in them, cropped: person → number → uint8 (112, 112, 3)."""
    aligner = open_aligner(AlignerConfig())
    faces: dict[str, dict[int, np.ndarray]] = defaultdict(dict)
    done: Counter[str] = Counter()
    with Bar("sample", len(photos), lambda: (done["photographs"], "photographs aligned")):
        for photo in photos:
            face = aligner.align(decode(storage.read_bytes(photo.path), source=photo.path))
            if face is not None:
                faces[photo.person][photo.number] = face.crop
            done["photographs"] += 1
    return dict(faces)


def _move(made: str, target: str, local: bool) -> None:
    storage.delete(target)
    if local:
        os.rename(made, target)
        return
    where, inner = storage.filesystem(target)
    if os.path.isfile(made):
        storage.write_bytes(target, storage.read_bytes(made))
    else:
        fs.copy_files(made, inner, destination_filesystem=where)


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("sample")
