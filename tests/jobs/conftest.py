"""What tests of several jobs begin with."""

from pathlib import Path

import numpy as np
import pytest

from jobs.stage import totals
from raypipe.config.embed import EmbedderConfig
from raypipe.config.sample import FAULTLESS, SampleConfig
from raypipe.embedders import open_embedder
from raypipe.faceset import Identity, Image, write_rows
from raypipe.images import decode
from raypipe.manifest import Manifest, Origin, summarise, write_manifest
from raypipe.world import make_base


@pytest.fixture(scope="session")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace up to `clean`: 30 generated people with 4 images each, embedded. To be copied."""
    work = tmp_path_factory.mktemp("cleaned")
    make_base(SampleConfig(identities=30, images=4, **FAULTLESS), 0, str(work))
    embedder = open_embedder(EmbedderConfig(kind="dlib"), None)
    rows = []
    for index, folder in enumerate(sorted((work / "base").iterdir())):
        files = sorted(folder.iterdir())
        faces = np.stack([decode(file.read_bytes(), source=file.name) for file in files])
        images = [
            Image(image_id=file.name, data=file.read_bytes(), source="made", embedding=vector)
            for file, vector in zip(files, embedder.embed(faces), strict=True)
        ]
        name = f"base/{folder.name}"
        rows.append(Identity(identity_id=name, index=index, source="base", images=images))
    clean = str(work / "clean")
    write_rows(clean, "0.parquet", rows)
    counts, digest = summarise(clean)
    origin = Origin(job="clean", settings={}, inputs={}, models={})
    write_manifest(
        clean,
        Manifest(origin=origin, counts=totals(counts, images_made=0), content_digest=digest),
    )
    return work
