"""Reads the base set into a face set: a row an identity, with the bytes of its images.

The source is listed first, into a face set of rows without bytes; the stage then maps those rows,
so that it resumes like any other. Every run lists anew, which is how a changed source is noticed.
"""

import hashlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from actors.align import AlignActor
from actors.read import ReadActor
from jobs.progress import console
from jobs.stage import Step, run_stage, totals
from raypipe import storage
from raypipe.config import Build
from raypipe.config.align import AlignerConfig
from raypipe.faceset import ROWS, write_rows
from raypipe.formats import Listing, open_reader
from raypipe.manifest import Manifest, Origin, read_manifest, summarise, write_manifest

LISTING = "listing"
_ROWS_PER_FILE = 1024
_SLOW_SECONDS = 5


def run(config: Build) -> Manifest:
    """Ingests the configured base set into `{workspace}/ingest`."""
    return ingest_sources(
        config,
        job="ingest",
        paths={source.name: source.path for source in config.ingest.sources},
        aligner=config.ingest.aligner,
    )


def ingest_sources(
    config: Build, *, job: str, paths: dict[str, str], aligner: AlignerConfig | None = None
) -> Manifest:
    """Ingests what lies at some paths into `{workspace}/{job}`, with `config.ingest`'s limits.

    Args:
        job: output folder, such as "ingest" or "screen/galleries/orl/ingest".
        paths: source, which the identities carry and their ids begin with → local path or URI of a
            set in a format that `raypipe.formats` reads.
        aligner: aligns every image; none where they are aligned.

    Raises:
        UserError: where the path is missing or no set, or it changed since the job was begun.
    """
    limit = config.ingest.max_bytes
    listing = storage.join(config.workspace, job, LISTING)
    fingerprint = write_listing(listing, paths, job=job, max_bytes=limit)
    steps = [
        Step(
            name="read",
            actor=ReadActor,
            arguments={"paths": paths, "max_bytes": limit},
            pool=config.ingest.pool,
        )
    ]
    if aligner:
        steps.append(
            Step(
                name="align",
                actor=AlignActor,
                arguments={"aligner": aligner.model_dump()},
                pool=config.ingest.pool,
            )
        )
    return run_stage(
        config,
        job=job,
        source=listing,
        steps=steps,
        settings={
            "max_bytes": limit,
            "sources": list(paths),
            "aligner": aligner.model_dump(exclude={"weights"}) if aligner else None,
        },
        inputs={"files": fingerprint},
        models=_networks(aligner),
    )


def write_listing(root: str, paths: dict[str, str], *, job: str, max_bytes: int) -> str:
    """Lists sources one after the other into the face set `root`, unless it says so already.

    Returns:
        Hex SHA-256 over the paths, sizes and times of the files listed.
    """
    listings = _listings(paths, max_bytes)
    digest, count, start = hashlib.sha256(), 0, time.monotonic()
    with tempfile.TemporaryDirectory() as made, console.status(f"{job}: listing") as status:
        while part := list(islice(listings, _ROWS_PER_FILE)):
            write_rows(made, f"{count:09d}.parquet", [listing.identity for listing in part])
            for listing in part:
                digest.update(f"{listing.identity.identity_id}\0{listing.fingerprint}\0".encode())
            count += len(part)
            status.update(f"{job}: listing: {count:,} identities")
        _publish(made, root, job, digest.hexdigest())
    if time.monotonic() - start > _SLOW_SECONDS:
        console.print(f"{job}: listed {count:,} identities")
    return digest.hexdigest()


def _networks(aligner: AlignerConfig | None) -> list[str]:
    """Weight files of an aligner: one, or every network of a model pack's folder."""
    if aligner is None or aligner.weights is None:
        return []
    if aligner.weights.endswith(".onnx"):
        return [aligner.weights]
    return [e.path for e in storage.listdir(aligner.weights) if e.name.endswith(".onnx")]


def _listings(paths: dict[str, str], max_bytes: int) -> Iterator[Listing]:
    """What every source lists, the places numbered through and the ids told apart."""
    index = 0
    for source, path in paths.items():
        reader = open_reader(path, source=source, max_bytes=max_bytes)
        for listing in reader.identities():
            identity = listing.identity
            name = f"{source}/{identity.identity_id}"
            yield listing._replace(identity=replace(identity, identity_id=name, index=index))
            index += 1


def _publish(made: str, root: str, job: str, fingerprint: str) -> None:
    """Puts a listing in its place, unless it is there already."""
    origin = Origin(job=f"{job}/{LISTING}", settings={}, inputs={"files": fingerprint}, models={})
    earlier = read_manifest(root)
    if earlier is not None and earlier.origin == origin:
        return
    storage.delete(root)
    for entry in storage.listdir(storage.join(made, ROWS)):
        storage.write_bytes(storage.join(root, ROWS, entry.name), storage.read_bytes(entry.path))
    counts, content = summarise(root)
    write_manifest(
        root,
        Manifest(origin=origin, counts=totals(counts, images_made=0), content_digest=content),
    )


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("ingest")
