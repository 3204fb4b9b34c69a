"""What is known before a plan is made: finished jobs, what they counted, how large sources are."""

from itertools import islice
from typing import Any

from raypipe import storage
from raypipe.config import Build
from raypipe.config.evaluate import VerificationSetConfig
from raypipe.config.ingest import SourceConfig
from raypipe.errors import UserError
from raypipe.manifest import Manifest, read_manifest
from raypipe.planning.assumptions import assumed
from raypipe.planning.rates import Rates
from raypipe.planning.sets import Group
from raypipe.report.workspace import JOBS

_UNKNOWN = "CHANGE_ME"  # a place that was not filled in
_FEW = 20  # fewer counted images say less than the assumption
_PROBED = 32  # images of a source that are read for their mean size


# What the part sample makes of the photographs that ship: a gallery, and pairs (raypipe/orl.py).
ORL_PHOTOGRAPHS, ORL_PEOPLE, ORL_IMAGES = 400, 40, 372
ORL_IMAGE_BYTES = 11_200
PAIRS_BYTES = 7_830_000
PAIRS_IMAGES = 370
_LEAK_IMAGES = 14


def reachable(workspace: str) -> bool:
    """Whether a workspace can be looked into from here; one that is not there yet can."""
    if _UNKNOWN in workspace:
        return False
    try:
        storage.exists(workspace)
    except (UserError, OSError):
        return False
    return True


class Facts:
    """What is known of a configuration.

    Args:
        reached: whether its workspace can be looked into.
        survey: whether sources may be looked through for their sizes, which can take minutes.

    Attributes:
        manifests: of the finished jobs.
        rates: of the steps, with what was counted where they were measured.
    """

    def __init__(
        self, config: Build, rates: Rates, *, reached: bool = True, survey: bool = True
    ) -> None:
        self.config = config
        self.rates = rates
        self._reached = reached
        self._survey = survey
        found = {job: self._manifest(job) for job in JOBS}
        self.manifests: dict[str, Manifest] = {job: m for job, m in found.items() if m}
        self._counted = {
            **rates.factors,
            **factors({job: manifest.counts for job, manifest in self.manifests.items()}),
        }

    def _manifest(self, *folders: str) -> Manifest | None:
        if not self._reached:
            return None
        return read_manifest(storage.join(self.config.workspace, *folders))

    def factor(self, name: str) -> float:
        """A share or a factor, as a finished job counted it, else as assumed."""
        return self._counted.get(name, assumed(name))

    def measured(self, name: str) -> float:
        """An amount of bytes, as it was measured with the rates, else as assumed."""
        return self.rates.factors.get(name, assumed(name))

    def is_counted(self, name: str) -> bool:
        """Whether `factor` was counted."""
        return name in self._counted

    def sources(self) -> tuple[dict[str, Group], str]:
        """The sources of the base set as they will be ingested, and what that is known from.

        Raises:
            UserError: where one cannot be read and `plan.sources` does not say how large it is.
        """
        config = self.config
        if ingested := self.manifests.get("ingest"):
            return _whole(ingested), "counted"
        if not config.ingest.sources:
            raise UserError("ingest.sources: names no set to read; see configs/demo.yaml")
        if config.sample is not None:
            return {config.ingest.sources[0].name: self._sampled()}, "the part sample"
        found = {source.name: self._size(source, "sources") for source in config.ingest.sources}
        return {name: group for name, (group, _) in found.items()}, ", ".join(
            sorted({basis for _, basis in found.values()})
        )

    def gallery(self, source: SourceConfig) -> tuple[Group, str]:
        """A gallery as it will be ingested, and what that is known from; errors as `sources`."""
        if ingested := self._manifest("screen", "galleries", source.name, "ingest"):
            return _whole(ingested)[source.name], "counted"
        if self.config.sample is not None and source.path.startswith(self.config.workspace):
            return _group(ORL_PEOPLE, ORL_IMAGES, ORL_IMAGE_BYTES), "the part sample"
        return self._size(source, "galleries")

    def training_set(self) -> Group:
        """The set that `train.set` names; errors as `sources`."""
        path = self.config.train.set
        assert path is not None
        return self._size(SourceConfig(name="train", path=path), "sources")[0]

    def verification_images(self, item: VerificationSetConfig) -> float:
        """Images of a verification set, as it was scored, else assumed."""
        if self._manifest("evaluate"):
            path = storage.join(self.config.workspace, "evaluate", "results.json")
            if scored := storage.read_json(path)["sets"].get(item.name):
                return float(scored["images"])
        if self.config.sample is not None and item.path.startswith(self.config.workspace):
            return PAIRS_IMAGES
        return assumed("verification images")

    def _sampled(self) -> Group:
        made = self.config.sample
        assert made is not None
        few = made.too_few * (made.images - made.too_few_images)
        images = made.identities * made.images - few + made.leaks * _LEAK_IMAGES
        image_bytes = self.measured("world image bytes")
        return _group(made.identities + made.leaks, images, image_bytes)

    def _size(self, source: SourceConfig, field: str) -> tuple[Group, str]:
        """A set as the configuration states it, else surveyed."""
        stated = getattr(self.config.plan, field).get(source.name)
        if stated is not None:
            mean = stated.image_bytes or assumed("image bytes")
            return _group(stated.identities, stated.images, mean), f"plan.{field}"
        wanted = (
            f"{source.path} cannot be read here; say how large it is: "
            f"plan.{field}.{source.name}.identities and .images"
        )
        if _UNKNOWN in source.path:
            raise UserError(f"plan: {wanted}")
        if not self._survey:
            raise UserError(f"plan: nobody has looked through {source.path} yet")
        from raypipe.formats import open_reader

        try:
            reader = open_reader(source.path, source=source.name, mask=source.mask)
            found = reader.survey()
            sizes = [len(record.image) for record in islice(reader.records(), _PROBED)]
        except (UserError, OSError) as error:
            raise UserError(f"plan: {wanted} ({error})") from error
        mean = sum(sizes) / len(sizes) if sizes else assumed("image bytes")
        return _group(len(found.labels), found.images, mean), "surveyed"


def _group(identities: float, images: float, image_bytes: float) -> Group:
    return Group(
        identities=identities,
        kept=identities,
        images=images,
        images_kept=images,
        image_bytes=image_bytes,
    )


def _whole(manifest: Manifest) -> dict[str, Group]:
    """All that was ingested, as if nothing had been rejected."""
    counts = manifest.counts
    mean = counts["bytes"] / max(counts["images"]["total"], 1)
    return {
        name: _group(group["identities"], group["images"], mean)
        for name, group in counts["sources"].items()
    }


def factors(counts: dict[str, dict[str, Any]]) -> dict[str, float]:
    """What finished jobs tell of jobs like them: the shares and factors of `ASSUMED`.

    Args:
        counts: job → counts of its manifest.
    """
    found: dict[str, float] = {}

    def lost(name: str, unit: str, after: str, before: str) -> None:
        if after in counts and before in counts:
            kept, was = (counts[job][unit]["kept"] for job in (after, before))
            if was >= _FEW:
                found[name] = 1 - kept / was

    if "ingest" in counts and (total := counts["ingest"]["images"]["total"]) >= _FEW:
        found["ingest lost"] = 1 - counts["ingest"]["images"]["kept"] / total
    lost("clean people lost", "identities", "clean", "embed")
    lost("clean lost", "images", "clean", "embed")
    lost("judge lost", "images", "judge", "clean")
    if "clean lost" in found:
        # Of the images of the identities that stay: lost identities are counted apart.
        found["clean lost"] = 1 - (1 - found["clean lost"]) / (1 - found["clean people lost"])
    seed = counts.get("seed", {}).get("seeds")
    if seed and seed["pictures"] >= _FEW:
        found["seed passed"] = min(1.0, seed["accepted"] / seed["pictures"])
    if "expand" in counts and "screen" in counts:
        made = counts["expand"]["images"]["made"]
        wanted = counts["expand"]["images"]["kept"] - counts["screen"]["images"]["kept"]
        if wanted >= _FEW:
            found["expand drawn"] = found["expand drawn in a band"] = made / wanted
    return found
