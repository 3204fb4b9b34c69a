"""One run of one job: begun with known settings, resumed only with the same, finished at once."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raypipe import storage
from raypipe.config import Build
from raypipe.errors import UserError
from raypipe.manifest import (
    Manifest,
    Origin,
    read_manifest,
    read_started,
    write_manifest,
    write_started,
)
from raypipe.node_cache import local

RUN = "run.json"


class Work:
    """A job's folder while the job works in it.

    Attributes:
        root: the folder.
        manifest: the manifest, where the job was complete already.
        resumed: whether an earlier run with the same settings was begun and not finished.
    """

    def __init__(self, root: str, origin: Origin, manifest: Manifest | None, resumed: bool) -> None:
        self.root = root
        self.origin = origin
        self.manifest = manifest
        self.resumed = resumed
        self._stages: list[dict[str, Any]] = []
        self._start = time.time()

    @property
    def complete(self) -> bool:
        """Whether there is nothing left to do."""
        return self.manifest is not None

    def path(self, *parts: str) -> str:
        """A path inside the folder."""
        return storage.join(self.root, *parts)

    def timing(
        self, name: str, seconds: float, rows: int = 0, images: int = 0, **more: Any
    ) -> None:
        """Notes how long a part took; it goes to `run.json`."""
        rate = images / seconds if seconds > 0 else 0.0
        self._stages.append(
            {
                "name": name,
                "seconds": round(seconds, 3),
                "rows": rows,
                "images": images,
                "images_per_second": round(rate, 2),
                **more,
            }
        )

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Notes how long the body took, unless it fails."""
        start = time.perf_counter()
        yield
        self.timing(name, time.perf_counter() - start)

    def finish(
        self, counts: dict[str, Any], content_digest: str, extra: dict[str, Any] | None = None
    ) -> Manifest:
        """Writes `run.json`, then the manifest that makes the folder complete."""
        now = time.time()
        storage.write_json(
            self.path(RUN),
            {
                "job": self.origin.job,
                "started": round(self._start, 3),
                "seconds": round(now - self._start, 3),
                "resumed": self.resumed,
                "stages": self._stages,
            },
        )
        manifest = Manifest(
            origin=self.origin, counts=counts, content_digest=content_digest, extra=extra or {}
        )
        write_manifest(self.root, manifest)
        self.manifest = manifest
        return manifest


def begin(
    config: Build,
    *,
    job: str,
    settings: dict[str, Any],
    inputs: dict[str, str] | None = None,
    models: Sequence[str] = (),
) -> Work:
    """Opens a job's folder, `{workspace}/{job}`.

    Args:
        job: name of the job, which is its folder; "screen/galleries/orl/ingest" is fine.
        settings: the part of the configuration that its result depends on, as JSON.
        inputs: name → digest of everything it reads.
        models: weight files it uses.

    Raises:
        UserError: where the folder was begun or made with something else; it says with what.
    """
    root = storage.join(config.workspace, job)
    origin = Origin(
        job=job,
        settings=settings,
        inputs=inputs or {},
        models={path.rsplit("/", 1)[-1]: storage.sha256_file(local(path)) for path in models},
    )
    manifest = read_manifest(root)
    earlier = manifest.origin if manifest else read_started(root)
    if earlier is None:
        write_started(root, origin)
    elif changes := origin.changes(earlier):
        state = "made" if manifest else "begun"
        raise UserError(
            f"{job}: {root} was {state} with something else: {'; '.join(changes)}. "
            f"Choose another workspace, or delete {root} to make it anew"
        )
    if earlier is not None and manifest is None:
        storage.delete_unfinished(root)  # of the run that was killed
    return Work(root, origin, manifest, resumed=earlier is not None)
