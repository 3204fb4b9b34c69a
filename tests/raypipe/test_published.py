"""What others published is copied right, and own results stand beside it."""

import numpy as np
import pytest

from raypipe.published import SETS, published_name, read_published
from raypipe.report.sections.verification_tables import published_notes, published_table


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lfw", "LFW"),
        ("cfp_fp", "CFP-FP"),
        ("CFP-FP", "CFP-FP"),
        ("agedb_30", "AgeDB-30"),
        ("AgeDB", "AgeDB-30"),
        ("calfw", "CALFW"),
        ("cplfw", "CPLFW"),
        ("sllfw", None),
        ("cfp_ff", None),
        ("ORL", None),
    ],
)
def test_sets_are_known_by_name(name, meant):
    assert published_name(name) == meant


def test_every_row_is_whole_and_its_average_is_that_of_its_columns():
    """A digit that was copied wrong moves the average."""
    published = read_published()
    for row in published.rows:
        assert list(row.accuracies) == list(SETS)
        assert np.mean(list(row.accuracies.values())) == pytest.approx(row.average, abs=0.0101)
        assert row.source in published.sources
    assert {row.name for row in published.rows} >= {
        *("HSFace10K", "HSFace20K", "HSFace100K", "HSFace200K", "HSFace300K"),
        *("VFace10K", "VFace20K", "VFace100K", "VFace300K"),
        *("CemiFace", "DCFace", "CASIA-WebFace (real)"),
    }


def test_own_rows_come_first_and_only_the_others_are_published():
    whole = {name: {"accuracy": 0.9} for name in ("lfw", "cfp_fp", "agedb_30", "calfw")}
    whole["cplfw"] = {"accuracy": 0.8}
    found = published_table(
        {"mine": whole, "half": {"lfw": {"accuracy": 0.5}, "ORL": {"accuracy": 1.0}}}
    )
    own = ("mine", "90.00", "90.00", "90.00", "90.00", "80.00", "88.00", "measured")
    assert found.rows[0] == own
    assert found.rows[1] == ("half", "50.00", *"–––––", "measured")
    assert all(row[-1].startswith("published [") for row in found.rows[2:])
    assert len(found.rows) == 2 + len(read_published().rows)
    note, sources = published_notes()
    assert "not measured here" in note
    assert all(f"[{number}]" in sources for number in read_published().sources)
