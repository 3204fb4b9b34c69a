"""The sections on a finished workspace, without a browser."""

import copy
from dataclasses import asdict

import numpy as np
import pytest

from face_sets import write_set
from raypipe import storage
from raypipe.config.report import ReportConfig
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image, ScreenEvidence
from raypipe.licences import NOT_STATED, Use
from raypipe.provenance import LICENCES
from raypipe.report.album import Album
from raypipe.report.blocks import Badge, Charts, Meter, Strip, Table, Tiles
from raypipe.report.screened import IN_GALLERY, scan
from raypipe.report.sections import (
    cleaning,
    leakage,
    provenance,
    similarity,
    summary,
    verification,
)
from raypipe.report.sections.verification_tables import published_table
from raypipe.report.workspace import Workspace

EVIL = '<script>alert("1")</script>&x'


@pytest.fixture
def album() -> Album:
    return Album(10**7)


def tables(blocks: list) -> dict[str, Table]:
    return {block.caption: block for block in blocks if isinstance(block, Table)}


def test_every_reason_of_rejection_is_shown(row_workspace: str, album: Album) -> None:
    workspace = Workspace(row_workspace)
    manifest = workspace.manifest("clean")
    assert manifest is not None
    reasons = {*manifest.counts["images"]["rejected"], *manifest.counts["identities"]["rejected"]}
    assert len(reasons) == 6
    face_set = FaceSet(workspace.path("clean"))
    chosen = cleaning.choose(face_set, reasons, 1)
    shown = face_set.read(chosen)
    seen = {image.rejected for person in shown for image in person.images}
    assert reasons <= seen | {person.rejected for person in shown}
    assert len(chosen) == len(set(chosen))


def test_as_many_identities_are_shown_as_asked_for(row_workspace: str) -> None:
    face_set = FaceSet(f"{row_workspace}/clean")
    assert len(cleaning.choose(face_set, {"clean:other_person"}, 5)) == 5
    assert len(cleaning.choose(face_set, set(), 100)) == 9, "no more than there are"


def test_a_strip_shows_every_reason_of_its_identity_however_many_are_removed(album: Album) -> None:
    images = [
        Image(image_id=f"{i}", data=b"", source="s", rejected="clean:other_person", similarity=0.1)
        for i in range(40)
    ]
    images.append(Image(image_id="last", data=b"", source="s", rejected="ingest:corrupt"))
    person = Identity(identity_id="p", index=0, source="base", images=images)
    strip = cleaning.strip(album, person)
    assert {face.caption[0] for face in strip.faces} == {"other person", "corrupt"}
    assert all(face.tone == "bad" for face in strip.faces)
    assert strip.note.startswith("0 images kept, 41 removed.")
    assert strip.more == "Not shown: 32 removed faces."


def test_kept_faces_run_from_most_to_least_similar(row_workspace: str, album: Album) -> None:
    person = FaceSet(f"{row_workspace}/clean").read(["000000"])[0]
    faces = [face for face in cleaning.strip(album, person).faces if face.tone == "plain"]
    shown = [float(face.caption[0]) for face in faces]
    kept = sorted((image.similarity or 0 for image in person.kept), reverse=True)
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == pytest.approx(kept[0], abs=0.005)
    assert shown[-1] == pytest.approx(kept[-1], abs=0.005)


def test_duplicates_stand_beside_each_other(row_workspace: str, album: Album) -> None:
    section = cleaning.section(Workspace(row_workspace), ReportConfig(), album)
    table = tables(section.blocks)["Folders that hold one person twice"]
    refused, same, meter, _ = table.rows[0]
    assert (refused.caption, same.caption) == (("000006",), ("000004",))  # type: ignore[union-attr]
    assert meter == Meter(value=0.93, threshold=0.71, tone="bad")
    assert any(isinstance(block, Strip) for block in section.blocks)


def test_leakage_names_the_refused_and_the_closest_admitted(
    row_workspace: str, album: Album
) -> None:
    workspace, config = Workspace(row_workspace), ReportConfig()
    found = leakage.scanned(workspace, config)
    assert found is not None
    assert [row.identity_id for row in found.refused] == [EVIL, "vec/0000004"]
    assert [row.identity_id for row in found.closest] == [
        *(f"vec/{i:07d}" for i in range(4)),
        "000005",
        "000004",
        "000002",
        "000001",
    ]
    assert (found.compared, found.admitted, found.above) == (13, 9, 0)
    assert found.galleries == ["public"]
    section = leakage.section(workspace, config, album, found)
    pairs = tables(section.blocks)
    person, face, meter, badge = pairs["Refused: in a public gallery (2)"].rows[0]
    assert all(shown.src for shown in (person, face)), "both faces are shown"
    assert face.caption == ("person1", "1.png")  # type: ignore[union-attr]
    assert meter == Meter(value=0.81, threshold=0.55, tone="bad")
    assert badge == Badge(text="refused", tone="bad")
    assert len(pairs["Refused for being too much like another identity (2)"].rows) == 2
    verdict = leakage.verdict(found)
    assert verdict.tone == "good"
    assert "None of the 9 admitted identities" in verdict.sentence
    assert "0.380 against a threshold of 0.550" in verdict.sentence


def test_a_vector_is_named_until_there_is_a_picture_of_it(row_workspace: str, album: Album) -> None:
    workspace, config = Workspace(row_workspace), ReportConfig()
    section = leakage.section(workspace, config, album, leakage.scanned(workspace, config))
    pairs = tables(section.blocks)
    refused = pairs["Refused: in a public gallery (2)"].rows[1][0]
    assert refused == "vec/0000004, a vector without a picture"
    admitted = pairs["Admitted: the closest calls"].rows[0][0]
    assert admitted.caption == ("vec/0000000",)  # type: ignore[union-attr]
    assert admitted.src, "its best image by now"  # type: ignore[union-attr]


def test_an_admitted_identity_above_the_threshold_is_called_leakage(tmp_path) -> None:
    evidence = ScreenEvidence(
        gallery="g",
        gallery_identity="a",
        gallery_image="b",
        gallery_similarity=0.6,
        gallery_threshold=0.5,
    )
    person = Identity(identity_id="p", index=0, source="base", images=[], screen=evidence)
    write_rows(str(tmp_path), "a.parquet", [person])
    verdict = leakage.verdict(scan(FaceSet(str(tmp_path)), ["g"], 5, 5))
    assert (verdict.word, verdict.tone) == ("Leakage", "bad")


def test_without_galleries_nothing_is_called_clean(tmp_path) -> None:
    person = Identity(
        identity_id="p", index=0, source="base", images=[], screen=ScreenEvidence(nearest="q")
    )
    write_rows(str(tmp_path), "a.parquet", [person])
    for found in (scan(FaceSet(str(tmp_path)), ["g"], 5, 5), None):
        verdict = leakage.verdict(found)
        assert (verdict.word, verdict.tone) == ("Not checked", "warn")


def test_only_the_most_similar_are_kept_in_memory(tmp_path) -> None:
    rng = np.random.default_rng(0)
    similarity = rng.uniform(0.5, 1, 300)
    people = [
        Identity(
            identity_id=f"{i:03d}",
            index=i,
            source="base",
            images=[],
            rejected=IN_GALLERY,
            screen=ScreenEvidence(
                gallery="g",
                gallery_identity="a",
                gallery_image="b",
                gallery_similarity=float(value),
                gallery_threshold=0.5,
            ),
        )
        for i, value in enumerate(similarity)
    ]
    write_rows(str(tmp_path), "a.parquet", people)
    found = scan(FaceSet(str(tmp_path)), ["g"], 7, 3)
    best = np.argsort(-similarity)[:7]
    assert [row.identity_id for row in found.refused] == [f"{i:03d}" for i in best]
    assert found.refused_total == 300


@pytest.mark.parametrize("threshold", [-0.2, 0.3, 0.956, 1.0])
def test_a_meter_has_its_mark_at_two_thirds_whatever_the_embedder(threshold: float) -> None:
    places = [
        Meter(value=value, threshold=threshold, tone="plain").place
        for value in (-1.0, threshold - 0.002, threshold, threshold + 0.002, 1.2)
    ]
    assert places == sorted(places)
    assert places[2] == pytest.approx(100 * 2 / 3)
    assert places[1] < places[2] < places[3]
    assert 0 <= places[0] <= places[-1] == 100


def test_lost_images_show_in_the_accounts(row_workspace: str) -> None:
    manifest = Workspace(row_workspace).manifest("screen")
    assert manifest is not None
    counts = copy.deepcopy(manifest.counts)
    assert provenance.conserved(counts)
    counts["images"]["kept"] -= 1
    assert not provenance.conserved(counts)


def test_histograms_of_a_chart_share_bins_and_lose_no_count() -> None:
    rng = np.random.default_rng(1)
    one, two = rng.normal(0.4, 0.1, 5000), rng.normal(0.0, 0.1, 300)
    width = 0.0025
    edges = -1 + width * np.arange(801)
    groups = [
        similarity.Fine(
            label=str(start),
            colour="blue",
            start=edges[start],
            width=width,
            counts=np.histogram(values, edges)[0][start:],
        )
        for values, start in ((one, 100), (two, 200))
    ]
    first, second = similarity.coarse(groups)
    assert first.edges == second.edges
    assert len(first.counts) <= 50
    for drawn, values in ((first, one), (second, two)):
        assert drawn.counts == np.histogram(values, drawn.edges)[0].tolist()
        assert sum(drawn.counts) == len(values)


def test_sections_of_jobs_that_were_not_run_say_so(tmp_path, album: Album) -> None:
    workspace, config = Workspace(str(tmp_path)), ReportConfig()
    assert "has not been run" in cleaning.section(workspace, config, album).lead
    assert "has not been run" in leakage.section(workspace, config, album, None).lead
    assert not storage.exists(str(tmp_path / "screen"))
    assert "Not run yet: ingest, embed, clean, screen, assemble, train, evaluate." in (
        summary.section(workspace, None).lead
    )
    optional = {"sample", "vectors", "expand"}
    listed = tables(provenance.section(workspace).blocks)["Manifests"]
    assert not optional & {row[0] for row in listed.rows}


def test_vectors_are_no_lost_images(row_workspace: str) -> None:
    section = summary.section(Workspace(row_workspace), None)
    path = {
        row[0]: row for row in tables(section.blocks)["From the base set to the training set"].rows
    }
    assert path["vectors, added"][1:5] == ("6", "–", "–", "–")
    counts = Workspace(row_workspace).manifests["expand"].counts["images"]
    tile = next(block for block in section.blocks if isinstance(block, Tiles)).tiles[1]
    seen = counts["total"] - 6
    assert tile.value == f"{counts['kept']}"
    assert tile.detail.startswith(f"of {seen}; {seen - counts['kept']} removed")
    assert all(row[-1] == Badge(text="adds up", tone="good") for row in path.values())


def test_own_accuracies_stand_above_published_ones() -> None:
    own = {"mine": {"lfw": {"accuracy": 0.75}}, "other": {"orl": {"accuracy": 0.5}}}
    rows = published_table(own).rows
    assert rows[0] == ("mine", "75.00", *["–"] * 5, "measured")
    assert rows[1][0] == "HSFace10K, 0.5M"


def test_what_a_job_took_back_is_said(tmp_path) -> None:
    for job, reasons in {
        "clean": ["clean:other_person", "clean:other_person", None],
        "judge": ["clean:other_person", None, "judge:other_person"],
    }.items():
        images = [
            Image(image_id=f"{number}.jpg", data=b"-", source="", rejected=reason)
            for number, reason in enumerate(reasons)
        ]
        person = Identity(identity_id="base/1", index=0, source="base", images=images)
        write_set(str(tmp_path / job), [person], job=job)
    blocks = summary.section(Workspace(str(tmp_path)), None).blocks
    rows = tables(blocks)["From the base set to the training set"].rows
    assert [row[2] for row in rows] == ["1", "1"]
    assert [row[4] for row in rows] == ["2 other person", "1 other person, 1 taken back"]


def test_licences_are_listed_and_what_nobody_stated_stands_out(tmp_path) -> None:
    uses = [
        Use(kind="source", name="base", role="images", licence="MIT", said_by="the configuration"),
        Use(kind="weights", name="x.onnx", role="embedder", licence=NOT_STATED, said_by="nobody"),
    ]
    caption = "Licences of what the training set was made from"
    assert caption not in tables(provenance.section(Workspace(str(tmp_path))).blocks)
    storage.write_json(str(tmp_path / "assemble" / LICENCES), [asdict(use) for use in uses])
    table = tables(provenance.section(Workspace(str(tmp_path))).blocks)[caption]
    assert [row[0] for row in table.rows] == ["source base", "weights x.onnx"]
    assert table.rows[0][2] == "MIT"
    assert table.rows[1][2] == Badge(text=NOT_STATED, tone="warn")


def test_verification_shows_ijb_groups_epochs_and_what_others_published(
    finished_workspace: str,
) -> None:
    section = verification.section(Workspace(finished_workspace))
    found = list(tables(section.blocks).values())
    of_ijb, groups, epochs, published = found[1:]
    assert of_ijb.head[2:4] == ("FAR 1e-06", "FAR 1e-05")
    assert [row[0] for row in of_ijb.rows] == ["IJBC"]
    assert [row[:4] for row in groups.rows] == [
        ("other", "north", "100", "100"),
        ("other", "south", "100", "100"),
    ]
    assert [row[0] for row in epochs.rows] == ["1", "2"]
    # None of its sets is one of the published ones.
    assert all(row[-1].startswith("published [") for row in published.rows)
    titles = [
        c.title for block in section.blocks if isinstance(block, Charts) for c in block.charts
    ]
    assert titles[:3] == ["ROC", "ROC of IJB", "Accuracy by epoch"]
