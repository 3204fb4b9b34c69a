"""The configuration of a whole build: one YAML, one class, each part owned by its job."""

import difflib
from typing import Any, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError

from raypipe import storage
from raypipe.config.assemble import AssembleConfig
from raypipe.config.base import Settings
from raypipe.config.cemiface_training import CemiFaceTrainingConfig
from raypipe.config.clean import CleanConfig
from raypipe.config.diffusion_training import DiffusionTrainingConfig
from raypipe.config.embed import EmbedConfig, EmbedderConfig
from raypipe.config.estimator import EstimatorConfig
from raypipe.config.evaluate import EvaluateConfig
from raypipe.config.expand import ExpandConfig
from raypipe.config.generator import GeneratorConfig
from raypipe.config.ingest import IngestConfig
from raypipe.config.judge import JudgeConfig
from raypipe.config.plan import PlanConfig
from raypipe.config.report import ReportConfig
from raypipe.config.sample import SampleConfig
from raypipe.config.screen import ScreenConfig
from raypipe.config.seeds import SeedsConfig
from raypipe.config.train import TrainConfig
from raypipe.config.vectors import VectorsConfig
from raypipe.errors import UserError


class RayConfig(Settings):
    """The cluster a run uses."""

    address: str | None = Field(
        None, description="an existing cluster to join; none: RAY_ADDRESS, or start one here"
    )
    num_cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a cluster started here; none: the cores it has"
    )
    object_store_memory: int | None = Field(
        None, ge=80 * 2**20, description="bytes of shared memory of a cluster started here"
    )
    rows_per_block: int = Field(
        128, ge=1, description="identities a written file holds; a kill loses the blocks in flight"
    )
    no_progress_seconds: int = Field(
        1800, ge=10, description="a stage that moves no row for this long ends with an error"
    )
    failed_rows: int = Field(
        100,
        ge=0,
        description="identities of a job that may fail, each of them rejected with what went wrong "
        "in the job's folder `failures`; with more the job ends with an error",
    )


class Build(Settings):
    """Everything `raypipe build` does. A job that is left out (`null`) is not run."""

    workspace: str = Field(description="folder or URI that all results go to, one folder a job")
    seed: int = Field(0, ge=0, description="seed of everything that is drawn")
    ray: RayConfig = RayConfig()
    embedder: EmbedderConfig = Field(description="network that turns a face into a vector")
    sample: SampleConfig | None = Field(None, description="make a world with known truth first")
    ingest: IngestConfig = Field(IngestConfig(), description="where the base set is")
    embed: EmbedConfig = EmbedConfig()
    clean: CleanConfig = CleanConfig()
    judge: JudgeConfig | None = Field(None, description="ask further experts about the cleaned set")
    vectors: VectorsConfig | None = Field(None, description="draw vectors of new people")
    seeds: SeedsConfig | None = Field(None, description="draw references of new people")
    screen: ScreenConfig = ScreenConfig()
    expand: ExpandConfig | None = Field(None, description="make images of new people")
    assemble: AssembleConfig = AssembleConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    report: ReportConfig = ReportConfig()
    plan: PlanConfig = Field(PlanConfig(), description="what `raypipe plan` cannot find out")
    cemiface: CemiFaceTrainingConfig = CemiFaceTrainingConfig()
    diffusion: DiffusionTrainingConfig = DiffusionTrainingConfig()
    generator: GeneratorConfig = GeneratorConfig()
    estimator: EstimatorConfig = EstimatorConfig()

    @property
    def cleaned(self) -> str:
        """The job whose result is the cleaned base set."""
        return "judge" if self.judge else "clean"

    def has(self, job: str) -> bool:
        """Whether there is a part for a job that may be left out."""
        return getattr(self, "seeds" if job == "seed" else job) is not None


def _model_at(model: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The class that holds the key at the end of a path of an error."""
    current: type[BaseModel] | None = model
    for part in path:
        if isinstance(part, int) or current is None or part not in current.model_fields:
            continue
        annotation = current.model_fields[part].annotation
        options = [annotation, *get_args(annotation)]
        options += [inner for option in options for inner in get_args(option)]
        current = next(
            (o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None
        )
    return current


def _explain(error: ValidationError, where: str) -> str:
    # A misspelt key is also a missing one; the first says what to do.
    first = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    location = first["loc"]
    name = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        owner = _model_at(Build, location[:-1])
        known = list(owner.model_fields) if owner else []
        close = difflib.get_close_matches(str(location[-1]), known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key {name!r}; {hint}"
    if first["type"] == "missing":
        return f"{where}: the key {name!r} is required"
    return f"{where}: {name}: {first['msg']} (got {first['input']!r})"


def _substitute(value: Any, workspace: str) -> Any:
    if isinstance(value, dict):
        return {key: _substitute(item, workspace) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, workspace) for item in value]
    return value.replace("{workspace}", workspace) if isinstance(value, str) else value


def parse(values: Any, where: str, overrides: list[str] | None = None) -> Build:
    """A checked configuration.

    Args:
        values: what the YAML holds.
        where: what to call it in an error.
        overrides: "clean.min_images=12" and the like; the right side is read as YAML.

    Raises:
        UserError: one line that names the key and what is wrong with it.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: expected keys and values, got {type(values).__name__}")
    for override in overrides or []:
        path, sign, text = override.partition("=")
        if not sign:
            raise UserError(
                f"--set {override}: expected KEY=VALUE, as in --set clean.min_images=12"
            )
        target = values
        *parents, last = path.strip().split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {override}: {parent!r} holds a value, not keys")
        target[last] = yaml.safe_load(text)
    if "workspace" in values:
        values = _substitute(values, str(values["workspace"]).rstrip("/"))
    try:
        return Build(**values)
    except ValidationError as error:
        raise UserError(_explain(error, where)) from error


def load(path: str, overrides: list[str] | None = None) -> Build:
    """Reads a YAML configuration.

    Raises:
        UserError: where the file is missing, not YAML, or says something it must not.
    """
    try:
        values = yaml.safe_load(storage.read_bytes(path))
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    return parse(values, path, overrides)
