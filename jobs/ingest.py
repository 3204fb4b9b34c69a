"""Reads the base set into a face set: a row an identity, with the bytes of its images.

The source is listed first, into a face set of rows without bytes; the stage then maps those rows,
so that it resumes like any other. What lies in files of many images is listed in parts, by the
workers. A source whose files changed is listed anew, and noticed.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import ray
from rich.markup import escape

from actors.align import AlignActor
from actors.read import ReadActor
from jobs.cluster import connect
from jobs.progress import console
from jobs.stage import Step, explain, run_stage, totals
from raypipe import storage
from raypipe.aligners import weights_files
from raypipe.config import Build
from raypipe.config.align import AlignerConfig
from raypipe.config.ingest import SourceConfig
from raypipe.errors import UserError
from raypipe.faceset import ROWS, write_rows
from raypipe.formats import Reader, open_reader
from raypipe.formats.row_groups import RowGroupsReader
from raypipe.identities import Identity
from raypipe.manifest import Manifest, Origin, digest_of, read_manifest, summarise, write_manifest
from raypipe.scratch import scratch

LISTING = "listing"
_ROWS_PER_FILE = 1024
_SLOW_SECONDS = 5


def run(config: Build) -> Manifest:
    """Ingests the configured sources into `{workspace}/ingest`."""
    if not config.ingest.sources:
        raise UserError("ingest.sources: names no set to read; see configs/demo.yaml")
    return ingest_sources(
        config, job="ingest", sources=config.ingest.sources, aligner=config.ingest.aligner
    )


def ingest_sources(
    config: Build,
    *,
    job: str,
    sources: Sequence[SourceConfig],
    aligner: AlignerConfig | None = None,
) -> Manifest:
    """Ingests sources into `{workspace}/{job}`, with `config.ingest`'s limits.

    Args:
        job: output folder, such as "ingest" or "screen/galleries/orl/ingest".
        sources: the identities of each carry its name as their source, and their ids begin with it.
        aligner: aligns every image; none where they are aligned.

    Raises:
        UserError: where a path is missing or no set, or it changed since the job was begun.
    """
    limit = config.ingest.max_bytes
    listing = storage.join(config.workspace, job, LISTING)
    fingerprint = write_listing(config, listing, sources, job=job)
    steps = [
        Step(
            name="read",
            actor=ReadActor,
            arguments={"paths": {item.name: item.path for item in sources}, "max_bytes": limit},
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
            "sources": [item.name for item in sources],
            "aligner": aligner.model_dump(exclude={"weights"}) if aligner else None,
        },
        inputs={"files": fingerprint},
        models=weights_files(aligner) if aligner else [],
    )


def write_listing(config: Build, root: str, sources: Sequence[SourceConfig], *, job: str) -> str:
    """Lists sources one after the other into the face set `root`, unless it says so already.

    Returns:
        Hex SHA-256 over the names, sizes and times of the files that were listed, and the masks.
    """
    readers = {
        item.name: open_reader(
            item.path, source=item.name, max_bytes=config.ingest.max_bytes, mask=item.mask
        )
        for item in sources
    }
    masks = {item.name: storage.sha256_file(item.mask) for item in sources if item.mask}
    scan = _on_workers(config, job)
    earlier = read_manifest(root)
    if earlier and earlier.origin == _origin(job, _fingerprints(readers, scan, masks)):
        return digest_of(earlier.origin.inputs)
    count, start, found = 0, time.monotonic(), dict(masks)
    with scratch() as made, console.status(f"{job}: listing") as status:
        for name, reader in readers.items():
            for part in _listed(reader, scan, found, name):
                rows = [
                    replace(item, identity_id=f"{name}/{item.identity_id}", index=count + place)
                    for place, item in enumerate(part)
                ]
                write_rows(made, f"{count:09d}.parquet", rows)
                count += len(rows)
                status.update(f"{job}: listing: {count:,} identities")
        _publish(made, root, job, found)
    if time.monotonic() - start > _SLOW_SECONDS:
        console.print(f"{job}: listed {count:,} identities")
    return digest_of(found)


def _listed(
    reader: Reader, scan: Callable, found: dict[str, str], name: str
) -> Iterator[list[Identity]]:
    """Some identities of a source at a time; at the end `found` holds its fingerprint."""
    stamp, digest = reader.stamp(), hashlib.sha256()
    listings = iter(reader.identities(scan))
    while part := list(islice(listings, _ROWS_PER_FILE)):
        for listing in part:
            digest.update(f"{listing.identity.identity_id}\0{listing.fingerprint}\0".encode())
        yield [listing.identity for listing in part]
    found[f"files of {name}"] = stamp or digest.hexdigest()
    if isinstance(reader, RowGroupsReader) and reader.strewn:
        console.print(
            f"[bold yellow]slow[/] {escape(reader.path)}: the images of a person lie in many row "
            "groups, each of which is read for each of them; `raypipe convert` it to hsface first",
            soft_wrap=True,
        )


def _fingerprints(
    readers: dict[str, Reader], scan: Callable, masks: dict[str, str]
) -> dict[str, str]:
    """What `write_listing` would find of sources now."""
    found = dict(masks)
    for name, reader in readers.items():
        stamp = reader.stamp()
        if stamp is None:
            for _ in _listed(reader, scan, found, name):
                pass
        else:
            found[f"files of {name}"] = stamp
    return found


def _on_workers(config: Build, job: str) -> Callable[[Callable, Iterable], Iterator]:
    """`map` over the workers of the cluster; what is one piece is not worth the way there."""

    def scan(function: Callable, parts: Iterable) -> Iterator:
        parts = list(parts)
        if len(parts) < 2:
            yield from map(function, parts)
            return
        connect(config)
        remote, shared = ray.remote(_apply), ray.put(function)
        most = 2 * int(ray.cluster_resources()["CPU"])
        running = [remote.remote(shared, part) for part in parts[:most]]
        try:
            for number in range(len(parts)):
                yield ray.get(running[number])
                running[number] = None  # its table may leave the object store
                if number + most < len(parts):
                    running.append(remote.remote(shared, parts[number + most]))
        except ray.exceptions.RayError as error:
            if mistake := explain(job, error):
                raise mistake from None
            raise

    return scan


def _apply(function: Callable, part: Any) -> Any:
    return function(part)


def _origin(job: str, inputs: dict[str, str]) -> Origin:
    return Origin(job=f"{job}/{LISTING}", settings={}, inputs=inputs, models={})


def _publish(made: str, root: str, job: str, inputs: dict[str, str]) -> None:
    """Puts a listing in its place."""
    storage.delete(root)
    for entry in storage.listdir(storage.join(made, ROWS)):
        storage.write_bytes(storage.join(root, ROWS, entry.name), storage.read_bytes(entry.path))
    counts, content = summarise(root)
    write_manifest(
        root,
        Manifest(
            origin=_origin(job, inputs),
            counts=totals(counts, images_made=0),
            content_digest=content,
        ),
    )


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("ingest")
