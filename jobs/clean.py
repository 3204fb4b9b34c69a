"""Finds images that show somebody else, repeated images, and people who stand in the set twice.

Thresholds are calibrated on a sample of the set, every identity's centre is found in parallel, the
centres are compared with each other in one pass, and the stage then marks the rows. The first three
read embeddings only and their results are small files beside the rows.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from actors.clean import CentreActor, CleanActor
from jobs import embed
from jobs.cluster import connect
from jobs.progress import console
from jobs.stage import Step, map_files, run_task, stream
from jobs.work import begin
from raypipe import storage
from raypipe.cleaning.calibration import Calibration, calibrate
from raypipe.cleaning.doubles import find_doubles, save_doubles
from raypipe.cleaning.sampling import draw
from raypipe.config import Build
from raypipe.config.clean import CleanConfig
from raypipe.faceset import FaceSet
from raypipe.manifest import Manifest

CALIBRATION = "calibration.npz"
DOUBLES = "doubles.json"


def run(config: Build) -> Manifest:
    """Cleans the base set into `{workspace}/clean`, after embedding it where that is not done.

    Raises:
        UserError: where no threshold can be calibrated, or the settings changed since the last run.
    """
    embedded = embed.run(config)
    source = storage.join(config.workspace, "embed")
    settings = _settings(config)
    work = begin(config, job="clean", settings=settings, inputs={"embed": embedded.content_digest})
    if work.manifest:
        return work.manifest
    connect(config)
    calibration = doubles = None
    if config.clean.rule == "calibrated":
        calibration, doubles = work.path(CALIBRATION), work.path(DOUBLES)
        if not storage.exists(calibration):
            with console.status("clean: calibrating"), work.timed("calibrate"):
                run_task("clean", _calibrate, source, calibration, config.clean, config.seed)
        if not storage.exists(doubles):
            with console.status("clean: comparing identities"), work.timed("compare"):
                _find_doubles(config, source, calibration, doubles)
    step = Step(
        name="clean",
        actor=CleanActor,
        arguments={
            "config": config.clean.model_dump(),
            "calibration": calibration,
            "doubles": doubles,
        },
        pool=config.clean.pool,
    )
    return stream(config, work, sources=[source], steps=[step])


def _settings(config: Build) -> dict[str, Any]:
    """What the result depends on; what the other rule would need is left out."""
    if config.clean.rule == "share":
        return {"rule": "share", "share": config.clean.share.model_dump()}
    return {
        "seed": config.seed,
        **config.clean.model_dump(exclude={"pool", "min_images", "share"}),
    }


def _calibrate(source: str, path: str, config: CleanConfig, seed: int) -> None:
    sample, population = draw(FaceSet(source).iter_embeddings(), config.sample_identities, seed)
    found = calibrate(sample, seed=seed, population=population)
    given = {
        name: value
        for name in ("threshold", "duplicate_threshold")
        if (value := getattr(config, name)) is not None
    }
    replace(found, **given).save(path)


def _find_doubles(config: Build, source: str, calibration: str, path: str) -> None:
    """Compares the centres of all identities; they stay in the object store, not on the driver."""
    centres = map_files(
        config,
        FaceSet(source).files(),
        CentreActor,
        {"source": source, "calibration": calibration},
        config.clean.pool,
    )
    run_task("clean", _compare, centres, calibration, path)


def _compare(centres: list["ray.ObjectRef[pa.Table]"], calibration: str, path: str) -> None:
    table = pa.concat_tables(ray.get(centres)).combine_chunks()
    known = Calibration.load(calibration)
    values = table["centre"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    save_doubles(
        path,
        find_doubles(
            table["identity_id"].to_pylist(),
            table["index"].to_numpy(),
            table["kept"].to_numpy(),
            np.asarray(values, np.float32).reshape(-1, len(known.mean)),
            known.duplicate_threshold,
        ),
    )


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("clean")
