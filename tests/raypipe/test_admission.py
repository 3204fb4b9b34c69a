"""Which references are needed, decided as screening decides."""

import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from raypipe.admission import admission, others
from raypipe.impostors import Calibration, Histogram
from raypipe.screening import SEARCHED, decide
from raypipe.search import pairs_above

RATE = 1e-3
GALLERY = {
    "photographs": Calibration(
        threshold=0.5,
        pairs=1,
        impostor=Histogram(),
        genuine=Histogram(),
        recognised=None,
        same=[],
    )
}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def world(copies: dict[int, int], base: int = 40, new: int = 30) -> pa.Table:
    """People far apart, those of 0 to `base` before the references; one of `copies` is nearly the
    one that it is mapped to. Two of each kind are in the gallery."""
    rng = np.random.default_rng(0)
    templates = unit(rng.standard_normal((base + new, 32)))
    for later, earlier in copies.items():
        templates[later] = unit(templates[[earlier]] + 0.02 * rng.standard_normal(32))[0]
    rows = [
        {
            "identity_id": f"base/{i}" if i < base else f"seed/{i - base:07d}",
            "index": i,
            "source": ("base" if i < base - 5 else "vec") if i < base else "seed",
            "template": template,
            "halves": 0.9,
            "people": ["somebody"],
            "images": ["image"],
            "similarities": [0.6 if i in (3, 4, 43, 44) else 0.2],
        }
        for i, template in enumerate(templates)
    ]
    order = rng.permutation(len(rows))
    return pa.Table.from_pylist([rows[i] for i in order], schema=SEARCHED)


def parts(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    is_new = pc.equal(table["source"], "seed")
    return table.filter(is_new), table.filter(pc.invert(is_new))


def admitted(table: pa.Table, number: int) -> dict:
    new, rest = parts(table)
    known = others(rest, GALLERY, rate=RATE, first="base")
    return admission(new, known, GALLERY, number=number, rate=RATE)


def screened(table: pa.Table) -> dict[str | None, int]:
    """What screening makes of references: reason to number."""
    verdicts, _ = decide(table, GALLERY, rate=RATE, first="base")
    return Counter(
        row["rejected"] for row in verdicts.to_pylist() if row["identity_id"].startswith("seed/")
    )


# References that are an earlier one, one that is such a one, one of the base set, of a vector, of
# somebody in the gallery, and of a person who is refused as another one.
COPIES = {45: 41, 46: 45, 49: 40, 50: 7, 51: 38, 52: 3, 20: 19, 53: 20, 54: 44}


@pytest.mark.parametrize("number", [1, 8, 18])
def test_screening_admits_exactly_as_many_when_the_surplus_is_left_out(number: int) -> None:
    table = world(COPIES)
    found = admitted(table, number)
    kept = table.filter(pc.less_equal(table["index"], found["last"]))
    reasons = screened(kept)
    assert reasons[None] == found["admitted"] >= number
    assert found["refused"] == {reason: n for reason, n in reasons.items() if reason}
    before = table.filter(pc.less(table["index"], found["last"]))
    assert screened(before)[None] < number  # the last one is needed


def test_too_few_are_counted_with_their_reasons() -> None:
    table = world(COPIES)
    found = admitted(table, 40)
    reasons = screened(table)
    assert found == {
        "admitted": reasons.pop(None),
        "refused": dict(reasons),
        "last": None,
    }
    assert reasons["screen:in_gallery"] == 2
    assert reasons["screen:not_unique"] >= 7


def test_a_threshold_below_the_listed_pairs_is_searched_anew() -> None:
    known = others(parts(world(COPIES))[1], GALLERY, rate=RATE, first="base")
    loose = known.least - 0.1
    listed_at = dataclasses.replace(
        known, least=-1.0, pairs=pairs_above(known.people.templates, -1.0)
    )
    assert (known.staying(loose) == listed_at.staying(loose)).all()
    assert len(known.staying(loose)) < len(known.staying(known.least))


def test_nobody_passed_the_gates() -> None:
    new, rest = parts(world({}))
    known = others(rest, GALLERY, rate=RATE, first="base")
    found = admission(new.slice(0, 0), known, GALLERY, number=3, rate=RATE)
    assert found == {"admitted": 0, "refused": {}, "last": None}
