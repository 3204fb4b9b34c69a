"""Faces before and after cleaning: what was removed, and why."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from raypipe.config.report import ReportConfig
from raypipe.faceset import FaceSet
from raypipe.identities import NO_PICTURE, Identity, Image
from raypipe.manifest import Manifest
from raypipe.report.album import Album
from raypipe.report.blocks import Badge, Block, Cell, Face, Meter, Section, Strip, Table, absent
from raypipe.report.words import count, reason_sentence, short_reason, signed
from raypipe.report.workspace import Workspace

ANCHOR, TITLE = "cleaning", "Cleaning"
_KEPT, _REMOVED = 7, 9  # faces of a strip: two lines on a desktop
_SAME = 8  # folders of one person looked at
DUPLICATE = "clean:duplicate_identity"
_LIGHT = ["identity_id", "rejected", "clean", "images.list.element.rejected"]


@dataclass(frozen=True, kw_only=True)
class _Light:
    """A row without its images."""

    identity_id: str
    reasons: frozenset[str]
    duplicates: list[str]
    similarity: float | None
    threshold: float | None


def _rows(face_set: FaceSet) -> Iterator[_Light]:
    for table in face_set.tables(_LIGHT):
        for row in table.to_pylist():
            reasons = {image["rejected"] for image in row["images"]} | {row["rejected"]}
            clean: dict[str, Any] = row["clean"] or {}
            yield _Light(
                identity_id=row["identity_id"],
                reasons=frozenset(reasons - {None}),
                duplicates=clean.get("duplicates") or [],
                similarity=clean.get("duplicate_similarity"),
                threshold=clean.get("duplicate_threshold"),
            )


def choose(face_set: FaceSet, reasons: set[str], number: int) -> list[str]:
    """Identities to show: first those that bring a reason not seen yet, then others, one untouched.

    Reads small columns only, and stops as soon as it has found them.

    Args:
        reasons: every reason of rejection that occurs in the set.
        number: identities wanted; more are given where so many reasons need them.
    """
    missing = set(reasons)
    chosen: list[str] = []
    others: list[str] = []
    untouched: list[str] = []
    for row in _rows(face_set):
        if row.reasons & missing:
            missing -= row.reasons
            chosen.append(row.identity_id)
        elif row.reasons and len(others) < number:
            others.append(row.identity_id)
        elif not row.reasons and len(untouched) < number:
            untouched.append(row.identity_id)
        if not missing and len(chosen) + len(others) >= number and untouched:
            break
    chosen += others[: max(number - len(chosen) - len(untouched[:1]), 0)]
    return chosen + untouched[: max(number - len(chosen), 1)]


def _rank(image: Image) -> tuple[float, str]:
    """Puts the images most similar to the centre first."""
    return -(image.similarity or 0.0), image.image_id


def spread(images: list[Image], number: int) -> list[Image]:
    """At most `number` images, from the most to the least similar, evenly spread."""
    ordered = sorted(images, key=_rank)
    if len(ordered) <= number:
        return ordered
    return [ordered[round(i * (len(ordered) - 1) / (number - 1))] for i in range(number)]


def _face(album: Album, identity: Identity, image: Image) -> Face:
    measured = () if image.similarity is None else (signed(image.similarity),)
    if image.rejected is None:
        alt = f"Kept face {image.image_id} of identity {identity.identity_id}"
        return album.face(image.data, alt=alt, caption=measured)
    reason = short_reason(image.rejected)
    alt = f"Removed face {image.image_id} of identity {identity.identity_id}: {reason}"
    return album.face(image.data, alt=alt, caption=(reason, *measured), tone="bad")


def strip(album: Album, identity: Identity) -> Strip:
    """An identity with its kept faces, then its removed ones in red frames."""
    kept = [image for image in identity.images if image.rejected is None]
    removed = [image for image in identity.images if image.rejected is not None]
    # One of each reason first, so that the cut at the end never hides a reason.
    first = {image.rejected: image for image in reversed(removed)}
    removed.sort(key=lambda image: image is not first[image.rejected])
    shown_kept, shown_removed = spread(kept, _KEPT), removed[:_REMOVED]
    note = f"{count(len(kept), 'image')} kept, {len(removed):,} removed."
    if identity.clean:
        sizes = ", ".join(str(number) for number in identity.clean.cluster_sizes[:6])
        note += (
            f" Rule {identity.clean.rule}; an image needed a similarity of at least"
            f" {identity.clean.threshold:.2f} to the centre."
        )
        if len(identity.clean.cluster_sizes) > 1:
            note += f" Groups of faces that look alike: {sizes}."
        if identity.clean.duplicates:
            note += f" Same person as {', '.join(identity.clean.duplicates[:3])}."
    badge = Badge(text="kept", tone="good")
    if identity.rejected:
        badge = Badge(text=f"refused: {short_reason(identity.rejected)}", tone="bad")
        note = f"{reason_sentence(identity.rejected)} {note}"
    elif not removed:
        badge = Badge(text="kept, nothing removed", tone="good")
    hidden = {"kept": len(kept) - len(shown_kept), "removed": len(removed) - len(shown_removed)}
    parts = [count(number, f"{what} face") for what, number in hidden.items() if number]
    more = f"Not shown: {' and '.join(parts)}." if parts else ""
    faces = tuple(_face(album, identity, image) for image in [*shown_kept, *shown_removed])
    title = f"Identity {identity.identity_id}"
    return Strip(title=title, note=note, faces=faces, badge=badge, more=more)


def _reasons(manifest: Manifest) -> Table:
    rows: list[tuple[Cell, ...]] = []
    identities = manifest.counts["identities"]["rejected"]
    images = manifest.counts["images"]["rejected"]
    for reason in sorted(identities.keys() | images.keys()):
        rows.append(
            (
                Badge(text=short_reason(reason), tone="bad"),
                reason_sentence(reason),
                reason.partition(":")[0],
                f"{identities.get(reason, 0):,}",
                f"{images.get(reason, 0):,}",
            )
        )
    return Table(
        caption="Reasons of rejection after cleaning",
        head=("Reason", "What it means", "Found by job", "Identities", "Images"),
        rows=tuple(rows),
        numeric=frozenset({3, 4}),
    )


def has_picture(identity: Identity) -> bool:
    """Whether there is more of it than a vector."""
    return any(image.rejected != NO_PICTURE for image in identity.images)


def first_face(album: Album, identity: Identity, caption: tuple[str, ...]) -> Face | str:
    """The kept face most similar to the identity's centre, or its first image; where there is a
    vector without a picture alone, its name."""
    if not has_picture(identity):
        return f"{identity.identity_id}, a vector without a picture"
    best = min(identity.kept or identity.images, key=_rank)
    return album.face(best.data, alt=f"Face of identity {identity.identity_id}", caption=caption)


def _duplicates(face_set: FaceSet, album: Album, number: int) -> Table | None:
    found: list[_Light] = []
    for row in _rows(face_set):
        if row.duplicates and DUPLICATE in row.reasons:
            found.append(row)
            found.sort(key=lambda item: (-(item.similarity or 0), item.identity_id))
            del found[number:]
    if not found:
        return None
    wanted = {name for row in found for name in (row.identity_id, *row.duplicates[:_SAME])}
    people = {item.identity_id: item for item in face_set.read(sorted(wanted))}
    rows: list[tuple[Cell, ...]] = []
    for row in found:
        one = people[row.identity_id]
        others = [people[name] for name in row.duplicates[:_SAME]]
        two = next((other for other in others if other.rejected is None), others[0])
        meter = Meter(value=row.similarity or 0.0, threshold=row.threshold or 0.0, tone="bad")
        rows.append(
            (
                first_face(album, one, (one.identity_id,)),
                first_face(album, two, (two.identity_id,)),
                meter,
                Badge(text="refused", tone="bad"),
            )
        )
    return Table(
        caption="Folders that hold one person twice",
        head=("Refused", "Same person as", "Similarity of the two centres", "Decision"),
        rows=tuple(rows),
    )


def section(workspace: Workspace, config: ReportConfig, album: Album) -> Section:
    """The section of the cleaning job."""
    manifest, face_set = workspace.manifest("clean"), workspace.rows("clean")
    if manifest is None or face_set is None:
        return absent(ANCHOR, TITLE, "clean")
    reasons = set(manifest.counts["images"]["rejected"]) | set(
        manifest.counts["identities"]["rejected"]
    )
    chosen = choose(face_set, reasons, config.identities)
    blocks: list[Block] = [_reasons(manifest)] if reasons else []
    duplicates = _duplicates(face_set, album, config.pairs)
    blocks += [duplicates] if duplicates else []
    blocks += [strip(album, identity) for identity in face_set.read(chosen)]
    lead = (
        "Each strip below is one identity: the faces that were kept, from the most to the least"
        " similar to the identity's centre, then in red frames those that were removed, with the"
        " reason. The number under a face is its similarity. Look for a removed face that shows"
        " the same person (removed by mistake), and for a"
        " kept one that does not (missed). Nothing is deleted: removed images stay in the set with"
        " their reason."
    )
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)
