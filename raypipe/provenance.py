"""What the dataset card of an assembled set says of how it was made, from what the jobs wrote."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from raypipe import __version__, storage, training_set
from raypipe.card import README, Column, SetFacts, Shard, card, table
from raypipe.config import Build
from raypipe.croissant import CROISSANT, croissant
from raypipe.identities import NO_PICTURE
from raypipe.licences import uses
from raypipe.manifest import Manifest, read_manifest
from raypipe.new_people import in_short, new_people
from raypipe.report.words import count

_LEAKAGE = "leakage.json"  # of the screening job
LICENCES = "licences.json"
_ADDED = ("vectors", "seed")  # jobs that make sets of their own, which are screened with the other


def manifests(config: Build) -> dict[str, Manifest]:
    """Those of the finished jobs before assemble, by their folders in the workspace."""
    galleries = [f"screen/galleries/{gallery.name}" for gallery in config.screen.galleries]
    inner = [f"{gallery}/{job}" for gallery in galleries for job in ("ingest", "embed")]
    names = ["sample", "ingest", "embed", "clean", *(["judge"] if config.judge else [])]
    names += [job for job in _ADDED if config.has(job)]
    names += [*inner, "screen"]
    names += ["expand"] if config.expand else []
    found = {name: read_manifest(storage.join(config.workspace, name)) for name in names}
    return {name: manifest for name, manifest in found.items() if manifest}


def write_card(
    config: Build,
    counts: Mapping[str, Any],
    files: Mapping[str, str],
    digest: str,
    generators: Sequence[tuple[str, str]],
) -> None:
    """Writes `README.md`, `croissant.json` and `licences.json` of the assembled set.

    They are no part of the set: its content digest does not know them, so that a licence can be
    corrected in the configuration at any time.

    Args:
        counts: of the assemble job's manifest.
        files: path inside the set → hex SHA-256.
        digest: content digest of the set.
        generators: as `training_set.generators` gives them.
    """
    root = storage.join(config.workspace, "assemble")
    facts = _facts(config, root, counts, files, digest, generators)
    storage.write_bytes(storage.join(root, README), card(facts).encode())
    storage.write_json(storage.join(root, CROISSANT), croissant(facts))
    storage.write_json(storage.join(root, LICENCES), [asdict(use) for use in facts.uses])


def _facts(
    config: Build,
    root: str,
    counts: Mapping[str, Any],
    files: Mapping[str, str],
    digest: str,
    generators: Sequence[tuple[str, str]],
) -> SetFacts:
    made = counts["training_set"]
    each = made["images"] // max(made["identities"], 1)
    done = manifests(config)
    shards = {
        folder: _shards(root, folder, files)
        for folder in (training_set.PARQUET, training_set.WEBDATASET)
    }
    return SetFacts(
        name=f"faces-{digest[:12]}",
        about=f"A training set for face recognition: {made['images']:,} images of "
        f"{made['identities']:,} identities, {each} of each, in the order of training. Made by "
        f"raypipe {__version__} from {', '.join(sorted(made['sources']))}; "
        f"{made['augmented']:,} of the images are augmentations of others."
        f"{in_short(config, made['sources'])}",
        identities=made["identities"],
        images=made["images"],
        fewest=each,
        most=each,
        pattern=f"{training_set.PARQUET}/*.parquet",
        shards=shards[training_set.PARQUET],
        tars=shards[training_set.WEBDATASET],
        columns=[
            Column(name=name, kind=str(kind), about=about)
            for name, (kind, about) in training_set.COLUMNS.items()
        ],
        provenance="\n".join(
            [
                _sources(done, made),
                _jobs(config, done, counts),
                _screening(storage.join(config.workspace, "screen", _LEAKAGE)),
                *new_people(config, done, generators),
                f"### Digest\n\nContent digest of the set: `{digest}`\n",
            ]
        ),
        uses=uses(config, done, generators),
    )


def _shards(root: str, folder: str, files: Mapping[str, str]) -> list[Shard]:
    sizes = {entry.name: entry.size for entry in storage.listdir(storage.join(root, folder))}
    return [
        Shard(path=path, size=sizes[path.rpartition("/")[2]], sha256=sha256)
        for path, sha256 in sorted(files.items())
        if path.startswith(f"{folder}/")
    ]


def _sources(done: Mapping[str, Manifest], made: Mapping[str, Any]) -> str:
    read, vectors, seeds, screened, expanded = (
        done[job].counts["sources"] if job in done else {}
        for job in ("ingest", "vectors", "seed", "screen", "expand")
    )
    rows = []
    for name, chosen in sorted(made["sources"].items()):
        people, images, more = None, None, 0
        if name in read:
            people, images = read[name]["identities"], read[name]["images"]
        elif name in vectors:
            people, images = vectors[name]["identities"], 0
        elif name in seeds:
            people, images = seeds[name]["identities"], seeds[name]["images"]
        if name in expanded:
            more = expanded[name]["images"] - screened[name]["images"]
        numbers = (people, images, more, chosen["identities"], chosen["kept"], chosen["augmented"])
        rows.append((name, *("?" if number is None else f"{number:,}" for number in numbers)))
    head = ("source", "identities read or drawn", "images read or drawn", "images painted",
            "identities taken", "images taken", "augmented")  # fmt: skip
    return f"### Sources\n\n{table(head, rows)}"


def _jobs(config: Build, done: Mapping[str, Manifest], counts: Mapping[str, Any]) -> str:
    settings = {name: manifest.origin.settings for name, manifest in done.items()}
    settings["assemble"] = config.assemble.model_dump(exclude={"pool"}) | {"seed": config.seed}
    before: dict[str, Counter[str]] = {"identity": Counter(), "image": Counter()}
    units, rows = {"identity": "identities", "image": "images"}, []
    for name, chosen in settings.items():
        rejected = []
        if "/" not in name and name != "sample":
            now = counts if name == "assemble" else done[name].counts
            for unit, earlier in before.items():
                total = Counter(now[units[unit]]["rejected"])
                if name in _ADDED:
                    total += earlier
                new = sorted((total - earlier).items())
                rejected += [
                    f"{count(number, unit)} {reason}"
                    for reason, number in new
                    if reason != NO_PICTURE
                ]
                before[unit] = total
        rows.append((name, ", ".join(_settings(chosen)), ", ".join(rejected)))
    return (
        "### Jobs\n\nThe settings that each job's result depends on, and what it rejected; an "
        "image goes with its identity.\n\n" + table(("job", "settings", "rejected"), rows)
    )


def _settings(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in settings.items():
        if isinstance(value, dict):
            found += _settings(value, f"{prefix}{name}.")
        elif value is not None:
            found.append(f"`{prefix}{name}={value}`")
    return found


def _screening(path: str) -> str:
    """What the comparison with galleries showed, and what it cannot show."""
    text = "### Are real people in it?\n\n"
    summary = storage.read_json(path) if storage.exists(path) else {"galleries": {}}
    if not summary["galleries"]:
        return text + "**Not checked:** the set was compared with no gallery of real people.\n"
    rows = [
        (
            name,
            f"{facts['people']:,}",
            f"{facts['faces']:,}",
            f"{facts['compared']:,}",
            f"{facts['refused']:,}",
            f"{facts['threshold']:.3f}",
            "?" if facts["recognised"] is None else f"{facts['recognised']:.1%}",
        )
        for name, facts in sorted(summary["galleries"].items())
    ]
    head = ("gallery", "people", "faces", "identities compared", "refused", "threshold",
            "own faces recognised")  # fmt: skip
    text += (
        "Every identity was compared with every face of these galleries, and those that reached "
        "the threshold were refused. The threshold was measured on each gallery's own pairs of "
        f"different people: one comparison in {1 / summary['false_match_rate']:,.0f} of two "
        "strangers reaches it. This says nothing about people who are in none of the galleries, "
        f"nor about photographs that the embedder does not recognise.\n\n{table(head, rows)}"
    )
    return text + "".join(f"\n**{warning}**\n" for warning in summary["warnings"])
