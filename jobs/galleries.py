"""The public galleries that no new person may be in, and the search of face sets in them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import ray

from actors.search import SearchActor
from jobs.embed import embed_set
from jobs.ingest import ingest_sources
from jobs.stage import map_files
from raypipe import storage
from raypipe.config import Build
from raypipe.config.screen import GalleryConfig
from raypipe.faceset import FaceSet
from raypipe.impostors import calibrate_gallery
from raypipe.templates import load_gallery


class Gallery(NamedTuple):
    """A gallery as an embedded face set."""

    name: str
    root: str
    digest: str


class Calibrated(NamedTuple):
    """A gallery's threshold, and what leakage.json says about it."""

    name: str
    calibration: Any
    facts: dict[str, Any]


def embedded(config: Build) -> list[Gallery]:
    """The galleries of `screen` as face sets with embeddings, made once
    (`screen/galleries/NAME/ingest`, `embed`)."""
    return [_embedded(config, gallery) for gallery in config.screen.galleries]


def _embedded(config: Build, gallery: GalleryConfig) -> Gallery:
    job = f"screen/galleries/{gallery.name}"
    ingest_sources(
        config,
        job=f"{job}/ingest",
        sources=[gallery],
        aligner=gallery.aligner,
    )
    manifest = embed_set(
        config, job=f"{job}/embed", source=storage.join(config.workspace, job, "ingest")
    )
    root = storage.join(config.workspace, job, "embed")
    return Gallery(gallery.name, root, manifest.content_digest)


def calibrated(config: Build, galleries: Sequence[Gallery]) -> list[Calibrated]:
    """The threshold of every gallery, measured in parallel."""
    rate = config.screen.false_match_rate
    task = ray.remote(num_cpus=1)(_calibrated)
    return ray.get([task.remote(gallery, rate) for gallery in galleries])


def _calibrated(gallery: Gallery, rate: float) -> Calibrated:
    faces = load_gallery(gallery.name, gallery.root)
    calibration = calibrate_gallery(faces, rate)
    facts = {"faces": len(faces.faces), "people": len(faces.names)}
    return Calibrated(gallery.name, calibration, facts | calibration.to_json(faces.names))


def search(
    config: Build, roots: Sequence[str], galleries: Sequence[Gallery]
) -> list["ray.ObjectRef[pa.Table]"]:
    """Rows of `raypipe.screening.SEARCHED` for the identities of face sets, in the object store."""
    return map_files(
        config,
        [path for root in roots for path in FaceSet(root).files()],
        SearchActor,
        {"galleries": [(gallery.name, gallery.root) for gallery in galleries]},
        config.screen.pool,
    )
