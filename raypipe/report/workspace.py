"""What the jobs left in a workspace, opened for the report."""

from typing import Any

from raypipe import storage
from raypipe.faceset import FaceSet
from raypipe.manifest import Manifest, read_manifest

# In the order of a build; the folder of a job has its name.
JOBS = (
    *("sample", "ingest", "embed", "clean", "judge", "vectors", "seed", "screen", "expand"),
    *("assemble", "train", "evaluate"),
)
OPTIONAL = frozenset({"sample", "judge", "vectors", "seed", "expand"})  # where there is their part


class Workspace:
    """A workspace whose jobs may or may not have been run.

    Attributes:
        root: folder or URI.
        manifests: of the finished jobs, in the order of a build.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        found = {job: read_manifest(storage.join(root, job)) for job in JOBS}
        self.manifests = {job: manifest for job, manifest in found.items() if manifest}

    def path(self, *parts: str) -> str:
        """A path in the workspace."""
        return storage.join(self.root, *parts)

    def manifest(self, job: str) -> Manifest | None:
        """The manifest of a finished job, None for a job that is not finished."""
        return self.manifests.get(job)

    def json(self, *parts: str) -> Any:
        """A JSON file of a job, None where there is none."""
        path = self.path(*parts)
        return storage.read_json(path) if storage.exists(path) else None

    def rows(self, job: str) -> FaceSet | None:
        """The face set of a finished job."""
        return FaceSet(self.path(job)) if job in self.manifests else None
