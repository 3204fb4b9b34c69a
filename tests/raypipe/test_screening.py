"""Planted leaks and repeated identities are refused, by a choice that order does not change."""

from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest

from raypipe.errors import UserError
from raypipe.faceset import Embedded, write_rows
from raypipe.identities import Identity, Image
from raypipe.impostors import calibrate_gallery
from raypipe.screening import Verdicts, decide, greedy, search_galleries
from raypipe.templates import Gallery, halves, load_gallery, template, unit

SIZE = 64
RATE = 1e-5


def faces(centre: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Raw embeddings around a direction, of uneven lengths."""
    noisy = unit(unit(centre) + 0.08 * rng.normal(size=(count, SIZE)))
    return (noisy * rng.uniform(1, 3, size=(count, 1))).astype(np.float32)


def embedded(name: str, index: int, vectors: np.ndarray, **more) -> Embedded:
    """An identity with all its images kept."""
    fields = {"source": "base", "rejected": None, "image_rejected": [None] * len(vectors)} | more
    ids = [f"{i}.jpg" for i in range(len(vectors))]
    return Embedded(identity_id=name, index=index, image_ids=ids, embeddings=vectors, **fields)


@pytest.fixture(scope="module")
def world():
    """40 known people; of 60 identities 3 and 17 are known people and 30 is 5 again."""
    rng = np.random.default_rng(0)
    known = rng.normal(size=(40, SIZE))
    entries = [(p, face) for p in range(40) for face in unit(faces(known[p], 10, rng))]
    gallery = Gallery(
        name="known",
        names=[f"p{p:02d}" for p in range(40)],
        image_ids=[f"{i % 10}" for i in range(len(entries))],
        people=np.array([p for p, _ in entries]),
        faces=np.stack([face for _, face in entries]).astype(np.float32),
    )
    centres = rng.normal(size=(60, SIZE))
    centres[3], centres[17], centres[30] = known[8], known[21], centres[5]
    identities = [embedded(f"{i:03d}", i, faces(c, 12, rng)) for i, c in enumerate(centres)]
    return gallery, identities


def refused(verdicts: pa.Table) -> dict[str, str]:
    return {r["identity_id"]: r["rejected"] for r in verdicts.to_pylist() if r["rejected"]}


def judged(gallery: Gallery, identities: list[Embedded]) -> tuple[pa.Table, dict]:
    calibration = calibrate_gallery(gallery, RATE)
    searched = search_galleries(identities, [gallery])
    return decide(searched, {"known": calibration}, rate=RATE, first="base")


def test_template_ignores_length_and_halves_agree():
    rng = np.random.default_rng(1)
    vectors = faces(rng.normal(size=SIZE), 9, rng)
    expected = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(template(vectors), expected / np.linalg.norm(expected), atol=1e-6)
    assert template(vectors).dtype == np.float32
    assert halves(vectors) == pytest.approx(
        template(vectors[::2]) @ template(vectors[1::2]), abs=1e-6
    )
    assert np.isnan(halves(vectors[:1]))


def test_exactly_the_leaks_and_the_repeat_are_refused_with_evidence(world):
    gallery, identities = world
    verdicts, summary = judged(gallery, identities)
    assert refused(verdicts) == {
        "003": "screen:in_gallery",
        "017": "screen:in_gallery",
        "030": "screen:not_unique",
    }
    rows = {row["identity_id"]: row for row in verdicts.to_pylist()}
    similarity = unit(gallery.faces) @ template(identities[3].embeddings)
    assert rows["003"]["gallery_image"] == gallery.image_ids[similarity.argmax()]
    assert rows["003"]["gallery_identity"] == "p08"
    assert rows["003"]["gallery_similarity"] == pytest.approx(similarity.max(), abs=1e-6)
    assert rows["003"]["nearest"] is None  # a real person is no measure for others
    assert rows["030"]["nearest"] == "005"
    assert rows["005"]["nearest"] == "030"
    assert rows["030"]["nearest_similarity"] >= rows["030"]["nearest_threshold"]
    assert all(row["gallery"] == "known" for row in rows.values())
    assert summary["galleries"]["known"]["refused"] == 2
    assert sum(summary["galleries"]["known"]["nearest"]["counts"]) == 60
    assert (summary["unique"]["compared"], summary["unique"]["refused"]) == (58, 1)


def test_decision_does_not_depend_on_the_order_of_rows_or_on_who_shares_a_file(world):
    gallery, identities = world
    expected = judged(gallery, identities)
    calibration = calibrate_gallery(gallery, RATE)
    shuffled = [identities[i] for i in np.random.default_rng(2).permutation(60)]
    parts = [search_galleries(shuffled[i : i + 7], [gallery]) for i in range(0, 60, 7)]
    found = decide(pa.concat_tables(parts), {"known": calibration}, rate=RATE, first="base")
    assert found[0].equals(expected[0])
    assert found[1] == expected[1]


def test_base_stays_before_new_whatever_the_index(world):
    gallery, identities = world
    twin = embedded("new-0", 0, identities[44].embeddings[::-1].copy(), source="new")
    verdicts, _ = judged(gallery, [twin, *identities])
    assert refused(verdicts)["new-0"] == "screen:not_unique"
    assert "044" not in refused(verdicts)


def test_what_cleaning_rejected_is_neither_compared_nor_in_the_way(world):
    gallery, identities = world
    changed = list(identities)
    changed[5] = embedded("005", 5, identities[5].embeddings, rejected="clean:duplicate_identity")
    reasons = ["clean:other_person"] * 12
    changed[9] = embedded("009", 9, identities[3].embeddings, image_rejected=reasons)
    verdicts, _ = judged(gallery, changed)
    names = verdicts["identity_id"].to_pylist()
    assert "005" not in names
    assert "009" not in names
    assert set(refused(verdicts)) == {"003", "017"}


def test_no_gallery_still_means_unique_identities(world):
    _, identities = world
    verdicts, summary = decide(search_galleries(identities, []), {}, rate=RATE, first="base")
    assert refused(verdicts) == {"030": "screen:not_unique"}
    assert summary["galleries"] == {}
    alone, summary = decide(search_galleries(identities[:1], []), {}, rate=RATE, first="base")
    assert (refused(alone), summary["unique"]) == ({}, None)
    nobody, _ = decide(search_galleries([], []), {}, rate=RATE, first="base")
    assert nobody.num_rows == 0


def test_greedy_keeps_whoever_has_no_earlier_twin_that_stays():
    i, j = np.array([0, 1, 1, 3]), np.array([1, 2, 4, 4])
    similarity = np.array([0.9, 0.9, 0.99, 0.8], np.float32)
    gone = greedy(i, j, similarity)
    assert {later: earlier for later, (earlier, _) in gone.items()} == {1: 0, 4: 3}
    assert gone[4][1] == pytest.approx(0.8)


def test_mark_writes_evidence_and_leaves_the_others_alone(world):
    gallery, identities = world
    verdicts, _ = judged(gallery, identities)
    table = Verdicts(verdicts)
    image = Image(image_id="0", data=b"", source="s")
    leak = table.mark(Identity(identity_id="017", index=17, source="base", images=[image]))
    assert leak.rejected == "screen:in_gallery"
    assert leak.screen is not None
    row = verdicts.to_pylist()[17]
    assert asdict(leak.screen) == {k: row[k] for k in asdict(leak.screen)}
    kept = table.mark(Identity(identity_id="000", index=0, source="base", images=[image]))
    assert kept.rejected is None
    assert kept.screen is not None
    before = Identity(
        identity_id="x", index=99, source="base", images=[], rejected="clean:inconsistent"
    )
    assert table.mark(before).screen is None


def test_load_gallery_takes_kept_faces_in_the_order_of_identities(tmp_path):
    rng = np.random.default_rng(7)

    def face(image_id: str, rejected: str | None = None) -> Image:
        vector = None if rejected else 2 * rng.normal(size=8).astype(np.float32)
        return Image(image_id=image_id, data=b"", source="s", embedding=vector, rejected=rejected)

    rows = [
        Identity(identity_id="b", index=1, source="g", images=[face("1"), face("2")]),
        Identity(
            identity_id="a", index=0, source="g", images=[face("1", "ingest:corrupt"), face("9")]
        ),
        Identity(identity_id="c", index=2, source="g", images=[], rejected="ingest:empty"),
    ]
    write_rows(str(tmp_path / "set"), "0.parquet", rows)
    gallery = load_gallery("g", str(tmp_path / "set"))
    assert gallery.names == ["a", "b"]
    assert gallery.image_ids == ["9", "1", "2"]
    assert gallery.people.tolist() == [0, 1, 1]
    np.testing.assert_allclose(np.linalg.norm(gallery.faces, axis=1), 1, atol=1e-6)
    write_rows(str(tmp_path / "none"), "0.parquet", rows[2:])
    with pytest.raises(UserError, match="gallery 'g' holds no usable face"):
        load_gallery("g", str(tmp_path / "none"))
