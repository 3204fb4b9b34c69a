"""Many images of every new person, each checked to be that person and nobody else.

1. One task measures the thresholds on the pictures of the screened set, and writes down everybody
   whom an image must not be (`others.parquet`, `thresholds.json`).
2. Where a band of similarity is wanted, one more measures what similarity each value of the
   generators' dials gives (`dial.json`).
3. The identities stream through actors that hold the generators and the embedder.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from actors.expand import ExpandActor
from jobs.cluster import connect, preflight
from jobs.progress import console
from jobs.screen import LEAKAGE
from jobs.stage import Step, explain, finished, stream
from jobs.work import Work, begin
from raypipe import dial, storage
from raypipe.config import Build
from raypipe.config.expand import ExpandConfig, PainterConfig
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.manifest import STARTED, Manifest
from raypipe.models.loading import shipped
from raypipe.recheck import calibrate, people_with_pictures
from raypipe.templates import template
from raypipe.vectors import class_means, fit

OTHERS, THRESHOLDS, DIAL = "others.parquet", "thresholds.json", "dial.json"


def run(config: Build) -> Manifest:
    """Expands `{workspace}/screen` into `{workspace}/expand`.

    Raises:
        UserError: where the configuration has no part `expand`, the screened set is unfinished or
            too small to measure thresholds on, the weights do not fit the embedder, or no image
            would be in the band.
    """
    expand = config.expand
    if expand is None:
        raise UserError("expand: the configuration has no part 'expand'")
    source = storage.join(config.workspace, "screen")
    origin = finished("expand", source)
    weights = [painter.weights or shipped(painter.weights_file) for painter in expand.painters]
    embedder = config.embedder.weights or shipped("dlib_resnet_v1.safetensors")
    work = begin(
        config,
        job="expand",
        settings={
            **_settings(expand),
            "embedder": config.embedder.model_dump(exclude={"weights"}),
            "seed": config.seed,
        },
        inputs={"screen": origin.content_digest},
        models=_distinct([*weights, embedder, *_estimators(expand)]),
    )
    if work.manifest:
        return work.manifest
    connect(config)
    try:
        arguments = _prepare(config, work, source, weights)
    except (UserError, ray.exceptions.RayError) as error:
        for name in (DIAL, THRESHOLDS, STARTED):  # nothing was made: the settings may change
            storage.delete(work.path(name))
        if mistake := explain("expand", error):
            raise mistake from None
        raise
    step = Step(name="expand", actor=ExpandActor, arguments=arguments, pool=expand.pool)
    return stream(config, work, sources=[source], steps=[step])


def _settings(expand: ExpandConfig) -> dict[str, Any]:
    """What the images depend on, but for what the weight files hold."""

    def of(painter: PainterConfig) -> dict[str, Any]:
        without = {"pool", "weights", "mix", *painter.foreign}
        return painter.model_dump(mode="json", exclude=without)

    # The digests of the files are noted by their names.
    mix = [of(painter) | {"weights": painter.weights_file} for painter in expand.mix]
    return {**of(expand), "mix": mix}


def _distinct(paths: Sequence[str]) -> list[str]:
    """The paths, each once.

    Raises:
        UserError: where two of them have the same file name, by which their digests are noted.
    """
    places: dict[str, str] = {}
    for path in paths:
        name = path.rpartition("/")[2]
        if places.setdefault(name, path) != path:
            raise UserError(
                f"expand: {places[name]} and {path} are two weight files of one name; rename one"
            )
    return list(places.values())


def _estimators(expand: ExpandConfig) -> list[str]:
    """Weight files of the estimators that attributes are measured with."""
    goals = [
        goal
        for painter in expand.painters
        for goal in (painter.attributes.goals if painter.attributes else [])
    ]
    files = {
        goal.weights or shipped("face_attributes.safetensors")
        for goal in goals
        if goal.weights or goal.estimator.startswith("raypipe.estimators:face_")
    }
    return sorted(files)


def _prepare(config: Build, work: Work, source: str, weights: list[str]) -> dict[str, Any]:
    """Measures what was not measured before a kill; returns the arguments of the actors.

    Args:
        weights: paths of the generators.
    """
    expand = config.expand
    assert expand is not None
    if not storage.exists(work.path(THRESHOLDS)):
        with console.status("expand: measuring thresholds"), work.timed("measure"):
            ray.get(ray.remote(num_cpus=1)(_measure).remote(config, source, work.root))
    measured = storage.read_json(work.path(THRESHOLDS))
    arguments = {
        "config": expand.model_dump(),
        "embedder": config.embedder.model_dump(),
        "weights": [(path, work.origin.models[path.rpartition("/")[2]]) for path in weights],
        "others": work.path(OTHERS),
        "galleries": [
            (name, storage.join(source, "galleries", name, "embed"))
            for name in measured["thresholds"]["galleries"]
        ],
        "thresholds": measured["thresholds"],
        "scale": measured["scale"],
        "centre": measured["centre"],
        "seed": config.seed,
        "threads": max(1, int(expand.pool.num_cpus)),
    }
    if expand.band is None:
        return arguments
    if not storage.exists(work.path(DIAL)):
        preflight("expand", [expand.pool])
        pool = expand.pool
        task = ray.remote(
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus or None,
            memory=pool.memory,
            accelerator_type=pool.accelerator_type,
        )(_calibrate)
        with console.status("expand: measuring the dials"), work.timed("dial"):
            ray.get(task.remote(arguments, source, work.path(DIAL)))
    found = storage.read_json(work.path(DIAL))
    return arguments | {"curves": [painter["curve"] for painter in found["painters"]]}


def _calibrate(arguments: dict[str, Any], source: str, path: str) -> None:
    """Writes `dial.json`, where the band is within reach."""
    expand = ExpandConfig(**arguments["config"])
    assert expand.band is not None
    names = dial.sample(FaceSet(source).iter_embeddings(), expand.sources, arguments["seed"])
    curves = ExpandActor(**arguments).measure(source, names) if names else []  # or nobody to make
    measured = list(zip(expand.painters, curves, strict=False))
    for painter, curve in measured:
        dial.check_band(expand.band, curve, arguments["thresholds"]["own"], painter.weights_file)
    storage.write_json(
        path,
        {
            "band": expand.band,
            "identities": names,
            "painters": [
                {"kind": painter.kind, "weights": painter.weights_file, "curve": asdict(curve)}
                for painter, curve in measured
            ],
        },
    )


def _measure(config: Build, source: str, root: str) -> None:
    """Writes `others.parquet`, then `thresholds.json`."""
    assert config.expand is not None
    face_set = FaceSet(source)
    own, other = calibrate(
        people_with_pictures(face_set, config.seed),
        config.expand.false_match_rate,
        config.screen.false_match_rate,
    )
    law = fit(class_means(face_set), source)
    rows = [
        (item.identity_id, template(vectors))
        for item in face_set.iter_embeddings()
        if item.rejected is None and len(vectors := item.person)
    ]
    rows.sort(key=lambda row: row[0])
    table = pa.table(
        {
            "identity_id": [name for name, _ in rows],
            "template": pa.array([vector for _, vector in rows], pa.list_(pa.float32())),
        }
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    storage.write_bytes(storage.join(root, OTHERS), buffer.getvalue())
    leakage = storage.read_json(storage.join(source, LEAKAGE))
    thresholds = {
        "own": own.threshold,
        "other": other,
        "galleries": {name: found["threshold"] for name, found in leakage["galleries"].items()},
    }
    storage.write_json(
        storage.join(root, THRESHOLDS),
        {
            "thresholds": thresholds,
            "scale": law.spread,
            "centre": law.mean.tolist(),
            "false_match_rates": {
                "own": config.expand.false_match_rate,
                "other": config.screen.false_match_rate,
            },
            "recognised": own.recognised,
            "impostor_pairs": own.pairs,
        },
    )


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("expand")
