"""The jobs that make new people: vectors, seed, screen, expand."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from raypipe.config.base import Pool
from raypipe.planning import networks
from raypipe.planning.base_jobs import (
    embed_part,
    embedded,
    ingest_parts,
    ingested,
    search_step,
    set_bytes,
)
from raypipe.planning.facts import Facts
from raypipe.planning.jobs import Job, Part, Step
from raypipe.planning.sets import Group
from raypipe.waves import Drawn
from raypipe.waves import plan as wave_plan

VEC, SEED = "vec", "seed"
_PEOPLE_A_PICTURE = 0.8  # others are drawn again of somebody whose picture was refused
_BYTES_OF_VECTOR = 8  # the law's directions, float64


def vectors(facts: Facts, before: Job) -> Job:
    """Vectors of people who do not exist."""
    config = facts.config
    wanted = config.vectors
    assert wanted is not None
    made = {
        VEC: Group(
            identities=wanted.count,
            kept=wanted.count,
            images=wanted.count,
            images_kept=0,
            image_bytes=0,
            embedded=wanted.count,
        )
    }
    dimension = networks.dimension(config.embedder)
    known = sum(group.kept for group in before.makes.values()) * wanted.away_from_source
    # Each candidate against those before it, and again for everybody's nearest.
    draw = search_step(wanted.count, wanted.count + known, dimension)
    draw = replace(draw, pool=_one(wanted.pool), field="vectors.pool")
    return Job(
        name="vectors",
        reads=before.makes,
        makes=made,
        bytes=set_bytes(config, made) + dimension**2 * _BYTES_OF_VECTOR,
        parts=(Part(kind="task"), Part(kind="task", steps=(draw,))),
        basis="configured",
    )


def _one(pool: Pool) -> Pool:
    """What one task with the resources of a pool reserves."""
    return pool.model_copy(update={"min": 1, "max": 1})


def galleries(facts: Facts) -> tuple[dict[str, Group], tuple[Part, ...], float]:
    """The galleries as embedded sets, the work on them, and their bytes, ingested and embedded."""
    config = facts.config
    made: dict[str, Group] = {}
    parts: list[Part] = []
    size = 0.0
    for gallery in config.screen.galleries:
        group, _ = facts.gallery(gallery)
        read = ingested(facts, group, gallery.aligner)
        made[gallery.name] = embedded(read)
        parts += ingest_parts(facts, group.images, gallery.aligner)
        parts.append(embed_part(facts, read.images_kept))
        size += set_bytes(config, {"": read}) + set_bytes(config, {"": made[gallery.name]})
    return made, tuple(parts), size


def waves(number: int, tries: int, limit: int, *, passed: float, admitted: float) -> list[int]:
    """Pictures of each wave that the seed job will draw, if all goes as expected.

    Args:
        number, tries, limit: as the part `seeds` has them.
        passed, admitted: shares of the pictures that pass the gates, and become a person.

    Raises:
        UserError: where so few are admitted that the job would end with an error.
    """
    drawn: Drawn | None = None
    found: list[int] = []
    while drawn is None or drawn.admitted < number:
        wave = wave_plan(drawn, number=number, tries=tries, limit=limit)
        earlier = drawn.tries if drawn else np.zeros(0, np.int64)
        taken = np.concatenate([earlier, np.ones(wave.new, np.int64)])
        taken[wave.again] += 1
        found.append(len(wave.again) + wave.new)
        good = np.arange(len(taken)) < round(passed * sum(found))
        drawn = Drawn(
            tries=taken,
            passed=good,
            failed=np.zeros(len(taken), bool),
            admitted=math.floor(admitted * sum(found)),
            reasons={},
        )
    return found


def filled(pictures: int, rows_per_block: int, batch: int) -> int:
    """Pictures that are really drawn of a wave: the last batch of a block is filled up."""
    whole, rest = divmod(pictures, rows_per_block)
    each = math.ceil(rows_per_block / batch) * batch
    return whole * each + math.ceil(rest / batch) * batch


def _drawn(counts: Mapping[str, int]) -> list[int]:
    """Pictures of each wave of a finished job, those after the first taken to be alike."""
    first = wave_plan(None, number=counts["asked"], tries=1, limit=1).new
    rest, others = counts["pictures"] - first, counts["waves"] - 1
    return [first, *(rest // others + (k < rest % others) for k in range(others))]


def seed(facts: Facts, others: dict[str, Group], of_galleries: dict[str, Group]) -> Job:
    """References drawn from prompts, in waves.

    Args:
        others: the sets that are screened along with them.
        of_galleries: the galleries, as embedded sets.
    """
    config = facts.config
    seeds = config.seeds
    assert seeds is not None
    finished = facts.manifests.get("seed")
    passed = facts.factor("seed passed")
    admitted = passed * (1 - facts.factor("screen people lost"))
    if finished is not None:
        drawn = _drawn(finished.counts["seeds"])
    else:
        drawn = waves(seeds.number, seeds.tries, seeds.limit, passed=passed, admitted=admitted)
    pictures, rounds = sum(drawn), len(drawn)
    batch = min(seeds.diffusion.batch_size, seeds.pool.batch_size)
    slots = sum(filled(wave, config.ray.rows_per_block, batch) for wave in drawn)
    references = passed * pictures
    # A picture that passes becomes the crop of its face; the others stay as they were drawn.
    area = networks.side(seeds.diffusion) ** 2
    crop = facts.measured("crop bytes")
    refused = facts.measured("picture bytes a pixel") * area
    passes = 2 if seeds.diffusion.second_pass else 1
    group = Group(
        identities=pictures * _PEOPLE_A_PICTURE,
        kept=seeds.number,
        images=passes * pictures,
        images_kept=seeds.number,  # the rest is surplus
        image_bytes=passed * crop + (1 - passed) * refused,
        embedded=passes * references,
    )
    check = networks.aligner(seeds.aligner) + networks.embedder(config.embedder)
    steps: list[Step] = []
    for second in range(passes):
        count = references if second else pictures
        steps.append(
            Step(
                name="diffuse",
                images=count * slots / pictures,
                operations=networks.pictures(seeds.diffusion, second_pass=bool(second)),
                pool=seeds.pool,
                field="seeds.pool",
            )
        )
        steps.append(
            Step(
                name="check",
                images=count,
                operations=check,
                pool=seeds.reference_pool,
                field="seeds.reference_pool",
            )
        )
    faces = sum(item.embedded for item in of_galleries.values())
    compared = search_step(
        references, faces + sum(item.kept for item in others.values()),
        networks.dimension(config.embedder),
    )  # fmt: skip
    parts = (
        Part(kind="stage", steps=tuple(steps), times=rounds),
        Part(kind="pass", steps=(compared,), times=rounds),
        Part(kind="task", times=3 * rounds),
    )
    made = {SEED: group}
    note = f"{pictures:,} pictures in {rounds} waves"
    basis = "counted" if facts.is_counted("seed passed") else "assumed"
    size = set_bytes(config, made)
    return Job(name="seed", reads={}, makes=made, bytes=size, parts=parts, basis=basis, note=note)


def screen(facts: Facts, sets: dict[str, Group], of_galleries: dict[str, Group]) -> Job:
    """Who is in a gallery, and who is somebody earlier."""
    config = facts.config
    lost = facts.factor("screen people lost")
    made = {source: group.lose(people=lost, images=0) for source, group in sets.items()}
    people = sum(group.kept for group in sets.values())
    images = sum(group.images for group in sets.values())
    dimension = networks.dimension(config.embedder)
    faces = sum(group.embedded for group in of_galleries.values())
    pool, field = config.screen.pool, "screen.pool"
    with_faces = replace(search_step(people, faces, dimension), pool=pool, field=field)
    with_people = search_step(people, people, dimension)
    with_people = replace(with_people, pool=_one(pool), field=field)
    mark = Step(name="mark", images=images, pool=pool, field=field)
    parts = (
        Part(kind="task", times=len(of_galleries)),
        Part(kind="pass", steps=(with_faces,)),
        Part(kind="task", steps=(with_people,)),
        Part(kind="stage", steps=(mark,)),
    )
    size = set_bytes(config, made)
    basis = "counted" if "screen" in facts.manifests else "assumed"
    return Job(name="screen", reads=sets, makes=made, bytes=size, parts=parts, basis=basis)


def expand(facts: Facts, sets: dict[str, Group], of_galleries: dict[str, Group]) -> Job:
    """Many images of every new person."""
    config = facts.config
    settings = config.expand
    assert settings is not None
    drawn_for_one = facts.factor(
        "expand drawn in a band" if settings.band is not None else "expand drawn"
    )
    of_embedder = networks.embedder(config.embedder)
    dimension = networks.dimension(config.embedder)
    shares = [float(share) for share in settings.shares]
    of_image = sum(
        share * networks.painter(painter, of_embedder)
        for share, painter in zip(shares, settings.painters, strict=True)
    )
    everybody = sum(group.kept for group in sets.values())
    faces = sum(group.embedded for group in of_galleries.values())
    of_search = 2.0 * dimension * (everybody + faces)
    ships = all(painter.weights is None for painter in settings.painters)
    mean = facts.measured("small image bytes" if ships else "image bytes")
    made = dict(sets)
    total = 0.0
    for source in settings.sources:
        group = sets[source]
        wanted = group.kept * settings.images - group.images_kept
        drawn = wanted * drawn_for_one
        grown = group.with_images(drawn, mean, embedded=True)
        made[source] = replace(grown, images_kept=group.images_kept + wanted)
        total += drawn
    if finished := facts.manifests.get("expand"):
        total = finished.counts["images"]["made"]
    step = Step(
        name="expand",
        images=total,
        operations=of_image + of_embedder + of_search,
        pool=settings.pool,
        field="expand.pool",
    )
    parts = [Part(kind="task")]
    if settings.band is not None:
        parts.append(Part(kind="task"))
    parts.append(Part(kind="stage", steps=(step,)))
    known = everybody * dimension * 4  # others.parquet
    return Job(
        name="expand",
        reads=sets,
        makes=made,
        bytes=set_bytes(config, made) + known,
        parts=tuple(parts),
        basis="counted" if facts.is_counted("expand drawn") else "assumed",
        note=f"{total:,.0f} images drawn",
    )
