"""What a job made, from what, and how much of it: `manifest.json`, and the counts in it.

The manifest is written last and at once, so a folder that has one is complete. While a job runs
the same facts lie in `started.json`, so that a run is resumed only with the settings, inputs and
weights it was started with.
"""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import raypipe
from raypipe import storage
from raypipe.errors import UserError
from raypipe.faceset import FaceSet

MANIFEST = "manifest.json"
STARTED = "started.json"


def digest_of(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, the same for equal values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a job's result depends on.

    Attributes:
        settings: the part of the configuration that matters to the job.
        inputs: name → digest of everything it reads.
        models: file name → SHA-256 of every weight file.
    """

    job: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    models: dict[str, str]
    version: str = raypipe.__version__

    def changes(self, earlier: "Origin") -> list[str]:
        """What differs from an earlier run, a phrase each: "settings.min_images 10 → 12"."""
        found = []
        for name in ("settings", "inputs", "models"):
            before, after = _flat(getattr(earlier, name), name), _flat(getattr(self, name), name)
            for key in sorted(before.keys() | after.keys()):
                if before.get(key) != after.get(key):
                    found.append(f"{key} {_short(before.get(key))} → {_short(after.get(key))}")
        return found


def _flat(value: Any, prefix: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            key: item
            for name, part in value.items()
            for key, item in _flat(part, f"{prefix}.{name}").items()
        }
    return {prefix: value}


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "…"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `manifest.json`."""

    origin: Origin
    counts: dict[str, Any]
    content_digest: str
    extra: dict[str, Any] = field(default_factory=dict)


def read_manifest(root: str) -> Manifest | None:
    """The manifest of a folder, None where there is none.

    Raises:
        UserError: where it is damaged.
    """
    path = storage.join(root, MANIFEST)
    if not storage.exists(path):
        return None
    value = storage.read_json(path)
    try:
        return Manifest(**{**value, "origin": Origin(**value["origin"])})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest of raypipe ({error})") from error


def write_manifest(root: str, manifest: Manifest) -> None:
    """Marks a folder complete."""
    storage.write_json(storage.join(root, MANIFEST), asdict(manifest))
    storage.delete(storage.join(root, STARTED))


def read_started(root: str) -> Origin | None:
    """With what an unfinished run was started, None where none was."""
    path = storage.join(root, STARTED)
    return Origin(**storage.read_json(path)) if storage.exists(path) else None


def write_started(root: str, origin: Origin) -> None:
    """Notes with what a run starts."""
    storage.write_json(storage.join(root, STARTED), asdict(origin))


@dataclass(kw_only=True)
class Counts:
    """Identities and images of a set; an image is kept when it and its identity are."""

    identities: int = 0
    images: int = 0
    identities_kept: int = 0
    images_kept: int = 0
    bytes: int = 0
    rejected_identities: Counter[str] = field(default_factory=Counter)
    rejected_images: Counter[str] = field(default_factory=Counter)
    sources: dict[str, Counter[str]] = field(default_factory=dict)

    def add(
        self, source: str, identity_rejected: str | None, image_rejected: list[str | None]
    ) -> None:
        """Counts one identity."""
        by_source = self.sources.setdefault(source, Counter())
        self.identities += 1
        self.images += len(image_rejected)
        by_source["identities"] += 1
        by_source["images"] += len(image_rejected)
        if identity_rejected is None:
            self.identities_kept += 1
            by_source["identities_kept"] += 1
        else:
            self.rejected_identities[identity_rejected] += 1
        for reason in image_rejected:
            final = reason or identity_rejected
            if final is None:
                self.images_kept += 1
                by_source["images_kept"] += 1
            else:
                self.rejected_images[final] += 1


def summarise(root: str) -> tuple[Counts, str]:
    """Counts and content digest of a face set, read from its small columns.

    The content digest is the SHA-256 over (identity_id, row digest) in the order of identity_id: it
    does not depend on which file a row lies in.

    Raises:
        UserError: where an identity stands in the set twice.
    """
    counts = Counts()
    rows: list[tuple[str, bytes]] = []
    face_set = FaceSet(root)
    columns = ["identity_id", "source", "rejected", "digest", "images.list.element.rejected"]
    for table in face_set.tables(columns):
        reasons = [
            [image["rejected"] for image in images] for images in table["images"].to_pylist()
        ]
        for head, row in zip(table.drop_columns(["images"]).to_pylist(), reasons, strict=True):
            counts.add(head["source"], head["rejected"], row)
            rows.append((head["identity_id"], head["digest"]))
    counts.bytes = sum(
        entry.size for entry in storage.listdir(storage.join(root, "rows")) if entry.is_file
    )
    rows.sort()
    digest = hashlib.sha256()
    for position, (identity_id, content) in enumerate(rows):
        if position and rows[position - 1][0] == identity_id:
            raise UserError(f"{root}: identity {identity_id!r} stands in it twice")
        digest.update(identity_id.encode() + b"\0" + content)
    return counts, digest.hexdigest()
