"""New identities: the references that a text-to-image model drew, and which of them were taken."""

from collections.abc import Mapping

from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import Identity, Try
from raypipe.manifest import Manifest
from raypipe.prompts import Grammar, load_grammar
from raypipe.report.album import Album
from raypipe.report.blocks import Badge, Block, Cell, Face, Meter, Section, Strip, Table, Verdict
from raypipe.report.sections import seeds_figures as figures
from raypipe.report.sections.cleaning import first_face
from raypipe.report.seeds import SURPLUS, TRIES_USED_UP, Pair, Seeded, scan
from raypipe.report.words import count, short_reason
from raypipe.report.workspace import Workspace
from raypipe.separability import SEPARABILITY

ANCHOR, TITLE = "seeds", "New identities"
JOB = "seed"
_SHOWN = 24  # references
_EXAMPLES = 4  # refused pictures of every reason
_LINES = 4  # attributes under a picture; all are in its description


def verdict(counts: Mapping[str, int], found: Seeded, screened: bool) -> Verdict:
    """Whether there are as many new identities as were asked for, and what that took.

    Args:
        counts: "seeds" of the job's manifest.
        screened: whether they were compared with the galleries and with each other.
    """
    asked, pictures = counts["asked"], counts["pictures"]
    passed = counts["accepted"]
    sentence = (
        f"{count(asked, 'new identity')} {'was' if asked == 1 else 'were'} asked for."
        f" {count(pictures, 'picture')} of {count(counts['drawn'], 'identity')} were drawn in"
        f" {count(counts['waves'], 'wave')}; {passed:,} of the identities passed the gates"
    )
    if spare := found.outcomes[SURPLUS]:
        sentence += f", {spare:,} of them more than were needed"
    sentence += "."
    if lost := found.outcomes[TRIES_USED_UP]:
        sentence += f" {lost:,} used up their tries."
    left = len(found.left)
    if not screened:
        sentence += " The screen job has not compared them with anybody."
        return Verdict(word="Not screened", sentence=sentence, tone="warn")
    sentence += f" Screening left {left:,}: in no gallery, and unlike every other identity."
    if left < asked:
        sentence += f" {asked - left:,} are missing."
        return Verdict(word="Not reached", sentence=sentence, tone="warn")
    return Verdict(word="Reached", sentence=sentence, tone="good")


def grammar(manifest: Manifest) -> Grammar | None:
    """The grammar that the prompts were drawn from, None where its file is gone or another."""
    try:
        found = load_grammar(manifest.origin.settings["prompts"]["grammar"])
    except UserError:
        return None
    return found if found.digest == manifest.origin.inputs["grammar"] else None


def _said(identity: Identity) -> list[str]:
    """The attributes of an identity: "skin tone dark"."""
    assert identity.seed is not None
    pairs = identity.seed.attributes.items()
    return [f"{name} {value}".replace("_", " ") for name, value in pairs]


def _reference(album: Album, identity: Identity) -> Face:
    said = _said(identity)
    alt = f"Reference of identity {identity.identity_id}, drawn as: {', '.join(said)}"
    return album.face(identity.kept[0].data, alt=alt, caption=tuple(said[:_LINES]))


def measured(one: Try) -> str:
    """What a gate saw of a picture that it refused."""
    match one.rejected:
        case "seed:several_faces":
            return count(one.faces, "face")
        case "seed:small" if one.size is not None:
            return f"{one.size:.0f} pixels"
        case "seed:blurred" if one.sharpness is not None:
            return f"sharpness {one.sharpness:.2f}"
        case "seed:turned" if one.yaw is not None and one.pitch is not None:
            return f"yaw {one.yaw:.0f}°, pitch {one.pitch:.0f}°".replace("-", "\N{MINUS SIGN}")
        case "seed:drawing" if one.flatness is not None:
            return f"flatness {one.flatness:.2f}"
    return ""


def _refused(album: Album, identity: Identity, place: int) -> Face:
    assert identity.seed is not None
    one = identity.seed.tries[place]
    name = f"seed-{place:02d}"
    image = next(image for image in identity.images if image.image_id == name)
    reason, seen = short_reason(one.rejected or ""), measured(one)
    alt = f"Refused picture {name} of identity {identity.identity_id}: {reason}"
    alt += f", {seen}" if seen else ""
    alt += f"; drawn as: {', '.join(_said(identity))}"
    caption = (reason, seen) if seen else (reason,)
    return album.face(image.data, alt=alt, caption=caption, tone="bad")


def strips(album: Album, face_set: FaceSet, found: Seeded) -> list[Block]:
    """References that are left, evenly spread over all of them, and pictures of every reason."""
    blocks: list[Block] = []
    total = len(found.left)
    if total:
        number = min(_SHOWN, total)
        chosen = [found.left[i * total // number] for i in range(number)]
        blocks.append(
            Strip(
                title="References that were taken",
                note="Each is another person; all images of that person are made from it. Under a"
                " picture stand the first of the attributes that its prompt asked for. Look for"
                " two that are one person, for faces that all look alike, and for attributes that"
                " the picture does not show.",
                faces=tuple(_reference(album, person) for person in face_set.read(chosen)),
                badge=Badge(text=f"{number} of {total:,}", tone="good"),
            )
        )
    shown = [(*key, reason) for reason, keys in sorted(found.examples.items()) for key in keys]
    if shown:
        people = {
            person.identity_id: person
            for person in face_set.read(sorted({name for name, _, _ in shown}))
        }
        refused = sum(number for reason, number in found.tries.items() if reason)
        blocks.append(
            Strip(
                title="Pictures that the gates refused",
                note="The first of every reason. Look for good faces among them: a gate that"
                " refuses those is too strict, and costs pictures.",
                faces=tuple(_refused(album, people[name], place) for name, place, _ in shown),
                badge=Badge(text=f"{len(shown)} of {refused:,}", tone="bad"),
            )
        )
    return blocks


def _pair(
    album: Album, people: Mapping[str, Identity], pair: Pair, taken: bool
) -> tuple[Cell, ...]:
    one, other = (
        first_face(album, people[name], (name,)) for name in (pair.identity_id, pair.nearest)
    )
    badge = Badge(text="both taken", tone="good") if taken else Badge(text="refused", tone="bad")
    meter = Meter(value=pair.similarity, threshold=pair.threshold, tone=badge.tone)
    return one, other, meter, badge


def pairs(album: Album, face_set: FaceSet, found: Seeded) -> Table | None:
    """The two pairs of identities on either side of the threshold, face by face."""
    shown = [(pair, taken) for pair, taken in ((found.closest, True), (found.over, False)) if pair]
    if not shown:
        return None
    wanted = {name for pair, _ in shown for name in (pair.identity_id, pair.nearest)}
    people = {person.identity_id: person for person in face_set.read(sorted(wanted))}
    return Table(
        caption="The nearest pair that was taken, and the nearest that was not",
        head=("Identity", "Most like", "Similarity", "Decision"),
        rows=tuple(_pair(album, people, pair, taken) for pair, taken in shown),
    )


def section(workspace: Workspace, album: Album) -> Section | None:
    """The section of the seed job, None where it has not been run."""
    manifest, face_set = workspace.manifest(JOB), workspace.rows(JOB)
    if manifest is None or face_set is None:
        return None
    screen = workspace.manifest("screen")
    screened = screen is not None and JOB in screen.counts["sources"]
    if screened:
        face_set = FaceSet(workspace.path("screen"))  # its rows have all that the seed job's have
    found = scan(face_set, _EXAMPLES)
    blocks: list[Block] = [
        verdict(manifest.counts["seeds"], found, screened),
        figures.funnel(found, screened),
    ]
    if refusals := figures.refusals(found):
        blocks.append(refusals)
    curves = workspace.json("screen", SEPARABILITY) if screened else None
    blocks.append(figures.drawings(found, screened, curves))
    if table := pairs(album, face_set, found):
        blocks.append(table)
    blocks += strips(album, face_set, found)
    blocks += figures.balances(found, grammar(manifest))
    lead = (
        "A text-to-image model drew people who do not exist, each from a prompt of its own. A"
        " picture has to show one usable face; one that does not is drawn again with another seed."
        " What passed was compared with the galleries and with every other identity: those that"
        " look like a real person or like each other are shown under Leakage. Each person that is"
        " left has one reference picture, aligned and embedded."
    )
    return Section(anchor=ANCHOR, title=TITLE, lead=lead, blocks=blocks)
