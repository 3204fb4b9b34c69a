"""Writes `{workspace}/report/report.html`: one file that shows what the other jobs made.

No Ray: a page of samples and small columns is made in seconds by one process.
"""

import hashlib
import time

from jobs.work import begin
from raypipe import storage
from raypipe.config import Build
from raypipe.errors import UserError
from raypipe.manifest import MANIFEST, STARTED, Manifest, Origin, read_manifest
from raypipe.planning.plan import PLAN
from raypipe.provenance import LICENCES
from raypipe.report.document import document
from raypipe.report.workspace import Workspace

REPORT = "report.html"


def run(config: Build) -> Manifest:
    """Writes the report of the jobs that are finished; does nothing where none has changed.

    A report is a view and nothing is made from it, so unlike other results it is replaced when
    something it shows was made anew.

    Raises:
        UserError: where no job is finished yet, or a job's file is damaged.
    """
    workspace = Workspace(config.workspace)
    inputs = {job: manifest.content_digest for job, manifest in workspace.manifests.items()}
    if not inputs:
        raise UserError(f"report: no job is finished in {config.workspace}; run one first")
    licences = workspace.path("assemble", LICENCES)  # not in the digest of what was assembled
    if "assemble" in inputs and storage.exists(licences):
        inputs["licences"] = storage.sha256_file(licences)
    if storage.exists(workspace.path(PLAN)):
        inputs["plan"] = storage.sha256_file(workspace.path(PLAN))
    settings = config.report.model_dump()
    root = workspace.path("report")
    earlier = read_manifest(root)
    origin = Origin(job="report", settings=settings, inputs=inputs, models={})
    if earlier is None or origin.changes(earlier.origin):
        storage.delete(storage.join(root, MANIFEST))
        storage.delete(storage.join(root, STARTED))
    work = begin(config, job="report", settings=settings, inputs=inputs)
    if work.manifest:
        return work.manifest
    start = time.perf_counter()
    page = document(config.workspace, config.report).encode()
    storage.write_bytes(work.path(REPORT), page)
    work.timing("render", time.perf_counter() - start)
    return work.finish({"bytes": len(page)}, hashlib.sha256(page).hexdigest())


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("report")
