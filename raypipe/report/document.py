"""The whole report of a workspace."""

from raypipe.config.report import ReportConfig
from raypipe.report.album import Album
from raypipe.report.page import render
from raypipe.report.sections import (
    cleaning,
    curriculum,
    expansion,
    judging,
    leakage,
    planned,
    provenance,
    seeds,
    similarity,
    summary,
    timing,
    training,
    verification,
)
from raypipe.report.workspace import Workspace

# Encoded images; as base64 in the page they take a third more, and the drawings some 300 kB.
IMAGE_BYTES = 3_300_000


def document(root: str, config: ReportConfig) -> str:
    """The report as one HTML page of less than 5 MB.

    Reads sampled rows and small columns of the face sets, never a whole set.

    Args:
        root: the workspace; a section whose job has not been run says so.

    Raises:
        UserError: where a file of a job is damaged.
    """
    workspace, album = Workspace(root), Album(IMAGE_BYTES)
    screened = leakage.scanned(workspace, config)
    # The leaked faces come first in the album: a large set must not crowd them out.
    leaks = leakage.section(workspace, config, album, screened)
    new = [seeds.section(workspace, album), expansion.section(workspace, album)]
    cleaned = [cleaning.section(workspace, config, album), judging.section(workspace, album)]
    sections = [
        summary.section(workspace, screened),
        *(section for section in cleaned if section),
        similarity.section(workspace),
        leaks,
        *(section for section in new if section),
        curriculum.section(workspace, album),
        training.section(workspace),
        verification.section(workspace),
        timing.section(workspace),
        planned.section(workspace),
        provenance.section(workspace),
    ]
    return render(config.title, f"Workspace {root}", sections)
