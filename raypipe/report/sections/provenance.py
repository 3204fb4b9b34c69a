"""What was made from what: manifests, digests, weights, and that nothing was lost."""

from typing import Any

from raypipe.licences import NOT_STATED, Use
from raypipe.provenance import LICENCES
from raypipe.report.blocks import Badge, Block, Cell, Section, Table
from raypipe.report.words import short_digest, size
from raypipe.report.workspace import JOBS, OPTIONAL, Workspace

ANCHOR, TITLE = "provenance", "Provenance"
# Face sets; the last before assembly comes first.
LATEST = ("expand", "screen", "judge", "clean", "embed", "ingest")


def conserved(counts: dict[str, Any]) -> bool:
    """Whether kept + rejected = read + made, for identities and for images."""
    people, images = counts["identities"], counts["images"]
    return (
        people["kept"] + sum(people["rejected"].values()) == people["total"]
        and images["kept"] + sum(images["rejected"].values()) == images["read"] + images["made"]
    )


def is_face_set(counts: dict[str, Any]) -> bool:
    """Whether counts are those of a face set."""
    return isinstance(counts.get("images"), dict) and "rejected" in counts["images"]


def _accounts(workspace: Workspace) -> Table | None:
    rows: list[tuple[Cell, ...]] = []
    for job in JOBS:
        manifest = workspace.manifest(job)
        if manifest is None or not is_face_set(manifest.counts):
            continue
        counts = manifest.counts
        people, images = counts["identities"], counts["images"]
        holds = conserved(counts)
        rows.append(
            (
                job,
                f"{people['total']:,}",
                f"{people['kept']:,}",
                f"{sum(people['rejected'].values()):,}",
                f"{images['read']:,}",
                f"{images['made']:,}",
                f"{images['kept']:,}",
                f"{sum(images['rejected'].values()):,}",
                Badge(
                    text="adds up" if holds else "does not add up", tone="good" if holds else "bad"
                ),
            )
        )
    if not rows:
        return None
    return Table(
        caption="Accounts: kept + rejected = read + made",
        head=(
            "Job",
            "Identities",
            "kept",
            "rejected",
            "Images read",
            "made",
            "kept",
            "rejected",
            "Check",
        ),
        rows=tuple(rows),
        numeric=frozenset(range(1, 8)),
    )


def _manifests(workspace: Workspace) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for job in JOBS:
        manifest = workspace.manifest(job)
        if manifest is None:
            if job not in OPTIONAL:
                rows.append((job, "not run", "–", "–", "–", "–"))
            continue
        origin = manifest.origin
        inputs = ", ".join(f"{name} {short_digest(value)}" for name, value in origin.inputs.items())
        rows.append(
            (
                job,
                origin.version,
                short_digest(manifest.content_digest),
                inputs or "–",
                ", ".join(f"{n} {short_digest(v)}" for n, v in origin.models.items()) or "–",
                size(manifest.counts["bytes"]) if "bytes" in manifest.counts else "–",
            )
        )
    return Table(
        caption="Manifests",
        head=("Job", "Version", "Content digest", "Made from", "Weights (SHA-256)", "Size"),
        rows=tuple(rows),
        numeric=frozenset({5}),
    )


def _sources(workspace: Workspace) -> Table | None:
    job = next((job for job in LATEST if workspace.manifest(job)), None)
    manifest = workspace.manifest(job) if job else None
    if manifest is None:
        return None
    rows = tuple(
        (
            name,
            f"{value.get('identities', 0):,}",
            f"{value.get('identities_kept', 0):,}",
            f"{value.get('images', 0):,}",
            f"{value.get('images_kept', 0):,}",
        )
        for name, value in sorted(manifest.counts["sources"].items())
    )
    return Table(
        caption=f"Where the people come from, after {job}",
        head=("Source", "Identities", "kept", "Images", "kept"),
        rows=rows,
        numeric=frozenset({1, 2, 3, 4}),
    )


def _licences(workspace: Workspace) -> Table | None:
    """What the training set was made from, and under which licence that stands."""
    found = workspace.json("assemble", LICENCES)
    if found is None:
        return None
    uses = [Use(**use) for use in found]
    rows = []
    for use in uses:
        licence: Cell = use.licence
        if use.licence == NOT_STATED or use.restricted:
            licence = Badge(text=use.licence, tone="warn")
        rows.append((f"{use.kind} {use.name}", use.role, licence, use.said_by))
    return Table(
        caption="Licences of what the training set was made from",
        head=("What", "Used as", "Licence", "Said by"),
        rows=tuple(rows),
    )


def section(workspace: Workspace) -> Section:
    """The section of all manifests."""
    blocks: list[Block] = []
    for table in (
        _accounts(workspace),
        _sources(workspace),
        _licences(workspace),
        _manifests(workspace),
    ):
        if table:
            blocks.append(table)
    lead = (
        "What each job made, from which inputs and with which weights. A digest is the SHA-256 of"
        " the content; its first 12 digits are shown, the whole is in manifest.json of each job's"
        " folder. The same configuration gives the same digests again. Look for a row that does not"
        " add up: it would mean that an image was lost without a reason."
    )
    if workspace.manifest("vectors"):
        lead += " A vector counts as an image that was made and rejected, for it has no picture."
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)
