"""The section of new identities: what is counted, which pairs are shown, and what is said of it."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.stage import totals
from raypipe import seeding, storage
from raypipe.config import parse
from raypipe.config.report import ReportConfig
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image, SeedEvidence, Try
from raypipe.images import encode_png
from raypipe.manifest import Manifest, Origin, summarise, write_manifest
from raypipe.new_people import in_short, new_people
from raypipe.prompts import draw, load_grammar
from raypipe.report.album import Album
from raypipe.report.blocks import Block, Charts, Strip, Table, Text
from raypipe.report.document import document
from raypipe.report.page import render
from raypipe.report.sections import seeds
from raypipe.report.seeds import Seeded, scan
from raypipe.report.workspace import Workspace
from raypipe.screening import Verdicts, decide, search_galleries
from raypipe.separability import SEPARABILITY, measure
from raypipe.templates import template

GRAMMAR = """
prompt: portrait of a person, {skin_tone}, {hair}
attributes:
  skin_tone: {dark: 3, light: 1}
  hair: {black: 1, <b>red</b>: 1}
"""
REASONS = (
    *("seed:no_face", "seed:several_faces", "seed:small", "seed:blurred", "seed:turned"),
    *("seed:drawing", "seed:safety_checker"),
)
SIZE, TRIES, ASKED = 8, 3, 20


@pytest.fixture
def album() -> Album:
    return Album(10**7)


@pytest.fixture(scope="module")
def grammar(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("grammar") / "people.yaml"
    path.write_text(GRAMMAR)
    return str(path)


def picture(rng: np.random.Generator) -> bytes:
    return encode_png(rng.integers(0, 255, (12, 12, 3)).astype(np.uint8))


def seed_identity(index: int, grammar: str, rng: np.random.Generator) -> Identity:
    """An identity with its tries, the last of which may have passed; 30 people in all."""
    tries: list[Try] = []
    images = []
    for number in range(TRIES):
        reason = REASONS[rng.integers(len(REASONS))] if rng.random() < 0.5 else None
        tries.append(
            Try(
                faces={"seed:no_face": 0, "seed:several_faces": 3}.get(reason or "", 1),
                size=40.0,
                sharpness=0.5,
                yaw=-41.2,
                pitch=3.0,
                flatness=0.7,
                rejected=reason,
            )
        )
        image = Image(
            image_id=f"seed-{number:02d}", data=picture(rng), source="sd", rejected=reason
        )
        images.append(image)
        if reason is None:
            person = np.random.default_rng(index % 30).normal(size=SIZE)
            image.embedding = (person + 0.3 * rng.normal(size=SIZE)).astype(np.float32)
            break
    drawn = draw(load_grammar(grammar), 7, index)
    return Identity(
        identity_id=f"seed/{index:07d}",
        index=index,
        source="seed",
        images=images,
        rejected=None if images[-1].rejected is None else "seed:tries_used_up",
        seed=SeedEvidence(
            prompt=drawn.prompt, negative="", attributes=drawn.attributes, tries=tries
        ),
    )


def base_identity(index: int, rng: np.random.Generator) -> Identity:
    vectors = rng.normal(size=SIZE) + 0.1 * rng.normal(size=(4, SIZE))
    images = [
        Image(image_id=f"{i}", data=picture(rng), source="b", embedding=vector.astype(np.float32))
        for i, vector in enumerate(vectors)
    ]
    return Identity(identity_id=f"{index:04d}", index=index, source="base", images=images)


def drawn_people(grammar: str, number: int, seed: int) -> list[Identity]:
    """Rows as the seed job leaves them: one more passed than was needed."""
    rng = seeding.generator(seed, "people")
    people = [seed_identity(index, grammar, rng) for index in range(number)]
    last = [person for person in people if person.rejected is None][-1]
    last.rejected = "seed:surplus"
    return people


def screen(root: str, people: list[Identity]) -> tuple[list[Identity], dict]:
    """What screening makes of rows, and its "separability.json"."""
    write_rows(root, "searched.parquet", people)
    searched = search_galleries(FaceSet(root).iter_embeddings(), [])
    shutil.rmtree(root)
    verdicts, summary = decide(searched, {}, rate=0.02, first="base")
    marks = Verdicts(verdicts)
    marked = [marks.mark(replace(person)) for person in people]
    return marked, measure(searched, "seed", summary["unique"])


def finish(root: Path, job: str, people: list[Identity], made: int, origin: Origin, **more) -> None:
    folder = str(root / job)
    half = len(people) // 2
    write_rows(folder, "b.parquet", people[:half])
    write_rows(folder, "a.parquet", people[half:])
    counts, digest = summarise(folder)
    write_manifest(
        folder,
        Manifest(
            origin=origin, counts=totals(counts, images_made=made) | more, content_digest=digest
        ),
    )


def workspace(root: Path, grammar: str, *, screened: bool = True) -> str:
    people = drawn_people(grammar, 60, 1)
    pictures = sum(len(person.images) for person in people)
    origin = Origin(
        job="seed",
        settings={"prompts": {"grammar": grammar}, "tries": TRIES},
        inputs={"grammar": load_grammar(grammar).digest},
        models={},
    )
    passed = sum(person.images[-1].rejected is None for person in people)
    seeded = {"asked": ASKED, "drawn": 60, "pictures": pictures, "accepted": passed, "waves": 3}
    finish(root, "seed", people, pictures, origin, seeds=seeded)
    if screened:
        rng = seeding.generator(1, "base")
        base = [base_identity(index, rng) for index in range(12)]
        marked, curves = screen(str(root / "scratch"), [*base, *people])
        origin = Origin(job="screen", settings={}, inputs={}, models={})
        finish(root, "screen", marked, 0, origin)
        storage.write_json(str(root / "screen" / SEPARABILITY), curves)
        leakage = {"galleries": {}, "unique": None, "warnings": [], "false_match_rate": 0.02}
        storage.write_json(str(root / "screen" / "leakage.json"), leakage)
    return str(root)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, grammar: str) -> str:
    return workspace(tmp_path_factory.mktemp("finished"), grammar)


def tables(blocks: list[Block]) -> dict[str, Table]:
    return {block.caption: block for block in blocks if isinstance(block, Table)}


def test_the_scan_counts_what_a_reader_of_all_rows_would_count(finished: str) -> None:
    face_set = FaceSet(f"{finished}/screen")
    people = sorted(
        (person for person in face_set.iter_identities() if person.seed),
        key=lambda person: person.identity_id,
    )
    tries = [(person, one) for person in people if person.seed for one in person.seed.tries]
    found = scan(face_set, 2)
    assert found.tries == Counter(one.rejected for _, one in tries)
    assert set(found.tries) == {*REASONS, None}
    assert found.outcomes == Counter(person.rejected for person in people)
    assert set(found.outcomes) == {None, "seed:tries_used_up", "seed:surplus", "screen:not_unique"}
    one_face = [
        (person, one)
        for person, one in tries
        if one.rejected not in ("seed:no_face", "seed:several_faces", "seed:safety_checker")
    ]
    passed = [(person, one) for person, one in tries if one.rejected is None]
    left = [person for person in people if person.rejected is None]
    unneeded = len(passed) - 1
    assert found.pictures == [
        *(len(tries), len(one_face), len(passed)),
        *(unneeded, unneeded, len(left)),
    ]
    assert found.identities == [
        *(len(people), len({person.identity_id for person, _ in one_face}), len(passed)),
        *(unneeded, unneeded, len(left)),
    ]
    assert found.left == [person.identity_id for person in left]
    for counted, chosen in ((found.drawn, people), (found.admitted, left)):
        pairs = [pair for person in chosen for pair in person.seed.attributes.items()]  # type: ignore[union-attr]
        assert counted == Counter(pairs)
    for reason in REASONS:
        every = [
            (person.identity_id, place)
            for person in people
            if person.seed
            for place, one in enumerate(person.seed.tries)
            if one.rejected == reason
        ]
        assert found.examples[reason] == every[:2]


@pytest.mark.parametrize("seed", range(6))
def test_the_closest_pair_is_that_of_all_pairs_that_are_left(
    seed: int, grammar: str, tmp_path: Path
) -> None:
    rng = seeding.generator(seed, "base")
    base = [base_identity(index, rng) for index in range(6)]
    people, _ = screen(str(tmp_path / "scratch"), [*base, *drawn_people(grammar, 70, seed)])
    write_rows(str(tmp_path), "a.parquet", people)
    found = scan(FaceSet(str(tmp_path)), 1)
    left = [person for person in people if person.rejected is None]
    templates = np.stack(
        [template(np.stack([image.embedding for image in person.kept])) for person in left]
    ).astype(np.float64)
    similarity = templates @ templates.T
    np.fill_diagonal(similarity, -1)
    drawn = np.array([person.source == "seed" for person in left])
    assert found.closest is not None
    assert found.over is not None
    assert found.closest.similarity == pytest.approx(similarity[drawn].max(), abs=1e-6)
    names = [person.identity_id for person in left]
    one, other = names.index(found.closest.identity_id), names.index(found.closest.nearest)
    assert similarity[one, other] == pytest.approx(similarity[drawn].max(), abs=1e-6)
    assert found.closest.similarity < found.closest.threshold <= found.over.similarity
    assert found.over.nearest in names
    refused = [
        person.screen.nearest_similarity
        for person in people
        if person.screen and person.rejected == "screen:not_unique" and person.source == "seed"
    ]
    assert found.over.similarity == min(refused)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("asked", "screened", "word", "tone", "part"),
    [
        (2, True, "Reached", "good", "Screening left 2"),
        (5, True, "Not reached", "warn", "3 are missing"),
        (2, False, "Not screened", "warn", "has not compared them"),
    ],
)
def test_the_verdict(asked, screened, word, tone, part) -> None:
    found = Seeded(
        left=["a", "b"],
        outcomes=Counter({None: 2, "seed:surplus": 1, "seed:tries_used_up": 4}),
    )
    counts = {"asked": asked, "drawn": 7, "pictures": 1200, "accepted": 3, "waves": 1}
    verdict = seeds.verdict(counts, found, screened)
    assert (verdict.word, verdict.tone) == (word, tone)
    for words in (
        part,
        "1,200 pictures of 7 identities were drawn in 1 wave; 3 of the identities passed the"
        " gates, 1 of them more than were needed.",
        "4 used up their tries.",
    ):
        assert words in verdict.sentence


def test_the_section_of_a_screened_set(finished: str, album: Album) -> None:
    section = seeds.section(Workspace(finished), album)
    assert section is not None
    found = scan(FaceSet(f"{finished}/screen"), 4)
    shown = tables(section.blocks)
    steps = shown["From drawn pictures to new identities"].rows
    assert [row[0] for row in steps] == [
        *("drawn", "one face", "good enough", "needed", "in no gallery", "unique")
    ]
    assert [row[2] for row in steps] == [f"{number}" for number in found.pictures]
    assert [row[4] for row in steps] == [f"{number}" for number in found.identities]
    reasons = shown["Refused pictures and identities by reason"].rows
    assert len(reasons) == len(REASONS) + 3
    assert {row[2] for row in reasons[:-3]} == {"pictures"}
    taken, refused = shown["The nearest pair that was taken, and the nearest that was not"].rows
    assert found.closest is not None
    assert found.over is not None
    for row, pair, tone in ((taken, found.closest, "good"), (refused, found.over, "bad")):
        assert [cell.caption for cell in row[:2]] == [(pair.identity_id,), (pair.nearest,)]  # type: ignore[union-attr]
        assert all(cell.src for cell in row[:2])  # type: ignore[union-attr]
        assert (row[2].value, row[2].threshold, row[2].tone) == (  # type: ignore[union-attr]
            *(pair.similarity, pair.threshold),
            tone,
        )
    charts = next(block for block in section.blocks if isinstance(block, Charts)).charts
    assert len(charts) == 2
    curves = storage.read_json(f"{finished}/screen/{SEPARABILITY}")
    middle = curves["thresholds"][2]
    assert f"{curves['unique'][2][-1]} at {middle:.3f}" in charts[1].alt
    assert f"from {middle:.3f} (screening)" in charts[1].svg


def test_pictures_are_described_by_what_was_asked_for(finished: str, album: Album) -> None:
    section = seeds.section(Workspace(finished), album)
    assert section is not None
    references, refused = (block for block in section.blocks if isinstance(block, Strip))
    found = scan(FaceSet(f"{finished}/screen"), 4)
    assert len(references.faces) == min(24, len(found.left))
    first = next(iter(FaceSet(f"{finished}/screen").read(found.left[:1])))
    assert first.seed is not None
    tone, hair = first.seed.attributes.values()
    assert references.faces[0].caption == (f"skin tone {tone}", f"hair {hair}")
    assert references.faces[0].alt == (
        f"Reference of identity {first.identity_id}, drawn as: skin tone {tone}, hair {hair}"
    )
    captions = {face.caption for face in refused.faces}
    assert captions == {
        ("no face",),
        ("safety checker",),
        ("several faces", "3 faces"),
        ("small", "40 pixels"),
        ("blurred", "sharpness 0.50"),
        ("turned", "yaw \N{MINUS SIGN}41°, pitch 3°"),
        ("drawing", "flatness 0.70"),
    }
    assert all(face.src and face.tone == "bad" for face in refused.faces)
    page = render("title", "subtitle", [section])
    assert page.count("<img") == len(references.faces) + len(refused.faces) + 4
    assert page.count('alt=""') == 0
    assert "<b>red</b>" not in page
    assert "&lt;b&gt;red&lt;/b&gt;" in page


def test_the_card_says_how_references_were_drawn() -> None:
    origin = Origin(
        job="seed",
        settings={
            "number": 20,
            "tries": 3,
            "diffusion": {"model": "models/small"},
            "gates": {"size": 40.0, "yaw": None, "pitch": 30.0},
            "seed": 5,
        },
        inputs={"model": "a" * 64, "grammar": "b" * 64},
        models={},
    )
    counts = {"asked": 20, "drawn": 40, "pictures": 1000, "accepted": 22, "waves": 2}
    seeded = Manifest(origin=origin, counts={"seeds": counts}, content_digest="")
    sources = {"base": {"identities": 9}, "seed": {"identities": 40, "identities_kept": 19}}
    screened = Manifest(
        origin=Origin(job="screen", settings={}, inputs={}, models={}),
        counts={"sources": sources},
        content_digest="",
    )
    config = parse(
        {
            "workspace": "w",
            "embedder": {"kind": "dlib"},
            "ingest": {"sources": [{"name": "base", "path": "a"}]},
            "expand": {"sources": ["vec", "seed"]},
        },
        "test",
    )
    (text,) = new_people(config, {"seed": seeded, "screen": screened}, [])
    for part in (
        f"20 identities were to begin as a reference picture each, drawn by `models/small` (SHA-256"
        f" `{'a' * 64}`) from prompts of a grammar (SHA-256 `{'b' * 64}`) and seed 5.",
        "1,000 pictures of 40 identities were drawn, at most 3 of each. 22 identities passed the"
        " gates (exactly one face, `size=40.0`, `pitch=30.0`), and screening left 19 of them.",
    ):
        assert part in text
    short = in_short(config, {"vec": {"identities": 2}, "seed": {"identities": 19}})
    assert "21 identities, 2 of them sampled vectors and 19 of them drawn from a prompt;" in short


CAPTION = "Balance of the attributes: asked for, drawn, taken"


def test_the_balance_stands_beside_what_was_asked_for(
    tmp_path: Path, grammar: str, finished: str, album: Album
) -> None:
    found = scan(FaceSet(f"{finished}/screen"), 1)
    mine = tmp_path / "people.yaml"
    mine.write_text(GRAMMAR)
    root = workspace(tmp_path / "work", str(mine))

    def section() -> list[Block]:
        made = seeds.section(Workspace(root), album)
        assert made is not None
        return made.blocks

    def percent(share: float) -> str:
        return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"

    key = ("skin_tone", "dark")
    drawn = percent(found.drawn[key] / 60)
    left = percent(found.admitted[key] / len(found.left))
    rows = tables(section())[CAPTION].rows
    assert rows[0] == ("skin tone", "dark", percent(0.75), drawn, left)
    assert len(rows) == 4
    moved = next(block.text for block in section() if isinstance(block, Text))
    assert "They moved " in moved
    mine.write_text(GRAMMAR.replace("dark: 3", "dark: 2"))
    texts = [block.text for block in section() if isinstance(block, Text)]
    assert any("was changed" in text for text in texts)
    mine.unlink()
    rows = tables(section())[CAPTION].rows
    assert ("skin tone", "dark", "–", drawn, left) in rows
    assert len(rows) == 4


def test_before_screening_nothing_is_said_of_uniqueness(
    tmp_path: Path, grammar: str, album: Album
) -> None:
    assert seeds.section(Workspace(str(tmp_path)), album) is None
    section = seeds.section(Workspace(workspace(tmp_path, grammar, screened=False)), album)
    assert section is not None
    shown = tables(section.blocks)
    steps = shown["From drawn pictures to new identities"].rows
    assert [row[0] for row in steps] == ["drawn", "one face", "good enough", "needed"]
    assert not any("nearest pair" in caption for caption in shown)
    charts = next(block for block in section.blocks if isinstance(block, Charts)).charts
    assert len(charts) == 1


def test_the_report_shows_it_before_the_expansion(
    finished: str, row_workspace: str, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    shutil.copytree(f"{row_workspace}/vectors", tmp_path / "vectors")
    page = document(str(tmp_path), ReportConfig())
    places = [page.index(f'id="{name}"') for name in ("leakage", "seeds", "expansion")]
    assert places == sorted(places)
    assert "seed, added" in page
