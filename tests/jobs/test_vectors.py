"""The vectors job, through Ray: from the embeddings of a set to identities far enough apart."""

from pathlib import Path

import numpy as np
import pytest

from face_sets import finish_set
from jobs import vectors
from raypipe.config import Build, parse
from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.manifest import (
    MANIFEST,
    read_manifest,
    write_started,
)
from raypipe.templates import unit
from raypipe.vectors import class_means
from raypipe.verifying import Verification

pytestmark = pytest.mark.slow


def people(root: Path, count: int, seed: int = 0) -> None:
    """A finished face set of embeddings alone, 24 numbers each."""
    rng = np.random.default_rng(seed)
    scale = 1 / np.sqrt(1 + np.arange(24) / 4)
    rows = []
    for index, centre in enumerate(rng.standard_normal((count, 24)) * scale):
        embeddings = centre + 0.1 * rng.standard_normal((3, 24))
        embeddings[2] = 50  # somebody else
        images = [
            Image(
                image_id=str(k),
                data=b"",
                source="made",
                embedding=embedding,
                rejected="clean:other_person" if k == 2 else None,
            )
            for k, embedding in enumerate(embeddings.astype(np.float32))
        ]
        name = f"base/{index}"
        rows.append(Identity(identity_id=name, index=index, source="base", images=images))
    half = count // 2
    write_rows(str(root), "0.parquet", rows[:half])
    write_rows(str(root), "1.parquet", rows[half:])
    finish_set(str(root), job="clean")


def build(workspace: Path, *overrides: str) -> Build:
    values = {
        "workspace": str(workspace),
        "embedder": {"kind": "dlib"},
        "ingest": {"sources": [{"name": "base", "path": str(workspace / "base")}]},
        "vectors": {"count": 1100, "ceiling": 0.72},
    }
    return parse(values, "test", list(overrides))


@pytest.fixture
def work(tmp_path: Path, ray_cluster: None) -> Path:
    people(tmp_path / "clean", 300)
    return tmp_path


def drawn(work: Path) -> np.ndarray:
    rows = sorted(FaceSet(str(work / "vectors")).iter_identities(), key=lambda row: row.index)
    return np.stack([row.images[0].embedding for row in rows])


def test_vectors_are_far_apart_and_all_is_counted(work: Path) -> None:
    manifest = vectors.run(build(work))
    counts = manifest.counts["drawn"]
    assert counts["accepted"] == manifest.counts["identities"]["kept"] == 1100
    assert counts["accepted"] + counts["refused"] == counts["total"] > 1150
    assert manifest.counts["images"]["rejected"] == {"vectors:no_picture": 1100}
    assert Verification(str(work / "vectors"), manifest).run() == []
    units = unit(drawn(work))
    similarity = units @ units.T - 2 * np.eye(1100)
    assert similarity.max() < 0.72 + 1e-6
    known = unit(np.stack(list(class_means(FaceSet(str(work / "clean"))))))
    assert (units @ known.T).max() < 0.72 + 1e-6
    for row in FaceSet(str(work / "vectors")).iter_identities():
        place = row.index - 300  # after the people of the source
        nearest = int(similarity[place].argmax())
        assert row.identity_id == f"vec/{place:07d}"
        assert row.screen.nearest == f"vec/{nearest:07d}"
        assert row.screen.nearest_similarity == pytest.approx(similarity[place, nearest])
        assert row.screen.nearest_threshold == 0.72


def test_a_second_run_does_nothing_and_a_broken_one_ends_the_same(work: Path) -> None:
    first = vectors.run(build(work))
    times = {p: p.stat().st_mtime_ns for p in (work / "vectors").rglob("*") if p.is_file()}
    assert vectors.run(build(work)) == first
    assert {p: p.stat().st_mtime_ns for p in times} == times
    (work / "vectors" / MANIFEST).unlink()
    write_started(str(work / "vectors"), first.origin)
    (work / "vectors" / "rows" / "000001024.parquet").write_bytes(b"half")
    (work / "vectors" / "rows" / "000009999.parquet").write_bytes(b"of another time")
    assert vectors.run(build(work, "vectors.pool.num_cpus=2")) == first
    with pytest.raises(UserError, match=r"settings.ceiling 0.72 → 0.9"):
        vectors.run(build(work, "vectors.ceiling=0.9"))


def test_too_many_for_the_ceiling_is_said_and_can_be_changed(work: Path) -> None:
    with pytest.raises(UserError, match="^vectors: 5,000 vectors .* do not fit: .* Ask for"):
        vectors.run(build(work, "vectors.count=5000", "vectors.ceiling=0.5"))
    assert read_manifest(str(work / "vectors")) is None
    plain = build(work, "vectors.law=gaussian", "vectors.away_from_source=false")
    manifest = vectors.run(plain)
    assert manifest.counts["identities"]["kept"] == 1100
    means = np.stack(list(class_means(FaceSet(str(work / "clean")))))
    assert drawn(work).std() == pytest.approx(means.std(), rel=0.05)
    assert drawn(work).std(axis=0).min() > 0.9 * means.std()


def test_the_source_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vectors: .*clean is not a finished face set"):
        vectors.run(build(tmp_path))


def test_few_people_are_a_warning_and_one_is_a_mistake(
    tmp_path: Path, ray_cluster: None, capfd: pytest.CaptureFixture[str]
) -> None:
    people(tmp_path / "clean", 12)
    manifest = vectors.run(build(tmp_path, "vectors.count=20"))
    assert manifest.extra["law"]["components"] == 11
    assert "vary along 11 components" in " ".join(capfd.readouterr().err.split())
    people(tmp_path / "one" / "clean", 1)
    with pytest.raises(UserError, match="has 1 kept identities .* needs two"):
        vectors.run(build(tmp_path / "one"))
