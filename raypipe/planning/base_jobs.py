"""The jobs on the base set: sample, ingest, embed, clean, judge."""

from collections.abc import Mapping
from dataclasses import replace

from raypipe.config import Build
from raypipe.config.align import AlignerConfig
from raypipe.planning import networks
from raypipe.planning.assumptions import assumed
from raypipe.planning.facts import (
    ORL_IMAGE_BYTES,
    ORL_IMAGES,
    ORL_PHOTOGRAPHS,
    PAIRS_BYTES,
    Facts,
)
from raypipe.planning.jobs import Job, Part, Step
from raypipe.planning.sets import Group, face_set_bytes

_TRUTH = 80  # bytes that truth.json has of an image
_BYTES_OF_VERDICT = 12  # of an expert's opinion of an image
_BYTES_OF_ANSWER = 2_500  # of a question of the vision model and what it answered


def set_bytes(config: Build, groups: Mapping[str, Group]) -> float:
    """Bytes of a face set with the embeddings of the build."""
    dimension = networks.dimension(config.embedder)
    return face_set_bytes(groups.values(), dimension, config.ray.rows_per_block)


def sample(facts: Facts) -> Job:
    """The world with known truth; everything is done by the driver, on one core."""
    world, basis = facts.sources()
    images = sum(group.images for group in world.values())
    size = sum(group.images * (group.image_bytes + _TRUTH) for group in world.values())
    generate = Step(name="generate", images=images, operations=networks.of("dcgan"))
    photographs = Step(name="photographs", images=ORL_PHOTOGRAPHS)
    return Job(
        name="sample",
        reads={},
        makes=world,
        bytes=size + ORL_IMAGES * ORL_IMAGE_BYTES + PAIRS_BYTES,
        parts=(Part(kind="local", steps=(photographs,)), Part(kind="local", steps=(generate,))),
        basis=basis,
    )


def ingest_parts(facts: Facts, images: float, align: AlignerConfig | None) -> tuple[Part, ...]:
    """Reading images, and aligning them where they are not."""
    config = facts.config
    pool, field = config.ingest.pool, "ingest.pool"
    steps = [Step(name="read", images=images, pool=pool, field=field)]
    if align is not None:
        operations = networks.aligner(align)
        steps.append(
            Step(name="align", images=images, operations=operations, pool=pool, field=field)
        )
    return (Part(kind="stage", steps=tuple(steps)),)


def ingested(facts: Facts, group: Group, align: AlignerConfig | None) -> Group:
    """A set after reading; an aligned crop follows its photograph, which it replaces."""
    read = group.lose(people=0, images=facts.factor("ingest lost"))
    if align is None:
        return read
    crops = read.images_kept * assumed("aligned")
    return replace(read, images_kept=0).with_images(
        crops, facts.measured("crop bytes"), embedded=False
    )


def ingest(facts: Facts) -> Job:
    """From files to rows."""
    config = facts.config
    sources, basis = facts.sources()
    aligner = config.ingest.aligner
    made = {name: ingested(facts, group, aligner) for name, group in sources.items()}
    if (planted := config.sample) is not None:
        faulty = planted.corrupt + planted.truncated
        made = {name: group.lose(people=0, images=faulty) for name, group in sources.items()}
    images = sum(group.images for group in sources.values())
    return Job(
        name="ingest",
        reads=sources,
        makes=made,
        bytes=set_bytes(config, made),
        parts=(Part(kind="start"), *ingest_parts(facts, images, aligner)),
        basis=basis,
    )


def embedded(group: Group) -> Group:
    """A set whose kept images all have an embedding."""
    return replace(group, embedded=group.images_kept)


def embed_part(facts: Facts, images: float) -> Part:
    """Embedding images by the build's embedder."""
    config = facts.config
    operations = networks.embedder(config.embedder)
    step = Step(
        name="embed",
        images=images,
        operations=operations,
        pool=config.embed.pool,
        field="embed.pool",
    )
    return Part(kind="stage", steps=(step,))


def embed(facts: Facts, before: Job) -> Job:
    """A vector for every image."""
    made = {source: embedded(group) for source, group in before.makes.items()}
    return Job(
        name="embed",
        reads=before.makes,
        makes=made,
        bytes=set_bytes(facts.config, made),
        parts=(embed_part(facts, sum(group.images_kept for group in made.values())),),
        basis=before.basis,
    )


def search_step(vectors: float, others: float, dimension: int) -> Step:
    """Comparing vectors with others, each with each, on one core."""
    return Step(name="search", images=vectors, operations=2.0 * others * dimension)


def clean(facts: Facts, before: Job) -> Job:
    """Who is not that person, and who stands in the set twice."""
    config = facts.config
    people_before = sum(group.kept for group in before.makes.values())
    planted = config.sample
    if planted is not None and "clean" not in facts.manifests:
        lost = planted.strangers + planted.near_duplicates
        people = planted.duplicates / people_before
    else:
        lost, people = facts.factor("clean lost"), facts.factor("clean people lost")
    made = {name: group.lose(people=people, images=lost) for name, group in before.makes.items()}
    step = Step(name="clean", images=before.images, pool=config.clean.pool, field="clean.pool")
    dimension = networks.dimension(config.embedder)
    compare = search_step(people_before, people_before / 2, dimension)
    before_stage = (
        (Part(kind="task"), Part(kind="pass", steps=(compare,)))
        if config.clean.rule == "calibrated"
        else ()
    )
    return Job(
        name="clean",
        reads=before.makes,
        makes=made,
        bytes=set_bytes(config, made),
        parts=(*before_stage, Part(kind="stage", steps=(step,))),
        basis="assumed" if not facts.is_counted("clean lost") else "counted",
    )


def judge(facts: Facts, before: Job, calls: float) -> Job:
    """What further experts say.

    Args:
        calls: questions to the vision model.
    """
    config = facts.config
    judge_ = config.judge
    assert judge_ is not None
    lost = facts.factor("judge lost")
    made = {name: group.lose(people=0, images=lost) for name, group in before.makes.items()}
    people = sum(group.kept for group in before.makes.values())
    operations = 0.0
    if judge_.second is not None:
        operations += networks.embedder(judge_.second)
    if "quality" in judge_.experts:
        operations += networks.of("face_attributes")
    step = Step(
        name="judge",
        images=before.images,
        operations=operations,
        pool=judge_.pool,
        field="judge.pool",
    )
    # Calls overlap, up to what the service and the configuration allow; a day by the Batch API.
    waited = calls * assumed("answer seconds") / judge_.concurrency
    waited = max(waited, 60 * calls / judge_.requests_per_minute)
    if judge_.mode == "batch" and calls:
        waited = 86_400.0
    parts = []
    if judge_.fusion == "weights":
        sampled = min(1.0, judge_.sample_identities / max(people, 1)) * before.images
        parts = [Part(kind="pass"), Part(kind="pass", steps=(replace(step, images=sampled),))]
    parts.append(Part(kind="stage", steps=(step,), seconds=waited))
    size = set_bytes(config, made)
    size += len(judge_.panel) * before.images * _BYTES_OF_VERDICT + calls * _BYTES_OF_ANSWER
    return Job(
        name="judge",
        reads=before.makes,
        makes=made,
        bytes=size,
        parts=tuple(parts),
        basis="assumed" if not facts.is_counted("judge lost") else "counted",
    )
