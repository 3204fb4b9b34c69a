"""What the dataset card says of people who were made up, and how they were checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from raypipe import storage
from raypipe.config import Build
from raypipe.manifest import Manifest
from raypipe.recheck import IN_GALLERY, NOT_THE_PERSON, SOMEBODY_ELSE
from raypipe.report.words import count
from raypipe.vectors.rows import SOURCE

_THRESHOLDS = "thresholds.json"  # of the expansion job


def in_short(config: Build, sources: Mapping[str, Any]) -> str:
    """How many identities have images that were painted for the set: a sentence, or nothing.

    Args:
        sources: counts of the training set by source.
    """
    wanted = config.expand.sources if config.expand else []
    taken = {name: sources[name]["identities"] for name in wanted if name in sources}
    if not any(taken.values()):
        return ""
    vectors = f", {taken[SOURCE]:,} of them sampled vectors" if taken.get(SOURCE) else ""
    return (
        f" Vec2Face painted images of {count(sum(taken.values()), 'identity')}{vectors}; each of "
        "these images was checked to be that person and nobody else."
    )


def new_people(
    config: Build, done: Mapping[str, Manifest], generators: Sequence[tuple[str, str]]
) -> list[str]:
    """The part of the card, a list of one, or of none where nobody was made up.

    Args:
        done: manifests of the jobs.
        generators: as `training_set.generators` gives them.
    """
    parts = []
    if vectors := done.get("vectors"):
        parts += _vectors(vectors)
    if expand := done.get("expand"):
        painters = {digest for _, digest in generators}
        thresholds = storage.read_json(storage.join(config.workspace, "expand", _THRESHOLDS))
        parts += _images(expand, painters, thresholds["thresholds"])
    return ["### People who were made up\n\n" + "\n\n".join(parts) + "\n"] if parts else []


def _vectors(vectors: Manifest) -> list[str]:
    settings, drawn, law = vectors.origin.settings, vectors.counts["drawn"], vectors.extra["law"]
    also = " or to a person of that set" if settings["away_from_source"] else ""
    text = (
        f"{count(drawn['accepted'], 'identity')} began as vectors, drawn at random and spread as "
        f"the {count(law['identities'], 'identity')} of `{settings['source']}` are (law "
        f"`{settings['law']}`, SHA-256 `{law['digest']}`). Of {drawn['total']:,} vectors drawn, "
        f"{drawn['refused']:,} were refused for a similarity of {settings['ceiling']:g} or more to "
        f"another one{also}. All were screened as other identities are."
    )
    return [text, f"**{law['note']}**"] if law["note"] else [text]


def _images(expand: Manifest, painters: set[str], thresholds: Mapping[str, Any]) -> list[str]:
    images, origin = expand.counts["images"], expand.origin
    refused = {
        reason: images["rejected"].get(reason, 0)
        for reason in (NOT_THE_PERSON, SOMEBODY_ELSE, IN_GALLERY)
    }
    weights = [
        f" (`{name}`, SHA-256 `{digest}`)"
        for name, digest in origin.models.items()
        if digest in painters
    ]
    compared = [
        f"the vector that it was made from (at least {thresholds['own']:.3f})",
        f"every other identity (less than {thresholds['other']:.3f}, and than to that vector)",
        *(
            f"every face of gallery `{name}` (less than {value:.3f})"
            for name, value in sorted(thresholds["galleries"].items())
        ),
    ]
    return [
        f"Vec2Face{''.join(weights)} painted {count(images['made'], 'image')} of identities of "
        f"{', '.join(f'`{source}`' for source in origin.settings['sources'])}. Each was embedded "
        f"again, and its similarity measured to {'; to '.join(compared)}. "
        f"{images['made'] - sum(refused.values()):,} passed. Refused, and no part of this set: "
        f"{', '.join(f'{number:,} `{reason}`' for reason, number in refused.items())}."
    ]
