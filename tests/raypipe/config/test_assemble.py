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
