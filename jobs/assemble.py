"""Makes the training set: identities of a fixed number of images, in the order of a curriculum.

1. A plan, in one task over small rows: who is in, under which label (`plan.parquet`).
2. A stage like any other: identities are marked or refilled (`identities/`, a face set).
3. Where the order is by similarity: one task measures all images of `identities/`, and writes
   where each goes (`positions.npy`).
4. The shuffle: images go from identities to shards through files (`raypipe.exchange`), and each
   shard is written as Parquet and as a tar.
5. A dataset card and Croissant metadata beside the shards (`raypipe.provenance`).

Why not Ray's own shuffle: `Dataset.sort("position", boundaries=...)` does give one block a shard,
and `groupby("shard").map_groups` one group; the files are the same bytes. But every image stays in
the object store, or spilled from it, until the last one has arrived, and nothing of it survives a
kill: the checkpoint of Ray Data does not reach across a shuffle. 30,000 images of 8 kB into 30
shards, 4 logical CPUs on 2 busy cores, start of the workers included: sort 48 s, groupby 36 s,
files, with one actor a pass, 25 s.
"""

import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray

from actors.assemble import RefillActor, ShardActor, SpreadActor
from jobs.cluster import connect
from jobs.progress import Bar
from jobs.stage import Step, explain, map_files, run_stage
from jobs.work import Work, begin
from raypipe import curriculum, exchange, similarity, storage, training_set
from raypipe.config import Build
from raypipe.config.assemble import AssembleConfig
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.manifest import Manifest, read_manifest
from raypipe.provenance import write_card


def run(config: Build) -> Manifest:
    """Assembles `{workspace}/expand`, or `{workspace}/screen` where nothing is expanded, into
    `{workspace}/assemble`."""
    settings = config.assemble
    before = "screen" if config.expand is None else "expand"
    source = storage.join(config.workspace, before)
    origin = read_manifest(source)
    if origin is None:
        raise UserError(f"assemble: {source} is not a finished face set; run {before} first")
    matters = {**settings.model_dump(exclude={"pool"}), "seed": config.seed}
    inputs = {before: origin.content_digest}
    work = begin(config, job="assemble", settings=matters, inputs=inputs)
    if work.manifest:
        done = work.manifest
        _describe(config, done.counts, done.extra, done.content_digest)
        return work.manifest
    connect(config)
    plan = work.path("plan.parquet")
    planning = {
        "min_images": settings.min_images,
        "phases": settings.phases,
        "replacement": settings.replacement,
        "seed": config.seed,
    }
    band = settings.similarity.band if settings.similarity else None
    start = time.perf_counter()
    summary = _get(_plan.remote(source, plan, settings.images_per_identity, planning, band))
    work.timing("plan", time.perf_counter() - start, rows=origin.counts["identities"]["total"])
    identities = run_stage(
        config,
        job="assemble/identities",
        source=source,
        steps=[
            Step(
                name="refill",
                actor=RefillActor,
                arguments={
                    "plan": plan,
                    "images_per_identity": settings.images_per_identity,
                    "seed": config.seed,
                    "jpeg_quality": settings.jpeg_quality,
                    "band": band,
                    "stratified": settings.choose == "stratified",
                },
                pool=settings.pool,
            )
        ],
        settings={
            name: value
            for name, value in matters.items()
            if name not in ("shard_size", "order", "levels", "nearest")
        },
    )
    positions = None
    if settings.order != "shuffled":
        positions = work.path("positions.npy")
        start = time.perf_counter()
        _get(_order.remote(work.path("identities"), plan, positions, settings, config.seed))
        work.timing("order", time.perf_counter() - start, images=summary["images"])
    nearest = None
    if settings.nearest:
        nearest = work.path("nearest.npy")
        start = time.perf_counter()
        _get(_nearest.remote(source, plan, nearest))
        work.timing("nearest", time.perf_counter() - start, rows=summary["identities"])
    files = _write_shards(config, work, plan, positions, nearest, summary["images"])
    training_set.remove_unfinished(work.root)
    ranges = training_set.shard_ranges(summary["images"], settings.shard_size)
    training_set.write_index(work.root, [len(positions) for positions in ranges])
    storage.delete(work.path(exchange.EXCHANGE))
    for path in (positions, nearest):
        if path is not None:
            storage.delete(path)
    # The accounts of the face set, so that they can be followed from the base set to here.
    counts = {name: identities.counts[name] for name in ("identities", "images")}
    counts["training_set"] = {**summary, "shards": len(ranges)}
    extra = {"files": files, "generators": ray.get(_generators.remote(work.root))}
    digest = training_set.content_digest(files.values())
    _describe(config, counts, extra, digest)
    return work.finish(counts, digest, extra)


def _describe(config: Build, counts: dict[str, Any], extra: dict[str, Any], digest: str) -> None:
    """Writes the card; at every run, for the licences that the configuration states may change."""
    generators = [(name, weights) for name, weights in extra.get("generators", [])]
    write_card(config, counts, extra["files"], digest, generators)


@ray.remote(num_cpus=1)
def _generators(root: str) -> list[tuple[str, str]]:
    return training_set.generators(root)


def _get(result: Any) -> Any:
    """What a task returns, or the user's mistake that it found."""
    try:
        return ray.get(result)
    except Exception as error:
        if mistake := explain("assemble", error):
            raise mistake from None
        raise


@ray.remote(num_cpus=1)
def _plan(
    source: str,
    path: str,
    images_per_identity: int,
    planning: dict[str, Any],
    band: tuple[float, float] | None,
) -> Any:
    """Makes the plan unless a killed run made it, and sums it up."""
    if not storage.exists(path):
        rows = curriculum.small_rows(FaceSet(source), band)
        curriculum.write_plan(path, curriculum.make_plan(rows, **planning))
    plan = curriculum.read_plan(path)
    return curriculum.summarise(plan, images_per_identity, planning["replacement"])


@ray.remote(num_cpus=1)
def _order(identities: str, plan: str, path: str, settings: AssembleConfig, seed: int) -> None:
    """Writes the position of every image, by its similarity, unless a killed run wrote it."""
    if storage.exists(path):
        return
    rows, labels = _labels(plan)
    measured = similarity.of_set(FaceSet(identities), labels, settings.images_per_identity)
    positions = curriculum.image_positions(
        rows,
        settings.images_per_identity,
        seed,
        ranked_by=-measured if settings.order == "similar_first" else measured,
        levels=settings.levels,
    )
    curriculum.write_array(path, positions)


def _labels(plan: str) -> tuple[pa.Table, dict[str, int]]:
    """The rows of the plan that are in the set, and identity_id → label."""
    rows = curriculum.read_plan(plan, ["identity_id", "label", "phase"])
    rows = rows.filter(pc.is_valid(rows["label"]))
    return rows, dict(zip(rows["identity_id"].to_pylist(), rows["label"].to_pylist(), strict=True))


@ray.remote(num_cpus=1)
def _nearest(source: str, plan: str, path: str) -> None:
    """Writes how similar every identity is to the nearest other, unless a killed run wrote it."""
    if not storage.exists(path):
        _, labels = _labels(plan)
        curriculum.write_array(path, similarity.to_nearest(FaceSet(source), labels))


def _write_shards(
    config: Build,
    work: Work,
    plan: str,
    positions: str | None,
    nearest: str | None,
    images: int,
) -> dict[str, str]:
    """Runs the two passes of the exchange.

    Returns:
        Path inside the folder → hex SHA-256 of every shard's Parquet file and tar, in order.
    """
    settings: AssembleConfig = config.assemble
    identities = work.path("identities")
    groups = len(exchange.file_groups(FaceSet(identities)))
    count = len(training_set.shard_ranges(images, settings.shard_size))
    if training_set.finished_shards(work.root) < count:
        start = time.perf_counter()
        map_files(
            config,
            [exchange.exchange_file(work.root, number) for number in range(groups)],
            SpreadActor,
            {
                "root": work.root,
                "identities": identities,
                "plan": plan,
                "images_per_identity": settings.images_per_identity,
                "shard_size": settings.shard_size,
                "seed": config.seed,
                "positions": positions,
                "nearest": nearest,
            },
            settings.pool,
        )
        work.timing("spread", time.perf_counter() - start, images=images)
    start = time.perf_counter()
    with Bar("shards", count, lambda: (training_set.finished_shards(work.root), "")):
        tables = map_files(
            config,
            [str(number) for number in range(count)],
            ShardActor,
            {
                "root": work.root,
                "groups": groups,
                "images": images,
                "shard_size": settings.shard_size,
            },
            settings.pool,
        )
    work.timing("shards", time.perf_counter() - start, rows=count, images=images)
    rows = pa.concat_tables(ray.get(tables)).sort_by("shard").to_pylist()
    assert [row["shard"] for row in rows] == list(range(count))
    files: dict[str, str] = {}
    for row in rows:
        parquet, tar = training_set.shard_paths(row["shard"])
        files |= {parquet: row["parquet"], tar: row["tar"]}
    return files


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("assemble")
