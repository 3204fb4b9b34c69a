"""The jobs from people to a scored recognizer: assemble, train, evaluate, report."""

from raypipe.config.curriculum import CurriculumConfig
from raypipe.planning import networks
from raypipe.planning.assumptions import assumed
from raypipe.planning.base_jobs import search_step, set_bytes
from raypipe.planning.facts import Facts
from raypipe.planning.jobs import Job, Part, Step
from raypipe.planning.sets import Group, training_set_bytes

SET = "set"
_FORWARD = 2  # of an image and of its mirror image
_BYTES_OF_RESULT = 200_000  # curves and histograms of a verification set
_FLOAT = 4  # bytes of a weight


def assemble(facts: Facts, sets: dict[str, Group]) -> Job:
    """A fixed number of images of everybody, in shards."""
    config = facts.config
    settings = config.assemble
    each = settings.images_per_identity
    made = dict(sets)
    chosen = {source: sets[source] for source in settings.phases if source in sets}
    stands_in = settings.replacement
    people = sum(group.kept for name, group in chosen.items() if name != stands_in)
    if stands_in in chosen:
        lost = sum(g.identities - g.kept for name, g in chosen.items() if name != stands_in)
        people += min(lost, chosen[stands_in].kept) if len(chosen) > 1 else chosen[stands_in].kept
    kept_bytes = kept_images = 0.0
    for source, group in chosen.items():
        share = 1.0
        if source == stands_in and len(chosen) > 1:
            others = sum(g.kept for name, g in chosen.items() if name != source)
            share = min(1.0, max(people - others, 0) / max(group.kept, 1))
        wanted = share * group.kept * each
        refilled = max(wanted - share * group.images_kept, 0)
        augmented = group.image_bytes * facts.factor("augmented bytes")
        made[source] = group.with_images(refilled, augmented, embedded=False)
        kept_images += wanted
        kept_bytes += (wanted - refilled) * group.image_bytes + refilled * augmented
    images = people * each
    mean = kept_bytes / max(kept_images, 1)
    all_images = sum(group.images for group in sets.values())
    pool, field = settings.pool, "assemble.pool"
    parts = [
        Part(kind="task"),
        Part(kind="stage", steps=(Step(name="refill", images=all_images, pool=pool, field=field),)),
        Part(kind="pass", steps=(Step(name="spread", images=images, pool=pool, field=field),)),
        Part(kind="pass", steps=(Step(name="shard", images=images, pool=pool, field=field),)),
    ]
    if settings.order != "shuffled":
        parts.append(Part(kind="task"))
    if settings.nearest:
        compare = search_step(people, people, networks.dimension(config.embedder))
        parts.append(Part(kind="task", steps=(compare,)))
    size = set_bytes(config, made) + training_set_bytes(images, mean)
    trained = Group(
        identities=people, kept=people, images=images, images_kept=images, image_bytes=mean
    )
    return Job(
        name="assemble",
        reads=sets,
        makes={SET: trained},
        bytes=size,
        parts=tuple(parts),
        basis="counted" if "assemble" in facts.manifests else "assumed",
    )


def admitted(config: CurriculumConfig, epochs: int) -> float:
    """Images of a training, in those of the set: paced curricula begin with a part of it.

    By `raypipe.schedule`: the share grows from `start` to 1 over `full_at` of the epochs.
    """
    if config.schedule != "paced":
        return float(epochs)
    times = (min(epoch / (config.full_at * epochs), 1.0) for epoch in range(epochs))
    return sum(config.start + (1 - config.start) * time**config.power for time in times)


def train(facts: Facts, before: Job) -> Job:
    """The recognizer."""
    config = facts.config
    options = config.train
    group = before.makes[SET]
    basis = before.basis
    if options.set is not None:
        group, basis = facts.training_set(), "train.set"
    images = group.images * admitted(options.curriculum, options.epochs)
    step = Step(
        name="train",
        images=images,
        operations=networks.training_step(options, group.identities),
        pool=options,
        field="train",
    )
    weights = networks.recognizer(options).parameters * _FLOAT
    kept = options.epochs // options.keep_every if options.keep_every else 0
    return Job(
        name="train",
        reads={SET: group},
        makes={SET: group},
        bytes=weights * (1 + kept),
        parts=(Part(kind="fit", steps=(step,)),),
        basis=basis,
        note=f"{images:,.0f} images in {options.epochs} epochs",
    )


def evaluate(facts: Facts) -> Job:
    """Scores of the recognizer, and of each epoch that was kept."""
    config = facts.config
    options = config.evaluate
    times = 1 + (
        config.train.epochs // config.train.keep_every
        if config.train.keep_every and options.epochs
        else 0
    )
    images = sum(facts.verification_images(item) for item in options.sets)
    step = Step(
        name="evaluate",
        images=images,
        operations=_FORWARD * networks.recognizer(config.train).operations,
        pool=options.pool,
        field="evaluate.pool",
    )
    scored = Group(
        identities=0, kept=0, images=images, images_kept=images, image_bytes=assumed("image bytes")
    )
    return Job(
        name="evaluate",
        reads={},
        makes={SET: scored},
        bytes=_BYTES_OF_RESULT * len(options.sets) * times,
        parts=(Part(kind="pass", steps=(step,), times=times * max(len(options.sets), 1)),),
        basis="assumed",
    )


def report() -> Job:
    """The page."""
    return Job(
        name="report",
        reads={},
        makes={},
        bytes=assumed("report bytes"),
        parts=(Part(kind="local"),),
    )
