"""Identity vectors: the law is that of the class means, and no two vectors are too similar."""

from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from raypipe.errors import UserError
from raypipe.faceset import FaceSet, write_rows
from raypipe.identities import Identity, Image
from raypipe.templates import unit
from raypipe.vectors import Distribution, Gaussian, class_means, fit, sample
from raypipe.vectors.distribution import DRAWN


def population(people: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Class means with a falling spectrum in rotated axes, away from the origin, (people, D)."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    scale = 1 / np.sqrt(1 + np.arange(dimension) / 4)
    return 0.3 + (rng.standard_normal((people, dimension)) * scale) @ axes


def accepted(candidates: np.ndarray, ceiling: float, others: np.ndarray) -> list[int]:
    """Who is taken, one at a time and in float64."""
    units = unit(candidates).astype(np.float32).astype(np.float64)
    known = list(unit(others).astype(np.float32).astype(np.float64))
    taken = []
    for place, row in enumerate(units):
        if all(np.float32(row @ other) < np.float32(ceiling) for other in known):
            taken.append(place)
            known.append(row)
    return taken


def test_the_fit_is_mean_and_covariance_of_the_class_means():
    means = population(3000, 24)
    law = fit(means, "here")
    covariance = law.components.T * law.variances @ law.components
    np.testing.assert_allclose(law.mean, means.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(covariance, np.cov(means, rowvar=False), atol=1e-4)
    np.testing.assert_allclose(law.components @ law.components.T, np.eye(24), atol=1e-12)
    assert (np.diff(law.variances) <= 0).all() and law.note is None
    assert law.spread == pytest.approx(np.sqrt(np.trace(np.cov(means, rowvar=False)) / 24), 1e-3)
    plain = law.gaussian()
    assert (plain.location, plain.scale) == pytest.approx((means.mean(), means.std()), rel=1e-3)


def test_drawn_vectors_follow_the_law():
    means = population(1500, 24)
    law = fit(means, "here")
    drawn = np.concatenate([law.draw(5, block) for block in range(10)])
    assert drawn.dtype == np.float32 and drawn.shape == (10 * DRAWN, 24)
    np.testing.assert_allclose(drawn.mean(axis=0), means.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(
        np.cov(drawn, rowvar=False), np.cov(means, rowvar=False), atol=0.02, rtol=0.05
    )
    cosines = unit(drawn[:500]) @ unit(drawn[500:1000]).T
    assert law.cosine == pytest.approx(cosines.mean(), abs=0.03)
    plain = Gaussian(dimension=24, location=0.1, scale=0.9).draw(5, 0)
    assert (plain.mean(), plain.std()) == pytest.approx((0.1, 0.9), abs=0.01)


@settings(max_examples=8, deadline=None)
@given(st.permutations(range(40)), st.integers(1, 2))
def test_neither_order_nor_threads_change_a_bit(order: list[int], threads: int):
    means = population(40, 70)
    with threadpool_limits(threads):
        law = fit((means[i] for i in order), "here")
        drawn = law.draw(1, 3)
    with threadpool_limits(3 - threads):
        again = fit(means, "here")
    assert law.digest == again.digest
    assert drawn.tobytes() == again.draw(1, 3).tobytes()


def test_fewer_identities_than_dimensions_vary_along_fewer_components():
    means = population(12, 50)
    law = fit(means, "here")
    assert law.components.shape == (11, 50)
    assert "12 identities with 50 dimensions" in law.note and "11 components" in law.note
    beyond = law.draw(0, 0) - law.mean
    inside = beyond @ law.components.T @ law.components
    np.testing.assert_allclose(inside, beyond, atol=1e-5)
    with pytest.raises(UserError, match="here has 1 kept identities .* needs two"):
        fit(means[:1], "here")
    with pytest.raises(UserError, match="here has 0 kept"):
        fit([], "here")
    with pytest.raises(UserError, match="all 5 identities of here have the same embedding"):
        fit([means[0]] * 5, "here")


def test_a_saved_law_is_the_same_law(tmp_path: Path):
    law = fit(population(60, 20), "here")
    path = str(tmp_path / "law.safetensors")
    law.save(path)
    found = Distribution.load(path)
    assert found.digest == law.digest
    assert found.draw(2, 0).tobytes() == law.draw(2, 0).tobytes()
    (tmp_path / "other.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    (tmp_path / "law.safetensors").write_bytes(b"no tensors")
    for name in ("law", "other"):
        with pytest.raises(UserError, match=rf"{name}.safetensors: not a distribution"):
            Distribution.load(str(tmp_path / f"{name}.safetensors"))


def test_class_means_are_those_of_kept_images(tmp_path: Path):
    def image(name: str, value: float, rejected: str | None = None) -> Image:
        embedding = np.full(3, value, np.float32)
        return Image(image_id=name, data=b"x", source=name, embedding=embedding, rejected=rejected)

    rows = [
        Identity(
            identity_id="a",
            index=0,
            source="base",
            images=[image("1", 1.0), image("2", 2.0), image("3", 9.0, "clean:other_person")],
        ),
        Identity(
            identity_id="b", index=1, source="base", images=[image("1", 5)], rejected="clean:x"
        ),
        Identity(identity_id="c", index=2, source="base", images=[image("1", 7, "ingest:corrupt")]),
        Identity(identity_id="d", index=3, source="base", images=[image("1", 4.0)]),
    ]
    write_rows(str(tmp_path), "a.parquet", rows)
    np.testing.assert_array_equal(list(class_means(FaceSet(str(tmp_path)))), [[1.5] * 3, [4.0] * 3])


@pytest.mark.parametrize(
    ("law", "ceiling"), [(fit(population(500, 16), "here"), 0.65), (Gaussian(dimension=16), 0.55)]
)
def test_who_is_taken_is_found_one_at_a_time(law: Distribution | Gaussian, ceiling: float):
    others = population(30, 16, 1)
    found = sample(law, 100, ceiling=ceiling, seed=3, against=others)
    candidates = np.concatenate([law.draw(3, block) for block in range(2)])
    places = accepted(candidates[: found.drawn], ceiling, others)
    assert found.places.tolist() == places
    assert found.vectors.tobytes() == candidates[places].tobytes()
    assert found.drawn == found.places[-1] + 1 and found.refused == found.drawn - 100 > 50
    assert len(accepted(candidates[: found.drawn], ceiling, others[:0])) > 100


def test_blocks_and_threads_change_nothing_and_fewer_are_the_first():
    law = Gaussian(dimension=14)
    before = faiss.omp_get_max_threads()
    try:
        found = []
        for threads, block in ((1, 4096), (2, 4096), (2, 1000), (1, 333)):
            faiss.omp_set_num_threads(threads)
            found.append(sample(law, 1500, ceiling=0.8, seed=1, block=block))
    finally:
        faiss.omp_set_num_threads(before)
    for other in found[1:]:
        assert other.vectors.tobytes() == found[0].vectors.tobytes()
        assert other.drawn == found[0].drawn > 1600
    fewer = sample(law, 400, ceiling=0.8, seed=1)
    assert fewer.vectors.tobytes() == found[0].vectors[:400].tobytes()
    assert fewer.drawn == found[0].places[399] + 1
    assert sample(law, 400, ceiling=0.8, seed=2).vectors[0].tolist() != fewer.vectors[0].tolist()


def message(law: Distribution | Gaussian, count: int, ceiling: float, block: int = 4096) -> str:
    with pytest.raises(UserError) as caught:
        sample(law, count, ceiling=ceiling, seed=0, block=block)
    return str(caught.value)


def number(text: str, after: str, before: str) -> int:
    return int(text.split(after)[1].split(before)[0].replace(",", ""))


@pytest.mark.parametrize("count", [2500, 300_000])
def test_a_ceiling_that_cannot_be_met_ends_early_and_says_what_fits(count: int):
    law = Gaussian(dimension=10)
    text = message(law, count, 0.8)
    assert text == message(law, count, 0.8, block=700)
    drawn, fits = number(text, "do not fit: of ", " drawn"), number(text, "At least ", " fit")
    assert drawn < 20_000 and fits < count
    assert len(sample(law, fits, ceiling=0.8, seed=0).vectors) == fits
    assert f"Ask for {fits:,} or fewer" in text


def test_vectors_that_all_look_alike_say_so():
    law = Gaussian(dimension=64, location=2.0)
    text = message(law, 50, 0.3)
    assert "At least 1 fit" in text and "a cosine of 0.80 on average" in text
    with pytest.raises(UserError, match=r"At least 0 fit, .* average\. Raise the ceiling"):
        sample(law, 50, ceiling=0.3, seed=0, against=law.draw(1, 0)[:1])


def test_a_number_that_just_fits_is_not_refused():
    """Though at the end only one candidate in five is taken."""
    law = Gaussian(dimension=12)
    found = sample(law, 3600, ceiling=0.8, seed=0)
    assert 2.9 * 3600 < found.drawn <= 3 * DRAWN
    assert (found.places > found.drawn - 2000).sum() < 400
