"""The section of the judging job: what is counted, and what is said of what left the machine."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.stage import totals
from raypipe import storage
from raypipe.config.report import ReportConfig
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image, JudgeEvidence, Verdict
from raypipe.images import encode_png
from raypipe.judging import fusion
from raypipe.judging.answers import Totals
from raypipe.judging.doubt import OTHER
from raypipe.manifest import Manifest, Origin, summarise, write_manifest
from raypipe.report import judged
from raypipe.report.album import Album
from raypipe.report.blocks import Section, Strip, Table, Text
from raypipe.report.blocks import Verdict as Answer
from raypipe.report.document import document
from raypipe.report.judged import OTHER_PROBLEMS, Judged, scan
from raypipe.report.page import render
from raypipe.report.sections import judging
from raypipe.report.workspace import Workspace

EVIL = '<script>alert("1")</script>&x'
EXPERTS = ["clustering", "vision"]
Opinions = Sequence[float | None]  # of the experts, then of all together


def judge(
    name: str,
    opinions: Sequence[Opinions],
    *,
    out: Sequence[int] = (),
    experts: Sequence[str] = EXPERTS,
    reasons: dict[int, str] | None = None,
    **evidence: Any,
) -> Identity:
    """An identity as the job leaves it.

    Args:
        opinions: for each image.
        out: images that cleaning had taken out.
        reasons: of the last expert, by image.
    """
    images, verdicts, restored = [], [], []
    rng = np.random.default_rng(len(opinions))
    for k, row in enumerate(opinions):
        image_id, together = f"{k}.png", row[-1]
        assert together is not None
        rejected = OTHER if k in out else None
        if rejected and together < 0.5:
            rejected = None
            restored.append(image_id)
        elif not rejected and together >= 0.5:
            rejected = "judge:other_person"
        picture = encode_png(rng.integers(0, 255, (12, 12, 3)).astype(np.uint8))
        images.append(Image(image_id=image_id, data=picture, source="s", rejected=rejected))
        for place, (expert, outlier) in enumerate(zip([*experts, "combined"], row, strict=True)):
            if outlier is not None:
                reason = (reasons or {}).get(k) if place == len(experts) - 1 else None
                verdicts.append(
                    Verdict(image_id=image_id, expert=expert, outlier=outlier, reason=reason)
                )
    return Identity(
        identity_id=name,
        index=int(name[1:]),
        source="base",
        images=images,
        judge=JudgeEvidence(verdicts=verdicts, restored=restored, **evidence),
    )


def agreed(name: str, *, said: Opinions = (0.1, None, 0.0), **evidence: Any) -> Identity:
    """An identity of three images of which nobody says anything bad."""
    return judge(name, [said] * 3, **evidence)


def finish(
    root: Path,
    people: list[Identity],
    *,
    rates: dict[str, Any] | None = None,
    answers: Totals | None = None,
    service: str = "api.openai.com",
    dollars: float = 0.0,
    **settings: Any,
) -> Workspace:
    folder = storage.join(str(root), "judge")
    write_rows(folder, "a.parquet", people[::2])
    write_rows(folder, "b.parquet", people[1::2])
    counts, digest = summarise(folder)
    extra: dict[str, Any] = {}
    if answers:
        extra = {"service": service, "model": "gpt-4o", "answers": asdict(answers)}
        extra["dollars"] = dollars
    if rates:
        storage.write_json(storage.join(folder, judging.RATES), rates)
    chosen = {"kind": "openai" if answers else "none", "experts": EXPERTS, "fusion": "any"}
    origin = Origin(job="judge", settings={**chosen, **settings}, inputs={}, models={})
    counted = totals(counts, images_made=0)
    manifest = Manifest(origin=origin, counts=counted, content_digest=digest, extra=extra)
    write_manifest(folder, manifest)
    return Workspace(str(root))


def shown(workspace: Workspace) -> Section:
    section = judging.section(workspace, Album(10**7))
    assert section is not None
    return section


def sentence(section: Section) -> str:
    """What is said first, of what left the machine."""
    first = section.blocks[0]
    assert isinstance(first, Answer)
    return f"{first.word}: {first.sentence}"


def tables(section: Section) -> dict[str, Table]:
    return {block.caption: block for block in section.blocks if isinstance(block, Table)}


def texts(section: Section) -> str:
    return "\n".join(block.text for block in section.blocks if isinstance(block, Text))


def strips(section: Section) -> list[Strip]:
    return [block for block in section.blocks if isinstance(block, Strip)]


def scanned(workspace: Workspace, experts: Sequence[str] = EXPERTS, limit: int = 6) -> Judged:
    return scan(FaceSet(workspace.path("judge")), experts, limit)


def test_a_workspace_that_was_not_judged_has_no_section(tmp_path: Path) -> None:
    assert judging.section(Workspace(str(tmp_path)), Album(10**7)) is None


def test_nothing_left_the_machine_where_no_service_was_configured(tmp_path: Path) -> None:
    people = [agreed("p0"), agreed("p1")]
    people.append(Identity(identity_id="p2", index=2, source="base", images=[], rejected="clean:x"))
    section = shown(finish(tmp_path, people))
    assert sentence(section).startswith("Nothing left the machine: This run showed no face to any")
    assert section.blocks[0].tone == "good"  # type: ignore[union-attr]
    assert "2 identities with 6 images were judged. Not judged: 1 more, refused" in texts(section)
    assert "The vision model" not in texts(section)
    rows = tables(section)["What each expert said"].rows
    assert [row[0] for row in rows] == ["clustering", "together"], "vision does not speak"
    assert rows[0][2:] == ("6", "0")
    assert "How the experts agree" not in tables(section), "there is nobody to agree with"
    assert not strips(section)


def test_what_was_sent_is_said_with_its_problems(tmp_path: Path) -> None:
    refused = "malformed: the model refused"
    people = [
        agreed("p0", said=(0.1, 0.0, 0.0), asked="all", sheets=1),
        *(agreed(f"p{k}", asked="all", sheets=2, problem=refused) for k in range(1, 8)),
        agreed("p8", asked="all", sheets=1, problem="status 500 from the service"),
    ]
    totals = Totals(questions=15, answered=1, asked=22)
    section = shown(finish(tmp_path, people, answers=totals, dollars=1234.5678))
    said = sentence(section)
    assert said.startswith(
        "Faces were sent: 16 sheets showing 27 faces of 9 identities went to api.openai.com (model"
        " gpt-4o). For 8 of these identities a usable answer is missing: whether all of their"
        " sheets arrived is not known, and they are counted here. 22 answers cost $1,234.57 in all"
    )
    assert said.endswith("no names. raypipe writes the key to no file.")
    assert "other runs" not in said
    table = tables(section)["Not judged by the vision model, or only in part (8)"]
    assert table.rows[0][:2] == (refused, "7")
    assert len(str(table.rows[0][2]).split(", ")) == 5 and str(table.rows[0][2]).endswith(" …")
    assert table.rows[1] == ("status 500 from the service", "1", "p8")


def test_questions_of_earlier_runs_are_not_hidden(tmp_path: Path) -> None:
    people = [agreed("p0", said=(0.1, 0.0, 0.0), asked="all", sheets=1), agreed("p1")]
    answers = Totals(questions=3, answered=3, asked=3)
    section = shown(finish(tmp_path, people, answers=answers, dollars=0.0012))
    assert "1 sheet showing 3 faces of 1 identity went to" in sentence(section)
    assert "3 answers cost less than $0.01 in all" in sentence(section)
    assert "holds 3 questions: more than this run had sheets" in sentence(section)


def test_a_service_that_was_asked_about_nobody_got_no_face(tmp_path: Path) -> None:
    section = shown(finish(tmp_path, [agreed("p0"), agreed("p1")], answers=Totals()))
    assert sentence(section).startswith("No face was sent: No sheet was to be shown to api.openai")
    assert "about 0 of 2. Nothing of the other 2 identities" in texts(section)


@pytest.mark.parametrize(
    ("service", "local"),
    [
        *(("localhost:8000", True), ("127.0.0.1", True), ("[::1]:80", True)),
        *(("localhost.example.org", False), ("10.0.0.1:8000", False)),
    ],
)
def test_an_address_of_the_machine_itself_is_called_so(
    service: str, local: bool, tmp_path: Path
) -> None:
    people = [agreed("p0", asked="all", sheets=1), agreed("p1")]
    section = shown(finish(tmp_path, people, answers=Totals(), service=service))
    assert ("an address on the machine that asks" in sentence(section)) is local


def test_agreement_is_as_counted_by_hand(tmp_path: Path) -> None:
    both_name, neither, first, second = (0.9, 1.0, 1), (0.1, 0.0, 0), (0.5, 0.2, 0), (0.0, 0.8, 1)
    people = [
        judge("p0", [both_name] * 2 + [neither] * 3, asked="all", sheets=1),
        judge("p1", [first, second, second, neither, neither, (0.9, None, 1)], sheets=1),
    ]
    workspace = finish(tmp_path, people, answers=Totals())
    found = scanned(workspace)
    pair = found.agreement(0, 1)
    # Of 10 images: 2 both, 5 neither, 1 and 2 one alone. Clustering names 3, vision 4.
    # Chance: 0.3 × 0.4 + 0.7 × 0.6 = 0.54; kappa: (0.7 - 0.54) / (1 - 0.54).
    assert (pair.both, pair.share) == (10, pytest.approx(0.7))
    assert pair.kappa == pytest.approx(0.16 / 0.46)
    one = np.array([1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1.0])
    other = np.array([1, 1, 0, 0, 0, 0, 1, 1, 0, 0, np.nan])
    assert pair.kappa == pytest.approx(fusion.kappa(one, other))
    section = shown(workspace)
    rows = tables(section)["How the experts agree"].rows
    assert rows == (("clustering", "vision", "10", "70.0\N{NO-BREAK SPACE}%", "0.35"),)
    assert [row[2:] for row in tables(section)["What each expert said"].rows] == [
        ("11", "4"),
        ("10", "4"),
        ("11", "5"),
    ]


def test_agreement_of_three_experts_is_that_of_fusion(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    names = ["clustering", "embedder", "vision"]
    opinions = rng.uniform(0, 1, (40, 3))
    opinions[rng.random((40, 3)) < 0.3] = np.nan
    people = [
        judge(
            f"p{k}",
            [[*(None if np.isnan(v) else float(v) for v in row), 0.0] for row in part],
            experts=names,
        )
        for k, part in enumerate(np.split(opinions, [3, 4, 20]))
    ]
    found = scanned(finish(tmp_path, people, experts=names, answers=Totals()), names)
    cast = fusion.votes(opinions)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert found.agreement(i, j).kappa == pytest.approx(fusion.kappa(cast[:, i], cast[:, j]))
    assert [found.spoke(k) for k in range(4)] == [*(~np.isnan(opinions)).sum(axis=0), 40]


def test_experts_that_never_speak_of_one_image_have_no_kappa(tmp_path: Path) -> None:
    people = [agreed("p0", asked="all", sheets=1, problem="malformed"), agreed("p1")]
    section = shown(finish(tmp_path, people, answers=Totals()))
    assert tables(section)["How the experts agree"].rows[0][2:] == ("0", "–", "–")


def test_who_was_asked_and_what_was_kept_back(tmp_path: Path) -> None:
    people = [
        agreed("p0", said=(0.4, 0.0, 0.0), asked="unsure", sheets=1),
        agreed("p1", said=(0.1, 0.0, 0.0), asked="audit", sheets=1),
        *(agreed(f"p{k}") for k in range(2, 10)),
    ]
    section = shown(finish(tmp_path, people, answers=Totals(questions=2, answered=2, asked=2)))
    assert "2 sheets showing 6 faces of 2 identities" in sentence(section)
    assert (
        "The vision model was asked about 2 of 10: 1 because clustering was unsure of an image, 1"
        " as a random check. Nothing of the other 8 identities was shown to it: 24 images,"
        " 80.0\N{NO-BREAK SPACE}% of all."
    ) in texts(section)
    assert "harder images than the rest" in texts(section)
    assert [row[2] for row in tables(section)["What each expert said"].rows] == ["30", "6", "30"]


def test_rates_stand_beside_their_experts(tmp_path: Path) -> None:
    rates = {"outliers": 0.07, "found": [0.8, 0.95], "accused": [0.03, 0.012]}
    people = [agreed("p0", said=(0.1, 0.0, 0.0), asked="all", sheets=1), agreed("p1")]
    workspace = finish(tmp_path, people, rates=rates, answers=Totals(), fusion="weights")
    section = shown(workspace)
    space = "\N{NO-BREAK SPACE}"
    assert [row[4:] for row in tables(section)["What each expert said"].rows] == [
        (f"80.0{space}%", f"3.0{space}%"),
        (f"95.0{space}%", f"1.2{space}%"),
        ("–", "–"),
    ]
    assert f"same estimate 7.0{space}% of the images" in texts(section)


def test_what_was_taken_out_and_restored(tmp_path: Path) -> None:
    kept, named = (0.1, 0.0, 0), (0.1, 0.9, 1)
    people = [
        judge("p0", [kept, kept, named, (0.9, 0.9, 1), (0.9, 0.0, 0)], out=[3, 4], sheets=1),
        agreed("p1"),
    ]
    people[0].images[1].rejected = "judge:inconsistent"
    section = shown(finish(tmp_path, people, answers=Totals()))
    assert (
        "2 of 8 images show somebody else. Of these, cleaning had kept 1, now taken out; 1 were out"
        " already. Restored, though cleaning had taken them out: 1. Taken out after that: 1 (no"
        " longer agrees"
    ) in texts(section)
    (strip,) = strips(section)
    assert [(face.caption[0], face.tone) for face in strip.faces[:2]] == [
        ("1 restored", "good"),
        ("2 taken out", "bad"),
    ]
    assert strip.faces[1].caption[1:] == ("other: vision", "same: clustering")
    assert strip.faces[-1].caption[1:] in {("same: all",), ("other: all",)}
    assert {face.caption[0][2:] for face in strip.faces[2:]} == {
        "kept",
        "stays out",
        "inconsistent",
    }
    assert strip.badge is not None and strip.badge.text == "1 taken out, 1 restored"


def test_disagreements_with_a_reason_come_first_and_few_are_kept(tmp_path: Path) -> None:
    disputed, kept = (0.1, 0.9, 1), (0.1, 0.0, 0)
    people = [judge(f"p{k}", [disputed] * (k + 1) + [kept], sheets=1) for k in range(8)]
    people.append(judge("p8", [disputed, kept], reasons={0: "other nose"}, sheets=1))
    people.append(judge("p9", [(0.9, 0.1, 0), kept], out=[0], sheets=1))
    workspace = finish(tmp_path, people, answers=Totals())
    assert scanned(workspace, limit=4).chosen == ["p9", "p8", "p7", "p6"]
    section = shown(workspace)
    strip = next(strip for strip in strips(section) if strip.title == "Identity p8")
    assert strip.more == "Face 1, vision: “other nose”"


def test_a_strip_shows_at_most_two_lines_of_faces(tmp_path: Path) -> None:
    person = judge("p0", [(0.1, 0.9, 1)] * 30 + [(0.1, 0.0, 0)] * 30, sheets=2)
    (strip,) = strips(shown(finish(tmp_path, [person, agreed("p1")], answers=Totals())))
    assert len(strip.faces) == 16
    assert strip.note == "The experts disagree about 30 of 60 images. Not shown: 44 faces."


def test_problems_without_end_are_counted_within_bounds(tmp_path: Path) -> None:
    people = [agreed(f"p{k}", sheets=1, problem=f"{k} " + "x" * 900) for k in range(60)]
    found = scanned(finish(tmp_path, people, answers=Totals()))
    assert found.problems.total() == 60
    assert len(found.problems) == judged._TEXTS + 1
    assert found.problems[OTHER_PROBLEMS] == 60 - judged._TEXTS
    assert max(map(len, found.problems)) <= 200


def test_what_a_model_wrote_is_escaped(tmp_path: Path) -> None:
    people = [
        judge("p0", [(0.1, 0.9, 1), (0.1, 0.0, 0)], reasons={0: EVIL}, sheets=1, problem=EVIL),
        agreed("p1"),
    ]
    workspace = finish(tmp_path, people, answers=Totals(), service=EVIL)
    page = render("title", "subtitle", [shown(workspace)])
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 3, "service, problem and reason"


def test_the_section_stands_after_cleaning(tmp_path: Path) -> None:
    page = document(finish(tmp_path, [agreed("p0"), agreed("p1")]).root, ReportConfig())
    places = [page.index(f'id="{name}"') for name in ("cleaning", "judging", "similarity")]
    assert places == sorted(places)
