"""Expansion: the images that were made of new people, and which of them are those people."""

from typing import Any

from raypipe.identities import Identity, Image
from raypipe.manifest import Manifest
from raypipe.new_people import too_close
from raypipe.recheck import IN_GALLERY
from raypipe.report.album import Album
from raypipe.report.blocks import Badge, Block, Face, Section, Strip, Text, Tile, Verdict
from raypipe.report.expanded import Expanded, made, scan
from raypipe.report.sections import expansion_figures as figures
from raypipe.report.sections.cleaning import spread
from raypipe.report.words import count, percent, short_reason, signed
from raypipe.report.workspace import Workspace
from raypipe.vectors.rows import SOURCE

ANCHOR, TITLE = "expansion", "Expansion"
THRESHOLDS, DIAL = "thresholds.json", "dial.json"  # of the expansion job
_SHOWN = 6  # identities
_KEPT, _REFUSED = 11, 5  # faces of a strip: two lines on a desktop


def tiles(workspace: Workspace) -> list[Tile]:
    """The number of the summary, from the manifest alone."""
    manifest = workspace.manifest("expand")
    if manifest is None:
        return []
    images = manifest.counts["images"]
    drawn = images["made"]
    refused = sum(images["rejected"].get(reason, 0) for reason in figures.COLOURS)
    return [
        Tile(
            label="Images made",
            value=f"{drawn - refused:,}",
            detail=f"of new people; {refused:,} more did not pass the checks",
        )
    ]


def verdict(found: Expanded, measured: dict[str, Any], controlled: bool) -> Verdict:
    """Whether everybody got the images they wanted, and whom the images are like.

    Args:
        measured: the content of `thresholds.json`.
        controlled: whether the configuration asked for attributes.
    """
    if not found.drawn:
        sentence = "No image was made: no identity was left to expand, or none wanted images."
        return Verdict(word="Nothing made", sentence=sentence, tone="warn")
    sentence = (
        f"{count(found.drawn, 'image')} were drawn for {count(found.identities, 'identity')};"
        f" {found.passed:,} of them ({percent(found.passed / found.drawn)}) passed the checks."
    )
    complete = found.full == found.identities
    if complete:
        sentence += " Every identity got all the images it wanted."
    else:
        sentence += (
            f" {found.full:,} of {found.identities:,} identities got all the images they wanted;"
            f" {found.wanted - found.passed:,} of {found.wanted:,} images are missing."
        )
    if controlled:
        reached = found.passed - found.unreached
        sentence += f" {reached:,} of those that passed show the attributes asked for."
    galleries = sorted(measured["thresholds"]["galleries"])
    like = found.refused[IN_GALLERY]
    if not galleries:
        sentence += " They were compared with no gallery: the configuration names none."
    elif like:
        were = "was" if like == 1 else "were"
        sentence += f" {like:,} looked like a person of {', '.join(galleries)} and {were} refused."
    else:
        sentence += f" None looked like a person of {', '.join(galleries)}."
    return Verdict(
        word="Complete" if complete else "Incomplete",
        sentence=sentence,
        tone="good" if complete and galleries else "warn",
    )


def _face(album: Album, identity: Identity, image: Image, painter: tuple[str, ...]) -> Face:
    of = f"of identity {identity.identity_id}"
    measured = signed(image.similarity or 0.0, 3)
    if image.rejected is None:
        alt = f"Kept image {image.image_id} {of}, similarity {measured}"
        return album.face(image.data, alt=alt, caption=(measured, *painter))
    reason = short_reason(image.rejected)
    alt = f"Refused image {image.image_id} {of}: {reason}, similarity {measured}"
    if image.nearest is not None and image.nearest_similarity is not None:
        alt += f"; {signed(image.nearest_similarity, 3)} to {image.nearest}"
    caption = (reason, measured, *painter)
    return album.face(image.data, alt=alt, caption=caption, tone="bad")


def strip(album: Album, identity: Identity) -> Strip:
    """An identity: the picture it was made from, if any, what was kept, and what was refused."""
    evidence, drawn = identity.expand, made(identity)
    assert evidence is not None
    parent = next((image.parent for image in drawn), None)
    kept = [image for image in drawn if image.rejected is None]
    refused = [image for image in drawn if image.rejected is not None]
    # One of each reason first, so that the cut at the end never hides a reason.
    first = {image.rejected: image for image in reversed(refused)}
    refused.sort(key=lambda image: image is not first[image.rejected])
    faces = [
        album.face(
            image.data, alt=f"Reference picture of {identity.identity_id}", caption=("reference",)
        )
        for image in identity.kept
        if image.image_id == parent
    ]
    shown_kept, shown_refused = spread(kept, _KEPT - len(faces)), refused[:_REFUSED]
    several = len({image.generator for image in drawn}) > 1
    faces += [
        _face(album, identity, image, (image.generator,) if several and image.generator else ())
        for image in [*shown_kept, *shown_refused]
    ]
    note = (
        f"{count(len(drawn), 'image')} drawn, {len(refused):,} refused. An image needed a"
        f" similarity of at least {evidence.threshold:.3f} to the vector."
    )
    if missed := sum(image.image_id in evidence.unreached for image in kept):
        note += f" {count(missed, 'kept image')} did not reach the attributes asked for."
    hidden = {"kept": len(kept) - len(shown_kept), "refused": len(refused) - len(shown_refused)}
    parts = [count(number, f"{what} image") for what, number in hidden.items() if number]
    return Strip(
        title=f"Identity {identity.identity_id}",
        note=note,
        faces=tuple(faces),
        badge=Badge(
            text=f"{len(kept):,} of {evidence.wanted:,} images",
            tone="good" if len(kept) >= evidence.wanted else "warn",
        ),
        more=f"Not shown: {' and '.join(parts)}." if parts else "",
    )


def _vectors(manifest: Manifest, screen: Manifest | None) -> list[Block]:
    """What was drawn before anything was painted."""
    settings, law, drawn = manifest.origin.settings, manifest.extra["law"], manifest.counts["drawn"]
    text = (
        f"Vectors: {drawn['total']:,} were drawn at random, spread as the"
        f" {count(law['identities'], 'identity')} of the {settings['source']} job are (law:"
        f" {settings['law']}). {drawn['refused']:,} of them were {too_close(manifest)}. The other"
        f" {count(drawn['accepted'], 'vector')} are new people."
    )
    if screen and (found := screen.counts["sources"].get(SOURCE)):
        lost = found["identities"] - found.get("identities_kept", 0)
        text += f" Screening refused {lost:,} of them."
    blocks: list[Block] = [Text(text=text)]
    if law["note"]:
        note = law["note"][0].upper() + law["note"][1:].rstrip(".")
        blocks.append(Verdict(word="Take care", sentence=f"{note}.", tone="warn"))
    return blocks


def section(workspace: Workspace, album: Album) -> Section | None:
    """The section of the vectors and the images made of them, None where neither was asked for."""
    vectors, face_set = workspace.manifest("vectors"), workspace.rows("expand")
    if vectors is None and face_set is None:
        return None
    blocks: list[Block] = _vectors(vectors, workspace.manifest("screen")) if vectors else []
    if face_set is None:
        text = "The expand job has not been run: the vectors have no pictures."
        waiting = Verdict(word="Not expanded", sentence=text, tone="warn")
        return Section(anchor=ANCHOR, title=TITLE, lead=text, blocks=[waiting, *blocks])
    found, measured = scan(face_set, _SHOWN), workspace.json("expand", THRESHOLDS)
    controlled = workspace.manifests["expand"].origin.settings.get("attributes") is not None
    blocks = [verdict(found, measured, controlled), *blocks, figures.comparisons(measured)]
    if found.drawn:
        blocks += [
            figures.painters(found),
            figures.refusals(found),
            figures.drawings(found, measured),
            figures.acceptance(found),
        ]
        dial = workspace.json("expand", DIAL)
        blocks += [figures.dials(dial)] if dial else []
        blocks += [strip(album, identity) for identity in face_set.read(found.chosen)]
    lead = (
        "Each image was painted from a vector, embedded again, and compared with that vector, with"
        " every other identity and with every face of the galleries. Each strip below is one"
        " identity: the images that were kept, from the most to the least similar to the vector,"
        " then in red frames some that were refused, with the reason. Under a face stand its"
        " similarity to the vector and, where there are several, the generator that painted it."
        " Look for one person in different pictures: kept faces that"
        " differ in nothing teach a recognizer little, and one that shows somebody else was missed."
    )
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)
