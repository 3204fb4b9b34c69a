"""What the dataset card says of people who were made up, and how they were checked."""

from collections.abc import Mapping, Sequence
from typing import Any

from raypipe import storage
from raypipe.config import Build
from raypipe.config.expand import ExpandConfig
from raypipe.manifest import Manifest
from raypipe.recheck import IN_GALLERY, NOT_THE_PERSON, OUT_OF_BAND, SOMEBODY_ELSE
from raypipe.report.words import count
from raypipe.vectors.rows import SOURCE

_THRESHOLDS = "thresholds.json"  # of the expansion job
_NAMES = {"vec2face": "Vec2Face", "cemiface": "CemiFace"}


def in_short(config: Build, sources: Mapping[str, Any]) -> str:
    """How many identities have images that were painted for the set: a sentence, or nothing.

    Args:
        sources: counts of the training set by source.
    """
    if config.expand is None:
        return ""
    wanted = config.expand.sources
    taken = {name: sources[name]["identities"] for name in wanted if name in sources}
    if not any(taken.values()):
        return ""
    origins = [
        f"{taken[name]:,} of them {what}"
        for name, what in ((SOURCE, "sampled vectors"), ("seed", "drawn from a prompt"))
        if taken.get(name)
    ]
    began = f", {' and '.join(origins)}" if origins else ""
    people = count(sum(taken.values()), "identity")
    return (
        f" {_names(config.expand)} painted images of {people}{began}; each of these images was "
        "checked to be that person and nobody else."
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
    if seed := done.get("seed"):
        parts.append(_references(seed, done["screen"]))
    if vectors := done.get("vectors"):
        parts += _vectors(vectors)
    if config.expand and (expand := done.get("expand")):
        painters = {digest for _, digest in generators}
        thresholds = storage.read_json(storage.join(config.workspace, "expand", _THRESHOLDS))
        parts += _images(config.expand, expand, painters, thresholds["thresholds"])
    return ["### People who were made up\n\n" + "\n\n".join(parts) + "\n"] if parts else []


def _references(seed: Manifest, screen: Manifest) -> str:
    """How the references were drawn, and what became of them.

    Args:
        seed, screen: manifests of the two jobs.
    """
    settings, inputs, counts = seed.origin.settings, seed.origin.inputs, seed.counts["seeds"]
    gates = [f"`{name}={value}`" for name, value in settings["gates"].items() if value is not None]
    kept = screen.counts["sources"].get("seed", {}).get("identities_kept", 0)
    return (
        f"{count(counts['asked'], 'identity')} were to begin as a reference picture each, drawn by "
        f"`{settings['diffusion']['model']}` (SHA-256 `{inputs['model']}`) from prompts of a "
        f"grammar (SHA-256 `{inputs['grammar']}`) and seed {settings['seed']}. "
        f"{count(counts['pictures'], 'picture')} of {count(counts['drawn'], 'identity')} were "
        f"drawn, at most {settings['tries']} of each. {counts['accepted']:,} identities passed the "
        f"gates ({', '.join(['exactly one face', *gates])}), and screening left {kept:,} of them."
    )


def too_close(vectors: Manifest) -> str:
    """Why vectors were refused when they were drawn: "refused for a similarity of …".

    Args:
        vectors: manifest of the job.
    """
    settings = vectors.origin.settings
    also = " or to a person of that set" if settings["away_from_source"] else ""
    return f"refused for a similarity of {settings['ceiling']:g} or more to another one{also}"


def _vectors(vectors: Manifest) -> list[str]:
    settings, drawn, law = vectors.origin.settings, vectors.counts["drawn"], vectors.extra["law"]
    text = (
        f"{count(drawn['accepted'], 'identity')} began as vectors, drawn at random and spread as "
        f"the {count(law['identities'], 'identity')} of `{settings['source']}` are (law "
        f"`{settings['law']}`, SHA-256 `{law['digest']}`). Of {drawn['total']:,} vectors drawn, "
        f"{drawn['refused']:,} were {too_close(vectors)}. All were screened as other identities "
        "are."
    )
    return [text, f"**{law['note']}**"] if law["note"] else [text]


def _names(expand: ExpandConfig) -> str:
    """What the generators are called, each once."""
    return " and ".join(dict.fromkeys(_NAMES[painter.kind] for painter in expand.painters))


def _images(
    config: ExpandConfig, expand: Manifest, painters: set[str], thresholds: Mapping[str, Any]
) -> list[str]:
    images, origin = expand.counts["images"], expand.origin
    reasons = [NOT_THE_PERSON, SOMEBODY_ELSE, IN_GALLERY, *([OUT_OF_BAND] if config.band else [])]
    refused = {reason: images["rejected"].get(reason, 0) for reason in reasons}
    files = "; ".join(
        f"`{name}`, SHA-256 `{digest}`"
        for name, digest in origin.models.items()
        if digest in painters
    )
    weights = f" ({files})" if files else ""
    needed = f"at least {thresholds['own']:.3f}"
    if config.band:
        needed += f", and from {config.band[0]:g} to {config.band[1]:g}"
    compared = [
        f"the vector that it was made from ({needed})",
        f"every other identity (less than {thresholds['other']:.3f}, and than to that vector)",
        *(
            f"every face of gallery `{name}` (less than {value:.3f})"
            for name, value in sorted(thresholds["galleries"].items())
        ),
    ]
    return [
        f"{_names(config)}{weights} painted {count(images['made'], 'image')} of identities of "
        f"{', '.join(f'`{source}`' for source in origin.settings['sources'])}. Each was embedded "
        f"again, and its similarity measured to {'; to '.join(compared)}. "
        f"{images['made'] - sum(refused.values()):,} passed. Refused, and no part of this set: "
        f"{', '.join(f'{number:,} `{reason}`' for reason, number in refused.items())}."
    ]
