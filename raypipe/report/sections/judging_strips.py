"""Identities over which the experts of the judging job disagree, a strip of faces each."""

from collections import Counter
from collections.abc import Sequence

from raypipe.identities import Identity, Image, Verdict
from raypipe.judging.doubt import OTHER
from raypipe.judging.panel import COMBINED
from raypipe.report.album import Album
from raypipe.report.blocks import Badge, Face, Strip, Tone
from raypipe.report.sections.cleaning import spread
from raypipe.report.words import count, short_reason

OUT = "judge:other_person"
_DISPUTED, _AGREED = 10, 6  # faces of a strip: two lines on a desktop
_REASONS, _CHARACTERS = 4, 140  # under a strip, of each


def _fate(identity: Identity, image: Image) -> tuple[str, Tone]:
    """What became of an image, in few words."""
    if image.rejected == OUT:
        return "taken out", "bad"
    if image.rejected == OTHER:
        return "stays out", "bad"
    if image.rejected is not None:
        return short_reason(image.rejected), "bad"
    assert identity.judge is not None
    return ("restored", "good") if image.image_id in identity.judge.restored else ("kept", "plain")


def _said(identity: Identity) -> dict[str, list[Verdict]]:
    """What each expert said, by image."""
    said: dict[str, list[Verdict]] = {}
    for verdict in identity.judge.verdicts if identity.judge else []:
        if verdict.expert != COMBINED:
            said.setdefault(verdict.image_id, []).append(verdict)
    return said


def _disagree(said: Sequence[Verdict]) -> bool:
    return len({verdict.outlier >= 0.5 for verdict in said}) > 1


def _votes(said: Sequence[Verdict]) -> tuple[str, ...]:
    """The experts by their vote, a line for each."""
    voters: dict[str, list[str]] = {"other": [], "same": []}
    for verdict in said:
        voters["other" if verdict.outlier >= 0.5 else "same"].append(verdict.expert)
    return tuple(
        f"{vote}: {'all' if len(names) == len(said) > 1 else ', '.join(names)}"
        for vote, names in voters.items()
        if names
    )


def _face(album: Album, identity: Identity, image: Image, said: list[Verdict], place: int) -> Face:
    fate, tone = _fate(identity, image)
    measured = ", ".join(f"{v.expert} {v.outlier:.2f}" for v in said)
    alt = (
        f"Face {place}, {image.image_id} of identity {identity.identity_id}: {fate}; probability"
        f" of somebody else: {measured}"
    )
    return album.face(image.data, alt=alt, caption=(f"{place} {fate}", *_votes(said)), tone=tone)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"


def _reasons(shown: Sequence[Image], said: dict[str, list[Verdict]]) -> str:
    found = [
        f"Face {place}, {verdict.expert}: “{_short(verdict.reason)}”"
        for place, image in enumerate(shown, 1)
        for verdict in said[image.image_id]
        if verdict.reason
    ]
    return " ".join(found[:_REASONS])


def strip(album: Album, identity: Identity) -> Strip:
    """An identity over which the experts disagree: the disputed faces, then some that agree."""
    said = _said(identity)
    judged = [image for image in identity.images if image.image_id in said]
    order = ("restored", "taken out", "stays out")
    fates = {image.image_id: _fate(identity, image)[0] for image in judged}
    judged.sort(key=lambda i: order.index(fates[i.image_id]) if fates[i.image_id] in order else 3)
    disputed = [image for image in judged if _disagree(said[image.image_id])]
    agreed = [image for image in judged if not _disagree(said[image.image_id])]
    shown = [*disputed[:_DISPUTED], *spread(agreed, _AGREED)]
    of_all = Counter(fates.values())
    note = f"The experts disagree about {len(disputed):,} of {count(len(judged), 'image')}."
    if hidden := len(judged) - len(shown):
        note += f" Not shown: {count(hidden, 'face')}."
    badge = Badge(
        text=f"{of_all['taken out']:,} taken out, {of_all['restored']:,} restored", tone="plain"
    )
    if identity.rejected:
        badge = Badge(text=f"refused: {short_reason(identity.rejected)}", tone="bad")
    return Strip(
        title=f"Identity {identity.identity_id}",
        note=note,
        faces=tuple(
            _face(album, identity, image, said[image.image_id], place)
            for place, image in enumerate(shown, 1)
        ),
        badge=badge,
        more=_reasons(shown, said),
    )
