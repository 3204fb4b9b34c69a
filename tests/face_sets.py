"""Face sets that tests make by hand, finished as a job would finish them."""

from collections.abc import Iterable

from jobs.stage import totals
from raypipe.faceset import write_files
from raypipe.identities import Identity
from raypipe.manifest import Manifest, Origin, summarise, write_manifest


def write_set(root: str, people: Iterable[Identity], *, job: str = "source") -> Manifest:
    """Writes a face set, ten identities in a file, and finishes it."""
    write_files(root, iter(people), "part", 10)
    return finish_set(root, job=job)


def finish_set(root: str, *, job: str = "source") -> Manifest:
    """Writes the manifest of a face set whose files are there."""
    counts, digest = summarise(root)
    origin = Origin(job=job, settings={}, inputs={}, models={})
    manifest = Manifest(origin=origin, counts=totals(counts, images_made=0), content_digest=digest)
    write_manifest(root, manifest)
    return manifest
