"""Judging: what left the machine, what further experts said of the faces, and what that changed."""

from ipaddress import ip_address
from itertools import combinations
from math import isnan
from typing import Any
from urllib.parse import urlsplit

from raypipe.manifest import Manifest
from raypipe.reasons import REASONS
from raypipe.report.album import Album
from raypipe.report.blocks import Block, Cell, Section, Table, Text
from raypipe.report.blocks import Verdict as Answer
from raypipe.report.judged import Judged, scan
from raypipe.report.sections.judging_strips import OUT, strip
from raypipe.report.words import count, percent, signed
from raypipe.report.workspace import Workspace

ANCHOR, TITLE = "judging", "A second opinion"
RATES = "rates.json"  # of the judging job
_SHOWN, _PROBLEMS = 6, 12  # identities, rows
_WHAT = {
    "clustering": "what the cleaning job measured",
    "embedder": "a second network for faces",
    "quality": "whether the face can be made out",
    "vision": "a vision model that looks at the faces",
    "together": "the votes of all, combined",
}
_WHY = {
    "all": "because everybody was to be asked about",
    "unsure": "because clustering was unsure of an image",
    "audit": "as a random check",
}
_FUSION = {
    "weights": "each expert counts by how often it errs",
    "any": "one vote is enough",
    "all": "all who were asked must say so",
    "majority": "more than half of those who were asked must say so",
}


def _local(service: str) -> bool:
    host = urlsplit(f"//{service}").hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _dollars(value: float) -> str:
    return "less than $0.01" if 0 < value < 0.01 else f"${value:,.2f}"


def sent(found: Judged, manifest: Manifest) -> Answer:
    """What left the machine, as exactly as evidence and manifest know it."""
    if manifest.origin.settings["kind"] == "none":
        sentence = "This run showed no face to any service, and asked no vision model (kind: none)."
        return Answer(word="Nothing left the machine", sentence=sentence, tone="good")
    extra, totals = manifest.extra, manifest.extra["answers"]
    to = f"{extra['service']} (model {extra['model']})"
    if _local(extra["service"]):
        to += ", an address on the machine that asks"
    text = (
        f"{count(found.sheets, 'sheet')} showing {count(found.faces, 'face')} of"
        f" {count(found.shown, 'identity')} went to {to}."
    )
    if found.problems:
        text += (
            f" For {found.problems.total():,} of these identities a usable answer is missing:"
            " whether all of their sheets arrived is not known, and they are counted here."
        )
    if not found.sheets:
        text = f"No sheet was to be shown to {to}: nobody's faces were asked about."
    text += (
        f" {count(totals['asked'], 'answer')} cost {_dollars(extra['dollars'])} in all, by the"
        " prices in the configuration. An answer that an earlier run had kept is counted, and was"
        " not asked for again."
    )
    if totals["questions"] > found.sheets:
        text += (
            f" The folder of answers holds {count(totals['questions'], 'question')}: more than this"
            " run had sheets, so other runs asked some of them."
        )
    text += " A sheet carries faces and numbers, no names. raypipe writes the key to no file."
    word = "Faces were sent" if found.sheets else "No face was sent"
    return Answer(word=word, sentence=text, tone="warn" if found.sheets else "good")


def asked(found: Judged, kind: str) -> Text:
    """Who was judged, who of them the vision model was asked about, and what that saved."""
    people, images = found.identities.total(), found.images.total()
    text = f"{count(people, 'identity')} with {count(images, 'image')} were judged."
    if found.unjudged:
        text += (
            f" Not judged: {found.unjudged:,} more, refused before or with fewer than two images to"
            " compare."
        )
    if kind != "none":
        why = [f"{n:,} {_WHY[k]}" for k in _WHY if (n := found.identities[k])]
        text += f" The vision model was asked about {people - found.identities['']:,} of {people:,}"
        text += f": {', '.join(why)}." if why else "."
        if found.identities[""]:
            text += (
                f" Nothing of the other {count(found.identities[''], 'identity')} was shown to it:"
                f" {count(found.images[''], 'image')}, {percent(found.images[''] / images)} of all."
            )
    return Text(text=text)


def together(found: Judged, manifest: Manifest) -> Text:
    """What became of the votes."""
    removed = manifest.counts["images"]["rejected"]
    named, out = found.named(len(found.experts)), removed.get(OUT, 0)
    text = (
        f"All together ({_FUSION[manifest.origin.settings['fusion']]}): {named:,} of"
        f" {count(found.images.total(), 'image')} show somebody else. Of these, cleaning had kept"
        f" {out:,}, now taken out; {named - out:,} were out already. Restored, though cleaning had"
        f" taken them out: {found.restored:,}."
    )
    for reason in ("judge:inconsistent", "judge:near_duplicate"):
        if number := removed.get(reason, 0):
            text += f" Taken out after that: {number:,} ({REASONS[reason]})."
    return Text(text=text)


def experts(found: Judged, rates: dict[str, Any] | None) -> list[Block]:
    """What each expert said, and how it is estimated to err."""
    head: tuple[str, ...] = ("Expert", "What it is", "Images it spoke of", "Called somebody else")
    rows: list[tuple[Cell, ...]] = []
    for k, name in enumerate([*found.experts, "together"]):
        row: tuple[Cell, ...] = (
            name,
            _WHAT.get(name, "–"),
            f"{found.spoke(k):,}",
            f"{found.named(k):,}",
        )
        if rates:
            measured = [rates[part][k : k + 1] for part in ("found", "accused")]
            row += tuple(percent(value[0]) if value else "–" for value in measured)
        rows.append(row)
    if rates:
        head += ("Outliers found", "Wrongly accused")
    numeric = frozenset(range(2, len(head)))
    table = Table(caption="What each expert said", head=head, rows=tuple(rows), numeric=numeric)
    if not rates:
        return [table]
    text = (
        "The last two columns are estimates: the share of images of somebody else that the expert"
        " finds, and the share of the other images that it accuses. They follow from what all said"
        " of a sample, and from what is believed of an expert beforehand; they hold if experts err"
        " independently of each other. Nobody checked by eye. By the"
        f" same estimate {percent(rates['outliers'])} of the images show somebody else."
    )
    return [table, Text(text=text)]


def agreement(found: Judged) -> list[Block]:
    """How every pair of experts agrees."""
    rows: list[tuple[Cell, ...]] = []
    for (i, first), (j, second) in combinations(enumerate(found.experts), 2):
        pair = found.agreement(i, j)
        numbers = ("–", "–") if isnan(pair.kappa) else (percent(pair.share), signed(pair.kappa))
        rows.append((first, second, f"{pair.both:,}", *numbers))
    if not rows:
        return []
    text = "Kappa is agreement beyond chance: 1 is full agreement, 0 is what chance alone gives."
    if found.identities["unsure"]:
        text += (
            " The vision model saw identities that clustering is unsure of, and few others: its"
            " pairs are about harder images than the rest."
        )
    head = ("Expert", "and", "Images both spoke of", "Agreement", "Kappa")
    caption, numeric = "How the experts agree", frozenset({2, 3, 4})
    return [Table(caption=caption, head=head, rows=tuple(rows), numeric=numeric), Text(text=text)]


def problems(found: Judged) -> list[Block]:
    """Identities that the vision model did not judge, or only in part."""
    if not found.problems:
        return []
    rows = tuple(
        (text, f"{number:,}", ", ".join(names) + (" …" if number > len(names) else ""))
        for text, number in found.problems.most_common(_PROBLEMS)
        for names in [found.examples[text]]
    )
    caption = f"Not judged by the vision model, or only in part ({found.problems.total():,})"
    head = ("Problem", "Identities", "For example")
    return [Table(caption=caption, head=head, rows=rows, numeric=frozenset({1}))]


def section(workspace: Workspace, album: Album) -> Section | None:
    """The section of the judging job, None where it was not run."""
    manifest, face_set = workspace.manifest("judge"), workspace.rows("judge")
    if manifest is None or face_set is None:
        return None
    settings = manifest.origin.settings
    kind, named = settings["kind"], settings["experts"]
    found = scan(face_set, [name for name in named if name != "vision" or kind != "none"], _SHOWN)
    blocks: list[Block] = [
        sent(found, manifest),
        asked(found, kind),
        *experts(found, workspace.json("judge", RATES)),
        *agreement(found),
        together(found, manifest),
        *problems(found),
    ]
    if found.chosen:
        text = (
            "Each strip below is one identity over which the experts disagree: the disputed faces"
            " first. Under a face stands what became of it, then who calls it somebody else (other)"
            " and who the same person (same). Faces in red frames are out, those in green ones are"
            " restored. Look for one in red that shows the same person, and for a restored or kept"
            " one that does not."
        )
        blocks += [Text(text=text), *(strip(album, one) for one in face_set.read(found.chosen))]
    lead = "What further experts said of the faces, and what their answers changed."
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)
