"""References of people who do not exist, one each: drawn, checked, and enough of them.

Pictures are drawn in waves (`raypipe.waves`), each a resumable stage of its own:

1. `asked/NNN` holds the rows of a wave: new identities with their prompts, and earlier ones whose
   pictures were refused.
2. They stream through actors that draw and actors that check into `waves/NNN`.
3. One task asks of all references so far what `screen` will ask, with the same galleries and
   thresholds, and how many it would let in (`waves/NNN/admitted.json`).

When there are enough, the rows of all waves become the face set, and what is beyond the last one
needed is rejected as surplus; so `screen` decides the same, and lets in as many as were asked for.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import ray

from actors.diffuse import DiffuseActor, SecondPassActor
from actors.reference import ReferenceActor
from jobs.cluster import connect, preflight
from jobs.galleries import Gallery, calibrated, embedded, search
from jobs.progress import console
from jobs.stage import Step, explain, finished, run_stage, totals
from jobs.work import RUN, Work, begin
from raypipe import storage
from raypipe.admission import Others, admission, others
from raypipe.aligners import weights_files
from raypipe.config import Build
from raypipe.config.seeds import SeedsConfig
from raypipe.diffusion_files import digest, model_name
from raypipe.errors import UserError
from raypipe.faceset import ROWS, FaceSet, write_files
from raypipe.impostors import Calibration
from raypipe.manifest import Counts, Manifest, digest_of, summarise
from raypipe.models.loading import shipped
from raypipe.prompts import load_grammar
from raypipe.references import new_identity, newest, outcome, settle
from raypipe.waves import Drawn, Wave, plan

ADMITTED = "admitted.json"
_SPEED = {"pool", "reference_pool"}  # what changes how fast the job is and not what it makes
_AMOUNT = {"number", "tries", "limit"}


class _Recipe(NamedTuple):
    """What a picture and its reference depend on, as a manifest notes it."""

    settings: dict[str, Any]
    inputs: dict[str, str]
    models: list[str]


def run(config: Build) -> Manifest:
    """Draws references into `{workspace}/seed`.

    Raises:
        UserError: where the configuration has no part `seeds`, a set or gallery is missing, the
            model cannot be loaded, or it does not draw so many different people.
    """
    seeds = config.seeds
    if seeds is None:
        raise UserError("seed: the configuration has no part 'seeds'")
    jobs = [config.cleaned, *(["vectors"] if config.vectors else [])]
    sets = {job: finished("seed", storage.join(config.workspace, job)) for job in jobs}
    galleries = embedded(config)
    recipe = _recipe(config, seeds)
    work = begin(
        config,
        job="seed",
        settings={
            **recipe.settings,
            **seeds.model_dump(include=_AMOUNT),
            "false_match_rate": config.screen.false_match_rate,
            "first": config.ingest.sources[0].name,
        },
        inputs={
            **{job: found.content_digest for job, found in sets.items()},
            **{f"gallery {gallery.name}": gallery.digest for gallery in galleries},
            **recipe.inputs,
        },
        models=recipe.models,
    )
    if work.manifest:
        return work.manifest
    connect(config)
    steps = _steps(config, seeds, recipe)
    preflight("seed", [step.pool for step in steps])
    before = sum(found.counts["identities"]["total"] for found in sets.values())
    screening = _Screening(config, [storage.join(config.workspace, job) for job in jobs], galleries)
    waves: list[str] = []
    drawn: Drawn | None = None
    while drawn is None or drawn.admitted < seeds.number:
        wave = plan(drawn, number=seeds.number, tries=seeds.tries, limit=seeds.limit)
        waves.append(_draw(config, recipe, steps, wave, waves, before))
        facts = storage.join(waves[-1], ADMITTED)
        if not storage.exists(facts):
            with work.timed(f"admission {len(waves) - 1:03d}"):
                storage.write_json(facts, screening.admitted(waves, seeds.number))
        admitted = storage.read_json(facts)
        drawn = _task(_outcome, waves, admitted)
        console.print(
            f"seed: {drawn.tries.sum():,} pictures of {len(drawn.tries):,} people, "
            f"{drawn.passed.sum():,} references, {drawn.admitted:,} of {seeds.number:,} admitted"
        )
    with work.timed("write"):
        storage.delete(work.path(ROWS))
        counts, content = _task(_write, work.root, waves, admitted["last"], seeds.tries)
    _copy_timings(work, waves)
    manifest = work.finish(
        {
            **totals(counts, images_made=counts.images),
            "seeds": {
                "asked": seeds.number,
                "drawn": len(drawn.tries),
                "pictures": int(drawn.tries.sum()),
                "accepted": int(drawn.passed.sum()),
                "waves": len(waves),
            },
        },
        content,
    )
    storage.delete(work.path("waves"))
    storage.delete(work.path("asked"))
    return manifest


def _recipe(config: Build, seeds: SeedsConfig) -> _Recipe:
    settings = {
        **seeds.model_dump(exclude=_SPEED | _AMOUNT),
        "embedder": config.embedder.model_dump(exclude={"weights"}),
        "seed": config.seed,
    }
    # Where weights lie does not matter: their digests are noted.
    settings["aligner"].pop("weights")
    settings["diffusion"]["model"] = model_name(seeds.diffusion)
    inputs = {
        "grammar": load_grammar(seeds.prompts.grammar).digest,
        "model": digest(seeds.diffusion),
    }
    if seeds.diffusion.second_pass:
        inputs["second_pass"] = digest(seeds.diffusion, second_pass=True)
    embedder = config.embedder.weights or shipped("dlib_resnet_v1.safetensors")
    return _Recipe(settings, inputs, [embedder, *weights_files(seeds.aligner)])


def _steps(config: Build, seeds: SeedsConfig, recipe: _Recipe) -> list[Step]:
    """Draw, check; where there is a second pass, draw again and check that."""
    draw = {"config": seeds.diffusion.model_dump(), "seed": config.seed}
    draw["threads"] = max(1, int(seeds.pool.num_cpus))
    check = {
        "aligner": seeds.aligner.model_dump(),
        "gates": seeds.gates.model_dump(),
        "embedder": config.embedder.model_dump(),
        "threads": max(1, int(seeds.reference_pool.num_cpus)),
    }
    steps = [
        Step(
            name="diffuse",
            actor=DiffuseActor,
            arguments={**draw, "weights": recipe.inputs["model"]},
            pool=seeds.pool,
        ),
        Step(name="check", actor=ReferenceActor, arguments=check, pool=seeds.reference_pool),
    ]
    if seeds.diffusion.second_pass:
        again = {"grammar": seeds.prompts.grammar, "weights": recipe.inputs["second_pass"]}
        steps += [
            Step(
                name="diffuse_again",
                actor=SecondPassActor,
                arguments={**draw, **again},
                pool=seeds.pool,
            ),
            Step(
                name="check_again",
                actor=ReferenceActor,
                arguments=check,
                pool=seeds.reference_pool,
            ),
        ]
    return steps


def _get(action: Callable[[], Any]) -> Any:
    """What an action on the cluster returns; a user's mistake in it is raised as such."""
    try:
        return action()
    except ray.exceptions.RayError as error:
        if mistake := explain("seed", error):
            raise mistake from None
        raise


def _task(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function on the cluster, so that the driver needs no memory for it."""
    return _get(lambda: ray.get(ray.remote(num_cpus=1)(function).remote(*arguments)))


def _draw(
    config: Build,
    recipe: _Recipe,
    steps: list[Step],
    wave: Wave,
    waves: list[str],
    before: int,
) -> str:
    """Draws a wave after the earlier ones; the root of its face set."""
    name = f"{len(waves):03d}"
    run_stage(
        config,
        job=f"seed/waves/{name}",
        source=_ask(config, f"seed/asked/{name}", wave, waves, before),
        steps=steps,
        settings=recipe.settings,
        inputs=recipe.inputs,
        models=recipe.models,
    )
    return storage.join(config.workspace, "seed", "waves", name)


def _ask(config: Build, job: str, wave: Wave, waves: list[str], before: int) -> str:
    """The face set of the identities that a wave draws pictures of."""
    assert config.seeds is not None
    again = [before + position for position in wave.again]
    settings = {"first": wave.first, "new": wave.new, "before": before, "seed": config.seed}
    work = begin(config, job=job, settings=settings, inputs={"again": digest_of(again)})
    if not work.manifest:
        storage.delete(work.path(ROWS))
        arguments = (config.seeds.prompts.grammar, config.seed, wave, before, waves, work.root)
        counts, content = _task(_write_asked, *arguments)
        work.finish(totals(counts, images_made=0), content)
    return work.root


def _write_asked(
    grammar: str | None, seed: int, wave: Wave, before: int, waves: list[str], root: str
) -> tuple[Counts, str]:
    again = {before + position for position in wave.again}
    if again:
        write_files(root, (row for row in newest(_sets(waves)) if row.index in again), "again")
    loaded = load_grammar(grammar)
    places = range(wave.first, wave.first + wave.new)
    write_files(root, (new_identity(loaded, seed, place, before) for place in places), "new")
    return summarise(root)


class _Screening:
    """Compares references with galleries and the other sets, which are looked at once.

    Args:
        roots: of the sets that are screened along with the references.
    """

    def __init__(self, config: Build, roots: list[str], galleries: list[Gallery]) -> None:
        self._config = config
        self._roots = roots
        self._galleries = galleries

    def admitted(self, waves: list[str], number: int) -> dict[str, Any]:
        """As `raypipe.admission.admission` returns it."""
        rate = self._config.screen.false_match_rate
        new = search(self._config, waves, self._galleries)
        return _task(_admitted, new, self._others, self._calibrations, number, rate)

    @cached_property
    def _calibrations(self) -> dict[str, Calibration]:
        found = _get(lambda: calibrated(self._config, self._galleries))
        return {one.name: one.calibration for one in found}

    @cached_property
    def _others(self) -> "ray.ObjectRef[Others]":
        config = self._config
        rate, first = config.screen.false_match_rate, config.ingest.sources[0].name
        searched = search(config, self._roots, self._galleries)
        return ray.remote(num_cpus=1)(_others).remote(searched, self._calibrations, rate, first)


def _others(
    searched: list["ray.ObjectRef[pa.Table]"],
    galleries: dict[str, Calibration],
    rate: float,
    first: str,
) -> Others:
    return others(pa.concat_tables(ray.get(searched)), galleries, rate=rate, first=first)


def _admitted(
    searched: list["ray.ObjectRef[pa.Table]"],
    known: Others,
    galleries: dict[str, Calibration],
    number: int,
    rate: float,
) -> dict[str, Any]:
    table = pa.concat_tables(ray.get(searched))
    return admission(table, known, galleries, number=number, rate=rate)


def _outcome(waves: list[str], admitted: dict[str, Any]) -> Drawn:
    return outcome(_sets(waves), admitted)


def _write(root: str, waves: list[str], last: int, tries: int) -> tuple[Counts, str]:
    write_files(root, settle(newest(_sets(waves)), last=last, tries=tries), "seed")
    return summarise(root)


def _sets(waves: list[str]) -> list[FaceSet]:
    return [FaceSet(wave) for wave in waves]


def _copy_timings(work: Work, waves: list[str]) -> None:
    """Notes how long the stages of the waves took; their own notes go with them."""
    for wave in waves:
        for stage in storage.read_json(storage.join(wave, RUN))["stages"]:
            stage["name"] = f"{stage['name']} {wave.rsplit('/', 1)[-1]}"
            work.timing(**stage)


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("seed")
