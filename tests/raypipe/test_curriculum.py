import tracemalloc
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from raypipe import curriculum
from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image

SETTINGS = {"min_images": 10, "phases": ["new", "base"], "replacement": "new", "seed": 3}


def rows(*people: tuple[str, int, str | None]) -> pa.Table:
    """(source, kept, rejected) of each identity, in the order of the index."""
    return pa.table(
        {
            "identity_id": [f"{source}/{k}" for k, (source, _, _) in enumerate(people)],
            "index": pa.array(range(len(people)), pa.int64()),
            "source": [source for source, _, _ in people],
            "rejected": pa.array([rejected for _, _, rejected in people], pa.string()),
            "kept": pa.array([kept for _, kept, _ in people], pa.int32()),
        }
    )


def in_set(plan: pa.Table) -> dict[str, int]:
    pairs = zip(plan["identity_id"].to_pylist(), plan["label"].to_pylist(), strict=True)
    return {identity_id: label for identity_id, label in pairs if label is not None}


def reasons(plan: pa.Table) -> list[str | None]:
    return plan["rejected"].to_pylist()


def test_lost_identities_are_replaced_one_for_one():
    base = [("base", 20, None)] * 6 + [("base", 9, None), ("base", 20, "screen:gallery")]
    new = [("new", 50, None)] * 5 + [("new", 3, None)]
    plan = curriculum.make_plan(rows(*base, *new), **SETTINGS)
    assert reasons(plan)[:8] == [None] * 6 + ["assemble:too_few", "screen:gallery"]
    assert reasons(plan)[8:13].count(None) == 2
    assert reasons(plan)[8:13].count("assemble:spare") == 3
    assert reasons(plan)[13] == "assemble:too_few"
    labels = in_set(plan)
    assert sorted(labels.values()) == list(range(8))
    # Synthetic identities come first, and have the first labels.
    assert {name.split("/")[0] for name, label in labels.items() if label < 2} == {"new"}
    assert [labels[f"base/{k}"] for k in range(6)] == [2, 3, 4, 5, 6, 7]
    assert plan.filter(pa.compute.is_valid(plan["label"]))["phase"].to_pylist() == [1] * 6 + [0] * 2


def test_too_few_spares_and_none():
    base = [("base", 20, None)] * 3 + [("base", 0, None)] * 3
    assert len(in_set(curriculum.make_plan(rows(*base, ("new", 10, None)), **SETTINGS))) == 4
    assert len(in_set(curriculum.make_plan(rows(*base), **SETTINGS))) == 3


def test_people_drawn_in_vain_are_not_replaced():
    seeds = [("seed", 20, None), ("seed", 0, "seed:surplus"), ("seed", 0, "seed:tries_used_up")]
    base = [("base", 20, None)] * 4
    settings = SETTINGS | {"phases": ["seed", "base"], "replacement": "base"}
    plan = curriculum.make_plan(rows(*seeds, ("seed", 9, None), *base), **settings)
    # Of the people of `seed`, one lost too many images.
    assert [name.partition("/")[0] for name in in_set(plan)] == ["seed", "base"]
    assert reasons(plan)[1:3] == ["seed:surplus", "seed:tries_used_up"]


def test_without_a_replacement_source_everyone_is_in():
    plan = curriculum.make_plan(
        rows(("base", 20, None), ("new", 50, None), ("new", 9, None)),
        **{**SETTINGS, "replacement": None},
    )
    assert reasons(plan) == [None, None, "assemble:too_few"]


def test_the_draw_depends_on_the_seed_not_on_the_order_of_rows():
    people = rows(*[("base", 0, None)] * 5, *[("new", 50, None)] * 40)
    shuffled = people.take(np.random.default_rng(0).permutation(len(people)))
    plans = [
        curriculum.make_plan(table, **{**SETTINGS, "seed": seed})
        for table, seed in [(people, 1), (shuffled, 1), (people, 2)]
    ]
    assert plans[0].equals(plans[1])
    assert in_set(plans[0]).keys() != in_set(plans[2]).keys()


def test_a_source_without_a_phase_and_nobody_left_are_errors():
    with pytest.raises(UserError, match=r"assemble\.phases.*'other'"):
        curriculum.make_plan(rows(("other", 20, None)), **SETTINGS)
    with pytest.raises(UserError, match="min_images"):
        curriculum.make_plan(rows(("base", 9, None)), **SETTINGS)


def test_positions_are_phases_in_order_and_mixed_inside():
    plan = curriculum.make_plan(
        rows(*[("base", 20, None)] * 80, *[("base", 0, None)] * 20, *[("new", 50, None)] * 20),
        **SETTINGS,
    )
    positions = curriculum.image_positions(plan, 50, seed=3)
    assert sorted(positions) == list(range(100 * 50))
    assert sorted(positions[: 20 * 50]) == list(range(20 * 50))
    label_at = np.empty(5000, dtype=int)
    label_at[positions] = np.arange(5000) // 50
    # A window of 500 images of the 80 identities of a phase meets nearly all of them.
    for start in range(1000, 5000, 500):
        assert len(np.unique(label_at[start : start + 500])) > 70
    other = curriculum.image_positions(plan, 50, seed=4)
    assert (other != positions).mean() > 0.99


def test_levels_of_similarity_come_in_order_and_are_shuffled_inside():
    plan = curriculum.make_plan(
        rows(*[("base", 20, None)] * 30, *[("base", 0, None)] * 10, *[("new", 20, None)] * 10),
        **SETTINGS,
    )
    measured = np.random.default_rng(0).uniform(-1, 1, 40 * 7).astype(np.float32)

    def order(seed: int) -> np.ndarray:
        positions = curriculum.image_positions(plan, 7, seed, ranked_by=-measured, levels=10)
        assert sorted(positions) == list(range(40 * 7))
        return np.argsort(positions)

    found = order(3)
    assert found.tolist() == order(3).tolist()
    other = order(4)
    assert (other != found).mean() > 0.8
    # The ten new people are the first phase; each phase begins again with what is most similar.
    assert set(found[:70]) == set(range(70))
    for phase in (slice(0, 70), slice(70, 280)):
        levels = np.split(found[phase], 10)
        assert all(measured[one].min() >= measured[then].max() for one, then in pairwise(levels))
        # The seed shuffles inside the levels, and nothing else.
        pairs = zip(levels, np.split(other[phase], 10), strict=True)
        assert all(set(one) == set(another) for one, another in pairs)
    reverse = curriculum.image_positions(plan, 7, 3, ranked_by=measured, levels=10)
    level = np.argsort(reverse)[:7]
    assert measured[level].max() <= np.sort(measured[:70])[6]


def test_a_number_of_images_that_levels_do_not_divide():
    plan = curriculum.make_plan(rows(*[("base", 20, None)] * 3), **SETTINGS)
    measured = np.arange(21, dtype=np.float32) % 3  # many are equal
    positions = curriculum.image_positions(plan, 7, 0, ranked_by=measured, levels=4)
    assert sorted(positions) == list(range(21))
    few = curriculum.image_positions(plan, 7, 0, ranked_by=measured, levels=100)
    # Every image is a level: equal ones stay in the order of labels.
    assert np.argsort(few).tolist() == np.argsort(measured, kind="stable").tolist()


def test_positions_read_back(tmp_path):
    path = str(tmp_path / "positions.npy")
    curriculum.write_array(path, np.arange(5))
    assert curriculum.read_array(path).tolist() == [0, 1, 2, 3, 4]


def test_stratified_choice_by_hand():
    similarity = np.array([0.9, 0.1, 0.5, 0.7, 0.3, 0.8, 0.2], np.float32)
    # Ascending: images 1, 6, 4, 2, 3, 5, 0.
    assert curriculum.evenly(similarity, 7).tolist() == list(range(7))
    assert curriculum.evenly(similarity, 3).tolist() == [0, 1, 2]  # ranks 0, 3, 6
    assert curriculum.evenly(similarity, 4).tolist() == [0, 1, 3, 4]  # ranks 0, 2, 4, 6
    assert curriculum.evenly(similarity, 2).tolist() == [0, 1]
    assert curriculum.evenly(similarity, 1).tolist() == [2]
    assert curriculum.evenly(np.zeros(5, np.float32), 3).tolist() == [0, 2, 4]
    for count in range(1, 61):
        assert len(set(curriculum.evenly(np.arange(60), count))) == count
    assert curriculum.choose_images(7, 3, 0, "a", similarity)[0].tolist() == [0, 1, 2]
    # Where nothing is too many, nothing changes.
    drawn, stratified = (curriculum.choose_images(7, 9, 0, "a", s) for s in (None, similarity))
    assert [part.tolist() for part in drawn] == [part.tolist() for part in stratified]


def test_choice_of_images():
    stay, parents = curriculum.choose_images(12, 50, 0, "a")
    assert stay.tolist() == list(range(12))
    assert len(parents) == 38
    assert set(parents) <= set(range(12))
    stay, parents = curriculum.choose_images(80, 50, 0, "a")
    assert len(set(stay)) == 50
    assert (np.diff(stay) > 0).all()
    assert len(parents) == 0
    assert stay.tolist() == curriculum.choose_images(80, 50, 0, "a")[0].tolist()
    assert stay.tolist() != curriculum.choose_images(80, 50, 0, "b")[0].tolist()


def test_small_rows_count_kept_images_over_files_and_empty_identities(tmp_path):
    def person(number: int, reasons: list[str | None]) -> Identity:
        images = [
            Image(image_id=str(k), data=b"x" * 1000, source="s", rejected=reason)
            for k, reason in enumerate(reasons)
        ]
        return Identity(identity_id=str(number), index=number, source="base", images=images)

    write_rows(str(tmp_path), "a.parquet", [person(0, [None, "a:b", None]), person(1, [])])
    write_rows(str(tmp_path), "b.parquet", [person(2, ["a:b"]), person(3, [None])])
    table = curriculum.small_rows(FaceSet(str(tmp_path)))
    assert table["identity_id"].to_pylist() == ["0", "1", "2", "3"]
    assert table["kept"].to_pylist() == [2, 0, 0, 1]


def test_small_rows_with_a_band_count_what_is_inside(tmp_path):
    def person(number: int, angles: list[float], rejected: str | None = None) -> Identity:
        vectors = [np.array([np.cos(a), np.sin(a)], np.float32) for a in angles]
        images = [
            Image(image_id=str(k), data=b"x", source="s", embedding=vector)
            for k, vector in enumerate(vectors)
        ]
        return Identity(
            identity_id=str(number), index=number, source="base", images=images, rejected=rejected
        )

    write_rows(str(tmp_path), "a.parquet", [person(0, [-0.4, 0, 0.4, 0]), person(1, [])])
    write_rows(str(tmp_path), "b.parquet", [person(2, [1.0, -1.0], "screen:in_gallery")])
    face_set = FaceSet(str(tmp_path))
    table = curriculum.small_rows(face_set, (-1.0, 1.0))
    assert table.equals(curriculum.small_rows(face_set).cast(table.schema))
    # cos 0.4 = 0.92; an identity that was rejected before is not measured.
    assert curriculum.small_rows(face_set, (0.95, 1.0))["kept"].to_pylist() == [2, 0, 2]
    assert curriculum.small_rows(face_set, (0.0, 0.95))["kept"].to_pylist() == [2, 0, 2]


def test_planning_takes_a_few_numbers_of_memory_an_image():
    count = 30_000
    people = pa.table(
        {
            "identity_id": [f"{k:07d}" for k in range(count)],
            "index": pa.array(range(count), pa.int64()),
            "source": ["base"] * count,
            "rejected": pa.nulls(count, pa.string()),
            "kept": pa.array(np.full(count, 20), pa.int32()),
        }
    )
    tracemalloc.start()
    plan = curriculum.make_plan(people, **SETTINGS)
    positions = curriculum.image_positions(plan, 50, seed=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert positions.shape == (1_500_000,)
    # 8 bytes an image for the result and for the permutation it is copied from, and some rows.
    assert peak < 40 * 1_500_000


def test_the_plan_counts_what_it_makes():
    plan = curriculum.make_plan(
        rows(("base", 10, None), ("base", 60, None), ("base", 9, None), ("new", 50, None)),
        **SETTINGS,
    )
    base = {"identities": 2, "images": 100, "kept": 60, "augmented": 40, "surplus": 10}
    new = {"identities": 1, "images": 50, "kept": 50, "augmented": 0, "surplus": 0}
    found = curriculum.summarise(plan, 50, "new")
    assert found.pop("sources") == {"new": new, "base": base}
    assert found == {**{name: base[name] + new[name] for name in base}, "replaced": 1}
    assert curriculum.summarise(plan, 50, None)["replaced"] == 0


def test_a_stored_plan_reads_back(tmp_path):
    plan = curriculum.make_plan(rows(("base", 10, None), ("base", 3, None)), **SETTINGS)
    path = str(tmp_path / "plan.parquet")
    curriculum.write_plan(path, plan)
    assert curriculum.read_plan(path).equals(plan)
    assert curriculum.read_plan(path, ["label", "index"]).column_names == ["label", "index"]
