"""Configuration of the sample job."""

from pydantic import Field, model_validator

from raypipe.config.base import Settings

# Settings of a world in which nothing is wrong.
FAULTLESS = {
    **dict.fromkeys(("strangers", "near_duplicates", "corrupt", "truncated"), 0.0),
    **dict.fromkeys(("duplicates", "too_few", "leaks"), 0),
}


class SampleConfig(Settings):
    """A small world with known truth: a base set with planted faults, a gallery, pairs."""

    identities: int = Field(60, ge=4, description="identity folders with generated faces")
    images: int = Field(20, ge=2, description="images in each")
    z_noise: float = Field(
        0.2, ge=0, description="noise on the generator's latent from image to image of a person"
    )
    strangers: float = Field(
        0.1, ge=0, le=1, description="share of the images that show somebody else of the set"
    )
    near_duplicates: float = Field(
        0.01, ge=0, le=1, description="share of the images that repeat another of their folder"
    )
    corrupt: float = Field(0.005, ge=0, le=1, description="share of the files that hold garbage")
    truncated: float = Field(0.005, ge=0, le=1, description="share of the files that are cut off")
    duplicates: int = Field(2, ge=0, description="people who have two folders")
    too_few: int = Field(1, ge=0, description="identities with too few images")
    too_few_images: int = Field(4, ge=1, description="images such an identity has")
    leaks: int = Field(
        3, ge=0, le=20, description="people of the gallery who stand in the base set too"
    )
    weights: str | None = Field(
        None, description="DCGAN generator, safetensors; none: the one that ships with raypipe"
    )

    @model_validator(mode="after")
    def _faults_fit(self) -> "SampleConfig":
        if self.strangers + self.near_duplicates + self.corrupt + self.truncated > 1:
            raise ValueError("the shares of faulty images add up to more than 1")
        if self.duplicates > self.identities // 2 - 1:
            raise ValueError(f"{self.identities} identities cannot hold {self.duplicates} pairs")
        if 2 * self.duplicates + self.too_few > self.identities:
            raise ValueError("duplicates and too_few need more identities than there are")
        return self
