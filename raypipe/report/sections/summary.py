"""The top of the report: what was kept, refused, made and reached."""

from raypipe.identities import NO_PICTURE
from raypipe.report.blocks import Badge, Block, Cell, Section, Table, Tile, Tiles
from raypipe.report.screened import Screened
from raypipe.report.sections import expansion, leakage, timing, verification
from raypipe.report.sections.provenance import LATEST, conserved, is_face_set
from raypipe.report.words import count, duration, percent, short_reason
from raypipe.report.workspace import JOBS, OPTIONAL, Workspace

ANCHOR, TITLE = "summary", "Summary"


def _people(workspace: Workspace) -> list[Tile]:
    """Tiles of the last face set before assembly."""
    job = next((job for job in LATEST if workspace.manifest(job)), None)
    manifest = workspace.manifest(job) if job else None
    if manifest is None:
        return []
    people, images = manifest.counts["identities"], manifest.counts["images"]
    vectors = images["rejected"].get(NO_PICTURE, 0)  # nothing that anybody could look at
    total = images["total"] - vectors
    removed = sum(images["rejected"].values()) - vectors
    drawn = workspace.manifest("seed") or workspace.manifest("vectors")
    read = "read or drawn" if drawn else "read"
    refused = sum(people["rejected"].values())
    return [
        Tile(
            label="Identities kept",
            value=f"{people['kept']:,}",
            detail=f"of {people['total']:,} {read}; {refused:,} refused",
        ),
        Tile(
            label="Images kept",
            value=f"{images['kept']:,}",
            detail=f"of {total:,}; {removed:,} removed ({percent(removed / max(total, 1))})",
        ),
    ]


def _leakage(screened: Screened | None) -> list[Tile]:
    if screened is None or not screened.compared:
        return []
    return [
        Tile(
            label="Refused: real person",
            value=f"{screened.refused_total:,}",
            detail=f"of {count(screened.compared, 'identity')} compared with"
            f" {', '.join(screened.galleries)}",
        )
    ]


def _assembled(workspace: Workspace) -> list[Tile]:
    manifest = workspace.manifest("assemble")
    if manifest is None:
        return []
    made = manifest.counts["training_set"]
    return [
        Tile(
            label="Training set",
            value=f"{made['images']:,} images",
            detail=f"{count(made['identities'], 'identity')}; {made['augmented']:,} of the images"
            " were made by augmentation",
        )
    ]


def _path(workspace: Workspace) -> Table:
    """One row a job: what went in, what was refused there and why."""
    rows: list[tuple[Cell, ...]] = []
    before: dict[str, int] = {}
    for job in JOBS:
        manifest = workspace.manifest(job)
        if manifest is None or not is_face_set(manifest.counts):
            continue
        people, images = manifest.counts["identities"], manifest.counts["images"]
        new = {
            reason: number - before.get(reason, 0)
            for reason, number in images["rejected"].items()
            if reason.startswith(f"{job}:")
        }
        added = job in ("seed", "vectors")  # beside the people of the set
        blank = job == "vectors"  # without a picture
        why = [
            f"{number:,} {short_reason(reason)}"
            for reason, number in sorted(new.items(), key=lambda item: (-item[1], item[0]))
            if number and reason != NO_PICTURE
        ]
        if not added:
            now = images["rejected"]
            back = sum(max(0, number - now.get(reason, 0)) for reason, number in before.items())
            if back:
                why.append(f"{back:,} taken back")
            before = now
        holds = conserved(manifest.counts)
        rows.append(
            (
                f"{job}, added" if added else job,
                f"{people['kept']:,}",
                "–" if blank else f"{images['kept']:,}",
                f"{images['made']:,}" if images["made"] and not blank else "–",
                ", ".join(why) or "–",
                Badge(text="adds up" if holds else "lost images", tone="good" if holds else "bad"),
            )
        )
    return Table(
        caption="From the base set to the training set",
        head=(
            "After job",
            "Identities",
            "Images",
            "Made",
            "Images removed by this job",
            "Accounts",
        ),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3}),
    )


def section(workspace: Workspace, screened: Screened | None) -> Section:
    """The summary of all finished jobs."""
    seconds = timing.total_seconds(workspace)
    tiles = [
        *_people(workspace),
        *_leakage(screened),
        *expansion.tiles(workspace),
        *_assembled(workspace),
        *verification.tiles(workspace),
    ]
    if seconds:
        tiles.append(Tile(label="Time", value=duration(seconds), detail="of all jobs together"))
    missing = [job for job in JOBS if job not in OPTIONAL and not workspace.manifest(job)]
    blocks: list[Block] = [leakage.verdict(screened), *leakage.warnings(workspace)]
    if tiles:
        blocks.append(Tiles(tiles=tuple(tiles)))
    table = _path(workspace)
    if table.rows:
        blocks.append(table)
    lead = "What was kept, refused and made, and what a recognizer trained on it reaches."
    if missing:
        lead += f" Not run yet: {', '.join(missing)}."
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)
