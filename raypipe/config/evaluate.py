"""Configuration of the `evaluate` job."""

from pydantic import Field, model_validator

from raypipe.config.base import Pool, Settings


class VerificationSetConfig(Settings):
    """Pairs of aligned faces, in the folds of their protocol, or IJB's pairs of templates."""

    name: str = Field(min_length=1, description="what the set is called in the results")
    path: str = Field(
        description="InsightFace's .bin, .xz, a folder with pairs.txt or with .npy and issame.txt, "
        "or Parquet: first, second (image bytes), same, first_id, second_id, fold, and group where "
        "known; where it states no folds, they are ten contiguous parts. Or IJB_release/IJBB or "
        "IJBC as InsightFace has it: meta/ with three lists, and loose_crop/, or aligned/ with "
        "112×112 faces"
    )


class EvaluateConfig(Settings):
    """Scores the trained recognizer on verification sets."""

    sets: list[VerificationSetConfig] = Field([], description="verification sets, in order")
    fars: list[float] = Field(
        [0.001, 0.01],
        description="false accept rates to report the true accept rate at; IJB has its own",
    )
    epochs: bool = Field(
        True, description="score the weights that train kept of epochs too, on pairs, not on IJB"
    )
    images_per_batch: int = Field(
        64, ge=1, description="images in a model batch, grouped by their place in the set"
    )
    pool: Pool = Field(Pool(), description="actors that embed; batch_size counts model batches")

    @model_validator(mode="after")
    def _sound(self) -> "EvaluateConfig":
        names = [item.name for item in self.sets]
        if len(set(names)) != len(names):
            raise ValueError(f"sets: a name stands twice in {names}")
        if not all(0 < far < 1 for far in self.fars):
            raise ValueError(f"fars: {self.fars} must lie between 0 and 1")
        return self
