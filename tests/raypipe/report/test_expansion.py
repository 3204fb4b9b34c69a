"""The section of the images made of new people: what is counted, chosen and shown."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from raypipe import storage
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import ExpandEvidence, Identity, Image
from raypipe.impostors import Histogram
from raypipe.recheck import IN_GALLERY, NOT_THE_PERSON, OUT_OF_BAND, SOMEBODY_ELSE
from raypipe.report.album import Album
from raypipe.report.blocks import Charts, Strip, Table, Text, Verdict
from raypipe.report.expanded import Expanded, made, scan
from raypipe.report.sections import expansion, expansion_figures
from raypipe.report.words import percent
from raypipe.report.workspace import Workspace

MEASURED = {"thresholds": {"own": 0.6, "other": 0.7, "galleries": {"public": 0.5}}}


@pytest.fixture
def album() -> Album:
    return Album(10**7)


def drawn(number: int, attempt: int, reason: str | None, similarity: float = 0.8) -> Image:
    suffix = f".{attempt}" if attempt else ""
    return Image(
        image_id=f"vec2face-{number:04d}{suffix}",
        data=b"",
        source="vec2face",
        generator="vec2face",
        parent="vector",
        similarity=similarity,
        nearest="other",
        nearest_similarity=0.4,
        rejected=reason,
    )


def person(name: str, wanted: int, images: list[Image], before: list[Image] | None = None):
    evidence = ExpandEvidence(wanted=wanted, drawn=len(images), threshold=0.6)
    return Identity(
        identity_id=name, index=0, source="vec", images=[*(before or []), *images], expand=evidence
    )


def test_the_scan_counts_what_a_reader_of_all_rows_would_count(row_workspace: str) -> None:
    face_set = FaceSet(f"{row_workspace}/expand")
    people = [item for item in face_set.iter_identities() if item.expand]
    images = [(item, image) for item in people for image in made(item)]
    found = scan(face_set, 6)
    assert found.draws == Counter(
        (int(image.image_id[13:].lstrip(".") or 0), image.rejected) for _, image in images
    )
    assert max(attempt for attempt, _ in found.draws) == 2
    assert found.drawn == len(images)
    assert found.passed == sum(len(item.kept) for item in people)
    assert (found.identities, found.wanted) == (4, 48)
    assert found.full == sum(len(item.kept) == 12 for item in people) < 4
    for histogram, name in ((found.own, "similarity"), (found.nearest, "nearest_similarity")):
        values = np.array([getattr(image, name) for _, image in images])
        assert (histogram.counts == Histogram().add(values).counts).all()


def test_only_images_of_the_job_are_counted(tmp_path) -> None:
    reference = Image(image_id="photo.7", data=b"", source="s", similarity=0.1)
    crowd = [
        person("a", 2, [drawn(0, 0, None), drawn(1, 0, None)], [reference]),
        Identity(identity_id="b", index=1, source="base", images=[reference]),
        person("c", 0, [], [reference]),
    ]
    write_rows(str(tmp_path), "a.parquet", crowd)
    found = scan(FaceSet(str(tmp_path)), 6)
    assert found.draws == {(0, None): 2}
    assert (found.identities, found.full, found.wanted) == (2, 2, 2)
    assert found.own.counts.sum() == 2
    assert made(crowd[1]) == made(crowd[2]) == []


def test_every_reason_is_shown_and_somebody_who_came_short(tmp_path) -> None:
    crowd = [person(f"{i:02d}", 1, [drawn(0, 0, None)]) for i in range(20)]
    crowd.append(person("short", 1, [drawn(0, 0, NOT_THE_PERSON), drawn(0, 1, NOT_THE_PERSON)]))
    crowd.append(person("leak", 1, [drawn(0, 0, IN_GALLERY), drawn(0, 1, None)]))
    crowd[-1].expand.unreached = ["vec2face-0000", "vec2face-0000.1"]  # type: ignore[union-attr]
    write_rows(str(tmp_path), "a.parquet", crowd)
    found = scan(FaceSet(str(tmp_path)), 4)
    assert len(found.chosen) == 4
    assert {"short", "leak", "00", "01"} == set(found.chosen)
    assert len(scan(FaceSet(str(tmp_path)), 1).chosen) == 2
    assert (found.identities, found.full, found.unreached) == (22, 21, 1)
    assert "attributes" not in expansion.verdict(found, MEASURED, False).sentence
    sentence = expansion.verdict(found, MEASURED, True).sentence
    for part in (
        "24 images were drawn for 22 identities; 21 of them (87.5\N{NO-BREAK SPACE}%) passed",
        "21 of 22 identities got all the images they wanted; 1 of 22 images are missing",
        "20 of those that passed show the attributes asked for",
        "1 looked like a person of public and was refused",
    ):
        assert part in sentence


@pytest.mark.parametrize(
    ("draws", "full", "galleries", "word", "tone"),
    [
        ({(0, None): 5, (0, SOMEBODY_ELSE): 1}, 2, {"public": 0.5}, "Complete", "good"),
        ({(0, None): 5}, 2, {}, "Complete", "warn"),
        ({(0, None): 4, (0, NOT_THE_PERSON): 1}, 1, {"public": 0.5}, "Incomplete", "warn"),
        ({}, 2, {"public": 0.5}, "Nothing made", "warn"),
    ],
)
def test_the_verdict(draws, full, galleries, word, tone) -> None:
    found = Expanded(identities=2, full=full, wanted=5, draws=Counter(draws))
    verdict = expansion.verdict(
        found, {"thresholds": {**MEASURED["thresholds"], "galleries": galleries}}, False
    )
    assert (verdict.word, verdict.tone) == (word, tone)


def test_the_section_of_a_finished_job(row_workspace: str, album: Album) -> None:
    section = expansion.section(Workspace(row_workspace), album)
    assert section is not None
    tables = {block.caption: block for block in section.blocks if isinstance(block, Table)}
    found = scan(FaceSet(f"{row_workspace}/expand"), 6)
    reasons = tables["Refused images by reason"].rows
    assert [row[2] for row in reasons] == [
        f"{found.refused[reason]:,}" for reason in (NOT_THE_PERSON, SOMEBODY_ELSE, IN_GALLERY)
    ]
    draws = tables["Acceptance by draw"].rows
    assert [row[1] for row in draws][:2] == ["48", draws[0][4]]
    assert draws[-1][4] == f"{found.wanted - found.passed}"
    needed = [row[1] for row in tables["What an image needed to pass"].rows]
    assert needed == ["at least 0.600", "less than 0.750, and than to its own", "less than 0.550"]
    text = next(block for block in section.blocks if isinstance(block, Text)).text
    assert "9 were drawn at random, spread as the 8 identities of the clean job" in text
    assert "3 of them were refused" in text
    assert text.endswith("The other 6 vectors are new people. Screening refused 2 of them.")
    strips = [block for block in section.blocks if isinstance(block, Strip)]
    assert len(strips) == 4
    assert all(face.src for strip in strips for face in strip.faces)
    assert sum(isinstance(block, Charts) for block in section.blocks) == 1


def test_the_dials_are_drawn_where_there_is_a_band(row_workspace: str, tmp_path, album) -> None:
    curve = {"dials": [0.0, 1.0], "means": [0.9, 0.5], "spreads": [0.1, 0.1], "fitted": [0.9, 0.5]}
    painters = [
        {"kind": kind, "weights": f"{kind}.safetensors", "curve": curve}
        for kind in ("vec2face", "cemiface")
    ]
    shutil.copytree(row_workspace, tmp_path / "work")
    path = str(tmp_path / "work/expand/dial.json")
    storage.write_json(path, {"band": [0.6, 0.8], "identities": ["a"], "painters": painters})
    section = expansion.section(Workspace(str(tmp_path / "work")), album)
    assert section is not None
    _, dials = (block.charts for block in section.blocks if isinstance(block, Charts))
    assert [chart.title.rpartition(" ")[2] for chart in dials] == [
        "vec2face.safetensors",
        "cemiface.safetensors",
    ]
    assert "0.500 to 0.900; wanted were 0.6 to 0.8" in dials[0].alt
    assert "similarity asked for (m)" in dials[1].svg and "from 0.6" in dials[1].svg


def test_refusals_by_the_band_are_listed_where_there_are_any() -> None:
    found = Expanded(draws=Counter({(0, None): 3, (0, OUT_OF_BAND): 1}))
    assert len(expansion_figures.refusals(found).rows) == 4
    found = Expanded(draws=Counter({(0, None): 3}))
    assert len(expansion_figures.refusals(found).rows) == 3


def test_generators_are_counted_apart(tmp_path: Path, album: Album) -> None:
    images = [drawn(0, 0, None, 0.9), drawn(1, 0, NOT_THE_PERSON, 0.5), drawn(2, 0, None, 0.4)]
    images[2].generator = "cemiface"
    one = person("p", 3, images)
    write_rows(str(tmp_path), "0.parquet", [one])
    found = scan(FaceSet(str(tmp_path)), 4)
    assert vars(found.painters["cemiface"]) == {"drawn": 1, "passed": 1, "similarity": 0.4}
    assert vars(found.painters["vec2face"]) == {"drawn": 2, "passed": 1, "similarity": 1.4}
    assert expansion_figures.painters(found).rows == (
        ("cemiface", "1", percent(1 / 3), percent(1.0), "0.400"),
        ("vec2face", "2", percent(2 / 3), percent(0.5), "0.700"),
    )
    captions = [face.caption for face in expansion.strip(album, one).faces]
    assert captions[1] == ("0.400", "cemiface")
    assert captions[2][1:] == ("0.500", "vec2face")


def test_a_strip_begins_with_the_reference_and_shows_every_reason(album: Album) -> None:
    reference = Image(image_id="vector", data=b"", source="photo")
    images = [drawn(i, 0, NOT_THE_PERSON, 0.1) for i in range(30)]
    images += [drawn(i, 1, None, 0.6 + i / 100) for i in range(30)]
    images += [drawn(40, 0, IN_GALLERY, 0.9)]
    strip = expansion.strip(album, person("p", 40, images, [reference]))
    captions = [face.caption for face in strip.faces]
    assert captions[0] == ("reference",)
    assert captions[1] == ("0.890",)
    assert len(captions) == 16
    assert captions[-5:] == [
        ("not the person", "0.100"),
        ("in gallery", "0.900"),
        *[("not the person", "0.100")] * 3,
    ]
    assert strip.badge is not None
    assert (strip.badge.text, strip.badge.tone) == ("30 of 40 images", "warn")
    assert strip.more == "Not shown: 20 kept images and 26 refused images."


def test_vectors_that_nobody_expanded(row_workspace: str, tmp_path, album: Album) -> None:
    assert expansion.section(Workspace(str(tmp_path)), album) is None
    shutil.copytree(f"{row_workspace}/vectors", tmp_path / "vectors")
    section = expansion.section(Workspace(str(tmp_path)), album)
    assert section is not None
    verdicts = [block.word for block in section.blocks if isinstance(block, Verdict)]
    assert verdicts == ["Not expanded", "Take care"]
    assert not storage.exists(str(tmp_path / "expand"))
    assert expansion.tiles(Workspace(str(tmp_path))) == []
