"""Checking that a face set is what its manifest says it is."""

import hashlib
from collections.abc import Iterator

import pyarrow.parquet as pq

from raypipe import images, storage
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.identities import Identity, from_table, row_digest
from raypipe.manifest import Counts, Manifest


def check_identity(identity: Identity, stored: bytes) -> Iterator[str]:
    """What is wrong with one row, a sentence each.

    Args:
        stored: the digest that stands in the row, 32 bytes.
    """
    if row_digest(identity) != stored:
        yield "its content does not match its digest"
    names = [image.image_id for image in identity.images]
    if len(set(names)) != len(names):
        yield "two of its images have the same image_id"
    for image in identity.kept:
        try:
            images.decode(image.data, source=image.image_id)
        except images.ImageError as error:
            yield f"image {error} ({error.reason}), though it is marked as kept"


class Verification:
    """Goes through a face set row by row and collects what is wrong with it.

    Attributes:
        problems: a sentence each, with the file and the row.
        rows: rows checked so far.
    """

    def __init__(self, root: str, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest
        self.problems: list[str] = []
        self.rows = 0

    def run(self) -> list[str]:
        """Checks files, rows, images, then counts and content digest; returns the problems."""
        counts = Counts()
        seen: dict[str, bytes] = {}
        face_set = FaceSet(self.root)
        for path in face_set.files():
            try:
                for table in face_set.tables_of(path):
                    stored = table["digest"].to_pylist()
                    for identity, digest in zip(from_table(table), stored, strict=True):
                        where = f"{path}: identity {identity.identity_id!r} (row {self.rows})"
                        if identity.identity_id in seen:
                            self.problems.append(f"{where}: it stands in the set twice")
                        self.problems += [
                            f"{where}: {problem}" for problem in check_identity(identity, digest)
                        ]
                        reasons = [image.rejected for image in identity.images]
                        counts.add(identity.source, identity.rejected, reasons)
                        seen[identity.identity_id] = row_digest(identity)
                        self.rows += 1
            except UserError as error:
                self.problems.append(str(error))
        content = hashlib.sha256()
        for identity_id in sorted(seen):
            content.update(identity_id.encode() + b"\0" + seen[identity_id])
        if content.hexdigest() != self.manifest.content_digest:
            self.problems.append(f"{self.root}: the content digest is not the manifest's")
        self._conservation(counts)
        return self.problems

    def _conservation(self, counts: Counts) -> None:
        stated = self.manifest.counts
        for name, total, kept, rejected in (
            (
                "identities",
                counts.identities,
                counts.identities_kept,
                dict(counts.rejected_identities),
            ),
            ("images", counts.images, counts.images_kept, dict(counts.rejected_images)),
        ):
            said = stated[name]
            read_and_made = said.get("read", said["total"]) + said.get("made", 0)
            if kept + sum(rejected.values()) != read_and_made:
                self.problems.append(
                    f"{self.root}: {name}: kept {kept} + rejected {sum(rejected.values())} is not "
                    f"read + made = {read_and_made}"
                )
            for part, found in (("total", total), ("kept", kept), ("rejected", rejected)):
                if said[part] != found:
                    self.problems.append(
                        f"{self.root}: {name} {part}: {found} in the rows, {said[part]} in the "
                        "manifest"
                    )


def verify_files(root: str, manifest: Manifest) -> list[str]:
    """Checks the files that a manifest lists with their digests, as that of a training set does.

    Args:
        manifest: with `extra["files"]`: path inside the folder → hex SHA-256.

    Returns:
        A sentence for each file that is missing or changed, and for each image of a Parquet shard
        that does not decode.
    """
    problems = []
    for name, digest in sorted(manifest.extra["files"].items()):
        path = storage.join(root, name)
        if not storage.exists(path):
            problems.append(f"{path}: missing")
        elif storage.sha256_file(path) != digest:
            problems.append(f"{path}: its bytes are not those the manifest names")
        elif name.endswith(".parquet"):
            problems += _undecodable(path)
    return problems


def _undecodable(path: str) -> Iterator[str]:
    where, inner = storage.filesystem(path)
    with where.open_input_file(inner) as stream:
        row = 0
        for batch in pq.ParquetFile(stream).iter_batches(256, columns=["image", "label"]):
            for image in batch["image"].to_pylist():
                try:
                    images.decode(image["bytes"], source=f"row {row}")
                except images.ImageError as error:
                    yield f"{path}: {error} ({error.reason})"
                row += 1
