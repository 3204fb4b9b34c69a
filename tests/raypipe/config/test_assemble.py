import pytest
from pydantic import ValidationError

from raypipe.config.assemble import AssembleConfig


def test_replacement_and_phases_must_fit():
    assert AssembleConfig().phases == ["new", "base"]
    assert AssembleConfig(phases=["base"], replacement=None).replacement is None
    with pytest.raises(ValidationError, match="'new' is none of the phases"):
        AssembleConfig(phases=["base"])
    with pytest.raises(ValidationError, match="twice"):
        AssembleConfig(phases=["new", "base", "new"])


def test_a_band_of_similarity_has_a_lowest_below_its_highest():
    assert AssembleConfig().similarity is None
    assert AssembleConfig(similarity={"highest": 0.8}).similarity.band == (-1.0, 0.8)
    with pytest.raises(ValidationError, match=r"0\.9 is not below highest, 0\.8"):
        AssembleConfig(similarity={"lowest": 0.9, "highest": 0.8})
