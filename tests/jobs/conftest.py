"""What tests of several jobs begin with."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import ray

from face_sets import finish_set
from raypipe.config import Build
from raypipe.config.embed import EmbedderConfig
from raypipe.config.sample import FAULTLESS, SampleConfig
from raypipe.embedders import open_embedder
from raypipe.faceset import write_rows
from raypipe.identities import Identity, Image
from raypipe.images import decode
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
    finish_set(clean, job="clean")
    return work


@pytest.fixture
def killed_once_saved(ray_cluster: None) -> Callable[[str, Build, str], None]:
    """Runs a job in a process of its own, which is killed once there is a file of a pattern in the
    workspace."""

    def run(job: str, config: Build, pattern: str) -> None:
        code = (
            f"import sys; from jobs import {job}; from raypipe.config import Build;"
            f"{job}.run(Build.model_validate_json(sys.argv[1]))"
        )
        address = ray.get_runtime_context().gcs_address
        process = subprocess.Popen(
            [sys.executable, "-c", code, config.model_dump_json()],
            env={**os.environ, "RAY_ADDRESS": address},
        )
        workspace = Path(config.workspace)
        while not list(workspace.glob(pattern)):
            assert process.poll() is None, "it ended before it saved anything"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (workspace / pattern.split("/")[0] / "manifest.json").exists()

    return run
