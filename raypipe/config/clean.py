"""Configuration of the cleaning job."""

from typing import Literal

from pydantic import Field

from raypipe.config.base import Pool, Settings


class ShareConfig(Settings):
    """Constants of the rule `share`, as published (Ferry-Li/datacv_fr, reduce_hsface.py)."""

    start: float = Field(0.60, ge=-1, le=1, description="cosine two images need at the first try")
    step: float = Field(0.02, gt=0, description="change of that cosine from try to try")
    tries: int = Field(10, ge=1, description="tries before the best one is taken")
    lowest: float = Field(0.30, ge=-1, le=1, description="smallest cosine tried")
    highest: float = Field(0.90, ge=-1, le=1, description="largest cosine tried")
    share_min: float = Field(0.50, ge=0, le=1, description="smallest share of the largest cluster")
    share_max: float = Field(0.80, ge=0, le=1, description="largest share of the largest cluster")
    min_samples: int = Field(2, ge=1, description="DBSCAN: images that make a core")


class CleanConfig(Settings):
    """Removes from every identity the images that are not that person."""

    rule: Literal["calibrated", "share"] = Field(
        "calibrated",
        description="calibrated: threshold from the set's own genuine and impostor similarities; "
        "share: DBSCAN with the automatic threshold as published, and nothing else",
    )
    min_images: int = Field(
        10, ge=1, description="kept images an identity needs; with fewer, assemble replaces it"
    )
    threshold: float | None = Field(
        None, ge=-1, le=1, description="cosine to the centre an image needs; none: calibrated"
    )
    duplicate_threshold: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="cosine of two centres that makes two identities one; none: calibrated",
    )
    sample_identities: int = Field(
        2000, ge=2, description="identities that the thresholds are calibrated on"
    )
    near_duplicate: float = Field(
        0.995,
        gt=0,
        le=1,
        description="correlation of small grey pictures from which two images are one picture",
    )
    share: ShareConfig = ShareConfig()
    pool: Pool = Pool()
