"""Configuration of the report."""

from pydantic import Field

from raypipe.config.base import Settings


class ReportConfig(Settings):
    """How much the report shows. What it says is decided by the jobs before it."""

    title: str = Field("Face set report", description="heading of the page")
    identities: int = Field(
        10, ge=1, le=40, description="identities whose faces are shown before and after cleaning"
    )
    pairs: int = Field(
        40, ge=1, le=200, description="rows of a table of refused identities, highest cosine first"
    )
