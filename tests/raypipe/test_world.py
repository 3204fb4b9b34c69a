"""The world's truth is true, and the same every time."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from raypipe.config.embed import EmbedderConfig
from raypipe.config.sample import SampleConfig
from raypipe.embedders import open_embedder
from raypipe.images import ImageError, decode, encode_jpeg
from raypipe.world import Leak, make_base

SMALL = SampleConfig(
    identities=10,
    images=6,
    strangers=0.1,
    near_duplicates=0.05,
    corrupt=0.04,
    truncated=0.04,
    duplicates=2,
    too_few=1,
    too_few_images=2,
    leaks=2,
)
LEAKS = [
    Leak(
        gallery="orl",
        gallery_identity=f"s0{i}",
        images=[encode_jpeg(np.full((112, 112, 3), 50 * i, np.uint8))] * 3,
    )
    for i in (1, 2)
]


def files(root: Path) -> dict[str, bytes]:
    base = root / "base"
    return {str(p.relative_to(base)): p.read_bytes() for p in sorted(base.rglob("*.jpg"))}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("world")
    return root, make_base(SMALL, 3, str(root), LEAKS)


def test_the_truth_names_every_file_and_every_fault(world) -> None:
    root, truth = world
    assert sorted(truth["files"]) == sorted(files(root))
    assert sorted(truth["identities"]) == [f"{i:06d}" for i in range(12)]
    # Nine identities of six images take the faults: round(0.1 × 54), and so on.
    assert truth["faults"] == {"stranger": 5, "near_duplicate": 3, "corrupt": 2, "truncated": 2}
    assert Counter(f["fault"] for f in truth["files"].values() if f["fault"]) == truth["faults"]
    planted = Counter(i["fault"] for i in truth["identities"].values())
    assert planted == {None: 5, "duplicate": 4, "too_few": 1, "leak": 2}
    assert len(truth["files"]) == 9 * 6 + 2 + 2 * 3


def test_every_fault_is_what_it_is_called(world) -> None:
    root, truth = world
    for path, data in files(root).items():
        fault = truth["files"][path]["fault"]
        if fault in ("corrupt", "truncated"):
            with pytest.raises(ImageError) as error:
                decode(data, source=path)
            assert error.value.reason == fault
        else:
            assert decode(data, source=path).shape == (112, 112, 3)
        owner = truth["identities"][path.split("/")[0]]["person"]
        assert (truth["files"][path]["person"] != owner) == (fault == "stranger")


def test_a_near_duplicate_repeats_its_original(world) -> None:
    root, truth = world
    pixels = {
        p: decode(d, source=p).astype(float) for p, d in files(root).items() if _whole(truth, p)
    }
    for path, known in truth["files"].items():
        if known["fault"] == "near_duplicate":
            original = pixels[known["of"]]
            others = [
                np.abs(pixels[other] - original).mean()
                for other in pixels
                if other not in (path, known["of"])
            ]
            assert np.abs(pixels[path] - original).mean() < min(others)
            assert (root / "base" / path).read_bytes() != (root / "base" / known["of"]).read_bytes()


def _whole(truth: dict[str, Any], path: str) -> bool:
    return truth["files"][path]["fault"] not in ("corrupt", "truncated")


def test_leaks_and_folders_of_one_person_are_where_the_truth_says(world) -> None:
    root, truth = world
    for leak, given in zip(truth["leaks"], LEAKS, strict=True):
        folder = root / "base" / leak["identity"]
        assert [p.read_bytes() for p in sorted(folder.iterdir())] == given.images
        assert leak["gallery_identity"] == given.gallery_identity
    for first, second in truth["duplicates"]:
        assert truth["identities"][first]["person"] == truth["identities"][second]["person"]
        pairs = zip(
            sorted((root / "base" / first).iterdir()),
            sorted((root / "base" / second).iterdir()),
            strict=True,
        )
        assert all(a.read_bytes() != b.read_bytes() for a, b in pairs)
    (few,) = truth["too_few"]
    assert len(list((root / "base" / few).iterdir())) == 2


def test_people_look_like_themselves_to_the_embedder(world) -> None:
    """Own images lie nearer to their folder's own centre than planted strangers do."""
    root, truth = world
    embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")
    own, strange = [], []
    names = [p for p in files(root) if _whole(truth, p)]
    pixels = np.stack([decode((root / "base" / p).read_bytes(), source=p) for p in names])
    vectors = embedder.embed(pixels)
    vectors -= vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for folder, identity in truth["identities"].items():
        rows = [i for i, name in enumerate(names) if name.startswith(folder)]
        right = [i for i in rows if truth["files"][names[i]]["fault"] is None]
        centre = vectors[right].mean(0)
        if identity["fault"] in (None, "duplicate"):
            strange += [vectors[i] @ centre for i in rows if i not in right]
            own += [vectors[i] @ centre for i in right]
    assert np.mean(own) > 0.6
    strangers = [s for s in strange if s < 0.3]
    assert len(strangers) >= 4


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(world, tmp_path: Path) -> None:
    root, truth = world
    again = make_base(SMALL, 3, str(tmp_path / "again"), LEAKS)
    assert again == truth
    assert files(tmp_path / "again") == files(root)
    make_base(SMALL, 4, str(tmp_path / "other"), LEAKS)
    same = set(map(_sha, files(tmp_path / "other").values())) & set(map(_sha, files(root).values()))
    assert same == {_sha(leak.images[0]) for leak in LEAKS}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_two_folders_of_one_person_are_never_neighbours(tmp_path: Path) -> None:
    config = SampleConfig(identities=6, images=2, duplicates=2, too_few=0, leaks=0)
    for seed in range(8):
        truth = make_base(config, seed, str(tmp_path / str(seed)))
        assert len(truth["duplicates"]) == 2
        assert all(int(b) - int(a) > 1 for a, b in truth["duplicates"])


def test_progress_is_told_once_a_folder(tmp_path: Path) -> None:
    calls: list[int] = []
    config = SampleConfig(identities=4, images=2, duplicates=1, too_few=1)
    make_base(config, 0, str(tmp_path), LEAKS, lambda: calls.append(1))
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strangers": 0.6, "corrupt": 0.6}, "more than 1"),
        ({"identities": 6, "duplicates": 3}, "cannot hold 3 pairs"),
        ({"identities": 10, "duplicates": 4, "too_few": 3}, "more identities"),
    ],
)
def test_faults_that_do_not_fit_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SampleConfig(**values)
