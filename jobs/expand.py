"""Many images of every new person, each checked to be that person and nobody else.

1. One task measures the thresholds on the pictures of the screened set, and writes down everybody
   whom an image must not be (`others.parquet`, `thresholds.json`).
2. The identities stream through actors that hold the generator and the embedder.
"""

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from actors.expand import ExpandActor
from jobs.cluster import connect
from jobs.progress import console
from jobs.screen import LEAKAGE
from jobs.stage import Step, explain, finished, stream
from jobs.work import begin
from raypipe import storage
from raypipe.config import Build
from raypipe.config.expand import ExpandConfig
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.manifest import STARTED, Manifest
from raypipe.models.loading import shipped
from raypipe.recheck import calibrate, people_with_pictures
from raypipe.templates import template
from raypipe.vectors import class_means, fit

OTHERS, THRESHOLDS = "others.parquet", "thresholds.json"


def run(config: Build) -> Manifest:
    """Expands `{workspace}/screen` into `{workspace}/expand`.

    Raises:
        UserError: where the configuration has no part `expand`, the screened set is unfinished or
            too small to measure thresholds on, or the weights do not fit the embedder.
    """
    expand = config.expand
    if expand is None:
        raise UserError("expand: the configuration has no part 'expand'")
    source = storage.join(config.workspace, "screen")
    origin = finished("expand", source)
    weights = expand.weights or shipped("vec2face_small.safetensors")
    embedder = config.embedder.weights or shipped("dlib_resnet_v1.safetensors")
    work = begin(
        config,
        job="expand",
        settings={
            **expand.model_dump(exclude={"pool", "weights"}),
            "embedder": config.embedder.model_dump(exclude={"weights"}),
            "seed": config.seed,
        },
        inputs={"screen": origin.content_digest},
        models=[weights, embedder, *_estimators(expand)],
    )
    if work.manifest:
        return work.manifest
    connect(config)
    facts = work.path(THRESHOLDS)
    if not storage.exists(facts):
        try:
            with console.status("expand: measuring thresholds"), work.timed("measure"):
                measure = ray.remote(num_cpus=1)(_measure)
                ray.get(measure.remote(config, source, work.root))
        except (UserError, ray.exceptions.RayError) as error:
            storage.delete(work.path(STARTED))  # nothing was made: the settings may change
            if mistake := explain("expand", error):
                raise mistake from None
            raise
    measured = storage.read_json(facts)
    step = Step(
        name="expand",
        actor=ExpandActor,
        arguments={
            "config": expand.model_dump(),
            "embedder": config.embedder.model_dump(),
            "weights": (weights, work.origin.models[weights.rsplit("/", 1)[-1]]),
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
        },
        pool=expand.pool,
    )
    return stream(config, work, sources=[source], steps=[step])


def _estimators(expand: ExpandConfig) -> list[str]:
    """Weight files of the estimators that attributes are measured with."""
    goals = expand.attributes.goals if expand.attributes else []
    files = {
        goal.weights or shipped("face_attributes.safetensors")
        for goal in goals
        if goal.weights or goal.estimator.startswith("raypipe.estimators:face_")
    }
    return sorted(files)


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
            "scale": config.expand.perturbation.scale or law.spread,
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
