"""What a job made, from what, and how much of it: `manifest.json`, and the counts in it.

The manifest is written last and at once, so a folder that has one is complete. While a job runs
the same facts lie in `started.json`, so that a run is resumed only with the settings, inputs and
weights it was started with.
"""

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

import raypipe
from raypipe import storage
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import SCHEMA

MANIFEST = "manifest.json"
STARTED = "started.json"
# Files that are read at the same time, for the sake of an object store that answers slowly.
_READERS = 8
_KEYS = pa.schema([SCHEMA.field(name) for name in ("identity_id", "digest")])


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

    def add_rows(self, table: pa.Table) -> None:
        """Counts the rows of a table with the columns source, rejected, and images of which each
        has its rejected; no Python object an image."""
        images = table["images"].combine_chunks()
        owner = table.select(["source", "rejected"]).take(pc.list_parent_indices(images))
        reasons = pc.coalesce(images.flatten().field("rejected"), owner["rejected"])
        for source, reason, number in _grouped(table["source"], table["rejected"]):
            self.identities += number
            self._of(source)["identities"] += number
            if reason is None:
                self.identities_kept += number
                self._of(source)["identities_kept"] += number
            else:
                self.rejected_identities[reason] += number
        for source, reason, number in _grouped(owner["source"], reasons):
            self.images += number
            self._of(source)["images"] += number
            if reason is None:
                self.images_kept += number
                self._of(source)["images_kept"] += number
            else:
                self.rejected_images[reason] += number

    def _of(self, source: str) -> Counter[str]:
        return self.sources.setdefault(source, Counter(identities=0, images=0))


def _grouped(source: pa.ChunkedArray, reason: pa.ChunkedArray) -> list[tuple[str, str | None, int]]:
    """How often each reason occurs in each source."""
    table = pa.table({"source": source, "reason": reason})
    found = table.group_by(["source", "reason"]).aggregate([([], "count_all")])
    return [(row["source"], row["reason"], row["count_all"]) for row in found.to_pylist()]


def summarise(root: str) -> tuple[Counts, str]:
    """Counts and content digest of a face set, read from its small columns.

    The content digest is the SHA-256 over (identity_id, row digest) in the order of identity_id: it
    does not depend on which file a row lies in.

    Raises:
        UserError: where an identity stands in the set twice.
    """
    counts = Counts()
    keys = [_KEYS.empty_table()]
    face_set = FaceSet(root)
    columns = [*_KEYS.names, "source", "rejected", "images.list.element.rejected"]

    def read(path: str) -> list[pa.Table]:
        return list(face_set.tables(columns, [path]))

    with ThreadPoolExecutor(_READERS) as readers:
        for tables in readers.map(read, face_set.files()):
            for table in tables:
                counts.add_rows(table)
                keys.append(table.select(_KEYS.names))
    counts.bytes = sum(
        entry.size for entry in storage.listdir(storage.join(root, "rows")) if entry.is_file
    )
    rows = pa.concat_tables(keys).sort_by("identity_id")
    digest = hashlib.sha256()
    before = None
    for identity_id, content in zip(*(rows[name].to_pylist() for name in _KEYS.names), strict=True):
        if identity_id == before:
            raise UserError(f"{root}: identity {identity_id!r} stands in it twice")
        digest.update(identity_id.encode() + b"\0" + content)
        before = identity_id
    return counts, digest.hexdigest()
