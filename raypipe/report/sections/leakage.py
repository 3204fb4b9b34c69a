"""Leakage: who was refused for being in a public gallery, and who came close."""

from typing import Any

from raypipe.config.report import ReportConfig
from raypipe.faceset import FaceSet
from raypipe.identities import Identity
from raypipe.report.album import Album
from raypipe.report.blocks import (
    Badge,
    Block,
    Cell,
    Meter,
    Section,
    Table,
    Verdict,
    absent,
)
from raypipe.report.screened import Row, Screened, scan
from raypipe.report.sections.cleaning import first_face, has_picture
from raypipe.report.words import count, percent
from raypipe.report.workspace import Workspace

ANCHOR, TITLE = "leakage", "Leakage"
LEAKAGE = "leakage.json"  # of the screening job
CALLS = 8  # closest admitted identities shown


def verdict(screened: Screened | None) -> Verdict:
    """The answer to "is a real person of a gallery in the set?", in one sentence."""
    if screened is None:
        return Verdict(
            word="Not checked",
            sentence="The screen job has not been run: nobody has compared the set with a gallery.",
            tone="warn",
        )
    if not screened.compared:
        return Verdict(
            word="Not checked",
            sentence="No identity was compared with a public gallery: the configuration names"
            " none.",
            tone="warn",
        )
    names = ", ".join(screened.galleries)
    refused = f"{count(screened.refused_total, 'identity')} that did "
    refused += "was refused" if screened.refused_total == 1 else "were refused"
    if screened.above:
        return Verdict(
            word="Leakage",
            sentence=f"{count(screened.above, 'admitted identity')} of {screened.admitted:,}"
            f" reach the threshold against {names} and must not be used.",
            tone="bad",
        )
    if screened.unchecked:
        return Verdict(
            word="Not complete",
            sentence=f"{count(screened.unchecked, 'admitted identity')} could not be compared with"
            f" {names}, for want of an embedding.",
            tone="warn",
        )
    closest = ""
    if screened.closest:
        evidence = screened.closest[0].evidence
        closest = (
            f" The closest admitted one has {evidence.gallery_similarity:.3f} against a threshold"
            f" of {evidence.gallery_threshold:.3f}."
        )
    return Verdict(
        word="No leakage found",
        sentence=f"None of the {count(screened.admitted, 'admitted identity')} reaches the"
        f" similarity from which a face counts as a person of {names}; {refused}.{closest}",
        tone="good",
    )


class _Galleries:
    """Faces of the galleries, read once for all tables."""

    def __init__(self, workspace: Workspace, rows: list[Row]) -> None:
        self._people: dict[tuple[str, str], Identity] = {}
        wanted: dict[str, set[str]] = {}
        for row in rows:
            if row.evidence.gallery and row.evidence.gallery_identity:
                names = wanted.setdefault(row.evidence.gallery, set())
                names.add(row.evidence.gallery_identity)
        for gallery, names in wanted.items():
            root = workspace.path("screen", "galleries", gallery, "embed")
            for person in FaceSet(root).read(sorted(names)):
                self._people[gallery, person.identity_id] = person

    def face(self, album: Album, row: Row) -> Cell:
        """The nearest gallery face of a row, or its name where the gallery has lost it."""
        gallery, name = row.evidence.gallery or "", row.evidence.gallery_identity or ""
        image_id = row.evidence.gallery_image or ""
        person = self._people.get((gallery, name))
        for image in person.images if person else []:
            if image.image_id == image_id:
                alt = f"Gallery face {image_id} of {name} in {gallery}"
                return album.face(image.data, alt=alt, caption=(name, image_id))
        return f"{name} {image_id} of {gallery}"


def warnings(workspace: Workspace) -> list[Verdict]:
    """What weakens the verdict, as the screening job noted it."""
    summary = workspace.json("screen", LEAKAGE)
    return [
        Verdict(word="Take care", sentence=text[0].upper() + text[1:] + ".", tone="warn")
        for text in (summary["warnings"] if summary else [])
    ]


def _comparisons(summary: dict[str, Any]) -> Table:
    return Table(
        caption="What was compared",
        head=(
            "Gallery",
            "People",
            "Faces",
            "Identities compared",
            "Refused",
            "Threshold",
            "False match rate",
            "Own faces recognised",
        ),
        rows=tuple(
            (
                name,
                f"{facts['people']:,}",
                f"{facts['faces']:,}",
                f"{facts['compared']:,}",
                f"{facts['refused']:,}",
                f"{facts['threshold']:.3f}",
                f"1 in {1 / summary['false_match_rate']:,.0f}",
                "–" if facts["recognised"] is None else percent(facts["recognised"]),
            )
            for name, facts in sorted(summary["galleries"].items())
        ),
        numeric=frozenset(range(1, 8)),
    )


def _pairs(
    album: Album,
    caption: str,
    rows: list[Row],
    people: dict[str, Identity],
    galleries: _Galleries,
    badge: Badge,
) -> Table:
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        evidence = row.evidence
        meter = Meter(
            value=evidence.gallery_similarity or 0.0,
            threshold=evidence.gallery_threshold or 0.0,
            tone=badge.tone,
        )
        face = first_face(album, people[row.identity_id], (row.identity_id,))
        cells.append((face, galleries.face(album, row), meter, badge))
    head = ("Identity", "Nearest gallery face", "Similarity", "Decision")
    return Table(caption=caption, head=head, rows=tuple(cells))


def _repeated(album: Album, rows: list[Row], people: dict[str, Identity], total: int) -> Table:
    cells: list[tuple[Cell, ...]] = []
    for row in rows:
        evidence = row.evidence
        other: Cell = evidence.nearest or "–"
        if evidence.nearest in people:
            other = first_face(album, people[evidence.nearest], (evidence.nearest,))
        meter = Meter(
            value=evidence.nearest_similarity or 0.0,
            threshold=evidence.nearest_threshold or 0.0,
            tone="bad",
        )
        face = first_face(album, people[row.identity_id], (row.identity_id,))
        cells.append((face, other, meter, Badge(text="refused", tone="bad")))
    shown = f"{len(rows)} of {total:,}" if total > len(rows) else f"{total:,}"
    return Table(
        caption=f"Refused for being too much like another identity ({shown})",
        head=("Refused", "Admitted in its place", "Similarity", "Decision"),
        rows=tuple(cells),
    )


def _made_since(workspace: Workspace, people: dict[str, Identity]) -> dict[str, Identity]:
    """Those without a picture at the screening that have one now, as they are now."""
    expanded = workspace.rows("expand")
    blank = [name for name, person in people.items() if not has_picture(person)]
    if expanded is None or not blank:
        return {}
    return {person.identity_id: person for person in expanded.read(blank) if person.kept}


def section(
    workspace: Workspace, config: ReportConfig, album: Album, screened: Screened | None
) -> Section:
    """The section of the screening job.

    Args:
        screened: what `scanned` gave.
    """
    face_set = workspace.rows("screen")
    if screened is None or face_set is None:
        found = absent(ANCHOR, TITLE, "screen")
        found.blocks.append(verdict(screened))
        return found
    shown = [*screened.refused, *screened.closest, *screened.repeated]
    wanted = {row.identity_id for row in shown}
    wanted |= {row.evidence.nearest for row in screened.repeated if row.evidence.nearest}
    people = {person.identity_id: person for person in face_set.read(sorted(wanted))}
    people |= _made_since(workspace, people)
    galleries = _Galleries(workspace, shown)
    summary = workspace.json("screen", LEAKAGE)
    blocks: list[Block] = [verdict(screened), *warnings(workspace)]
    if summary["galleries"]:
        blocks.append(_comparisons(summary))
    if screened.refused:
        total, part = screened.refused_total, len(screened.refused)
        number = f"{part} of {total:,}" if total > part else f"{total:,}"
        caption = f"Refused: in a public gallery ({number})"
        badge = Badge(text="refused", tone="bad")
        blocks.append(_pairs(album, caption, screened.refused, people, galleries, badge))
    if screened.closest:
        caption = "Admitted: the closest calls"
        badge = Badge(text="admitted", tone="good")
        blocks.append(_pairs(album, caption, screened.closest, people, galleries, badge))
    if screened.repeated:
        blocks.append(_repeated(album, screened.repeated, people, screened.repeated_total))
    lead = (
        "Every identity was compared with every face of the public galleries, and with every other"
        " identity. The threshold is not a constant: it is measured on the gallery's own pairs of"
        " different people, so that a comparison of two strangers reaches it only at the false"
        " match rate set in the configuration. Compare the two faces of a row: a refused pair"
        " should look like one person, a close call that was admitted should not. On the scale,"
        " a dot right"
        " of the mark is one person."
    )
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)


def scanned(workspace: Workspace, config: ReportConfig) -> Screened | None:
    """The evidence of the screening job, None where it has not been run."""
    face_set, summary = workspace.rows("screen"), workspace.json("screen", LEAKAGE)
    return scan(face_set, list(summary["galleries"]), config.pairs, CALLS) if face_set else None
