"""Follows the jobs of a configuration: what each reads and makes, without running anything."""

from collections.abc import Iterator
from dataclasses import replace

from raypipe.planning import base_jobs, new_jobs, set_jobs
from raypipe.planning.facts import Facts
from raypipe.planning.jobs import Job
from raypipe.planning.sets import Group, counted


def walk(facts: Facts, calls: float = 0.0) -> list[Job]:
    """The jobs of a build in their order; what finished ones counted takes the place of estimates.

    Args:
        calls: questions to the vision model.

    Raises:
        UserError: where a set cannot be read and the configuration does not say how large it is.
    """
    return list(_jobs(facts, calls))


def _jobs(facts: Facts, calls: float) -> Iterator[Job]:
    config = facts.config
    if config.sample is not None:
        yield base_jobs.sample(facts)
    ingest = _known(facts, base_jobs.ingest(facts))
    yield ingest
    embed = _known(facts, base_jobs.embed(facts, ingest))
    yield embed
    cleaned = _known(facts, base_jobs.clean(facts, embed))
    yield cleaned
    if config.judge is not None:
        cleaned = _known(facts, base_jobs.judge(facts, cleaned, calls))
        yield cleaned
    sets: dict[str, Group] = dict(cleaned.makes)
    if config.vectors is not None:
        vectors = _known(facts, new_jobs.vectors(facts, cleaned))
        sets |= vectors.makes
        yield vectors
    galleries, of_galleries, size = new_jobs.galleries(facts)
    # The first of the two that needs the galleries embeds them; they lie in screen's folder.
    if config.seeds is not None:
        seed = _known(facts, new_jobs.seed(facts, sets, galleries))
        sets |= seed.makes
        yield replace(seed, parts=(*of_galleries, *seed.parts))
    screen = _known(facts, new_jobs.screen(facts, sets, galleries))
    before = () if config.seeds is not None else of_galleries
    yield replace(screen, bytes=screen.bytes + size, parts=(*before, *screen.parts))
    sets = dict(screen.makes)
    if config.expand is not None:
        expand = _known(facts, new_jobs.expand(facts, sets, galleries))
        sets = dict(expand.makes)
        yield expand
    assemble = set_jobs.assemble(facts, sets)
    yield assemble
    train = set_jobs.train(facts, assemble)
    yield train
    yield set_jobs.evaluate(facts)
    yield set_jobs.report()


def _known(facts: Facts, job: Job) -> Job:
    """A job with the counts of its manifest, where it is finished."""
    manifest = facts.manifests.get(job.name)
    if manifest is None:
        return job
    of_source = manifest.counts["sources"]
    makes = {
        source: counted(of_source[source], group) if source in of_source else group
        for source, group in job.makes.items()
    }
    return replace(job, makes=makes, bytes=manifest.counts["bytes"], basis="counted")
