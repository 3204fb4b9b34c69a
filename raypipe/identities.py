"""Identities and their images: what a row of a face set holds, as objects and as Arrow tables.

Encoded bytes travel, never decoded arrays. A rejected image or identity stays with the reason.
"""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa

NO_PICTURE = "vectors:no_picture"


@dataclass(kw_only=True)
class Image:
    """One encoded image of an identity.

    Attributes:
        image_id: unique within the identity.
        data: encoded bytes, as they were in the source.
        source: where the bytes came from: a path, or the name of what made them.
        parent: `image_id` of the image it was made from.
        generator: what made it, for a synthetic image.
        weights: hex SHA-256 of the generator's weights.
        prompt: text it was made from.
        seed: seed it was made from.
        embedding: float32 (D,), as the network gives it, not normalised.
        similarity: cosine in [-1, 1], to the identity's centre as measured by the cleaning job, or
            to its vector as measured by the expansion job.
        nearest: who of all others it is most like, as measured by the expansion job: an
            identity_id, or "gallery GALLERY: PERSON".
        nearest_similarity: cosine to that one, in [-1, 1].
        cluster: cluster of the cleaning job; 0 is the kept one, -1 is none.
        rejected: None while kept, else "job:reason".
    """

    image_id: str
    data: bytes
    source: str
    parent: str | None = None
    generator: str | None = None
    weights: str | None = None
    prompt: str | None = None
    seed: int | None = None
    embedding: np.ndarray | None = None
    similarity: float | None = None
    nearest: str | None = None
    nearest_similarity: float | None = None
    cluster: int | None = None
    rejected: str | None = None


@dataclass(kw_only=True)
class CleanEvidence:
    """What the cleaning job measured on an identity."""

    rule: str
    threshold: float
    cluster_sizes: list[int] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    duplicate_similarity: float | None = None
    duplicate_threshold: float | None = None


@dataclass(kw_only=True)
class Verdict:
    """What one expert said of one image.

    Attributes:
        image_id: of the identity.
        expert: its name, or "combined" for what became of all of them.
        outlier: probability in [0, 1] that the image shows somebody else.
        reason: in the words of the expert, where it gives one.
    """

    image_id: str
    expert: str
    outlier: float
    reason: str | None = None


@dataclass(kw_only=True)
class JudgeEvidence:
    """What the experts of the judging job said of the identity.

    Attributes:
        asked: why the vision model was asked: "all", "unsure" or "audit"; None: it was not.
        sheets: images of its faces that the vision model was shown.
        problem: why the vision model did not judge it, or only a part of it.
        restored: images that `clean` had taken out, and the experts together did not.
        verdicts: in the order of the images, and of the experts for each.
    """

    asked: str | None = None
    sheets: int = 0
    problem: str | None = None
    restored: list[str] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Parquet hands out a struct as a dictionary.
        self.verdicts = [v if isinstance(v, Verdict) else Verdict(**v) for v in self.verdicts]


@dataclass(kw_only=True)
class ScreenEvidence:
    """What the screening job measured: the nearest gallery face and the nearest other identity.

    `gallery_identity` and `gallery_image` name that face in the gallery's face set.
    """

    gallery: str | None = None
    gallery_identity: str | None = None
    gallery_image: str | None = None
    gallery_similarity: float | None = None
    gallery_threshold: float | None = None
    nearest: str | None = None
    nearest_similarity: float | None = None
    nearest_threshold: float | None = None


@dataclass(kw_only=True)
class ExpandEvidence:
    """How the expansion job made images of the identity.

    Attributes:
        wanted: images to be made.
        drawn: images made until there were so many, or the attempts were used up.
        threshold: `Image.similarity` that an image needed.
        unreached: images whose attributes were not reached within the steps allowed.
    """

    wanted: int
    drawn: int
    threshold: float
    unreached: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Try:
    """A picture that was drawn for a reference, as the gates of the seed job measured it.

    Attributes:
        faces: that were found.
        size: shorter side of the face's box, in pixels of the picture; None, as all that follow,
            where there is no single face to measure.
        sharpness: as `raypipe.gates` measures it.
        yaw: degrees.
        pitch: degrees.
        flatness: likeness to a drawing, as `raypipe.gates` measures it.
        rejected: None where it passed, else "seed:reason".
    """

    faces: int
    size: float | None = None
    sharpness: float | None = None
    yaw: float | None = None
    pitch: float | None = None
    flatness: float | None = None
    rejected: str | None = None


@dataclass(kw_only=True)
class SeedEvidence:
    """How the seed job drew the identity's reference picture.

    Attributes:
        prompt: text that every picture is drawn from.
        negative: text of what no picture is to show.
        attributes: name to value, drawn from the grammar.
        tries: in the order in which they were drawn.
    """

    prompt: str
    negative: str
    attributes: dict[str, str]
    tries: list[Try] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Parquet hands out a map as pairs, and a struct as a dictionary.
        self.attributes = dict(self.attributes)
        self.tries = [found if isinstance(found, Try) else Try(**found) for found in self.tries]


@dataclass(kw_only=True)
class Identity:
    """One person and all images of that person.

    Attributes:
        identity_id: unique in the set.
        index: position in the order of the source, unique in the set.
        source: where the person came from: "base", "new", a gallery's name.
        rejected: None while kept, else "job:reason".
    """

    identity_id: str
    index: int
    source: str
    images: list[Image]
    rejected: str | None = None
    seed: SeedEvidence | None = None
    clean: CleanEvidence | None = None
    judge: JudgeEvidence | None = None
    screen: ScreenEvidence | None = None
    expand: ExpandEvidence | None = None

    @property
    def kept(self) -> list[Image]:
        """Images that are not rejected."""
        return [image for image in self.images if image.rejected is None]


_IMAGE = pa.struct(
    [
        ("image_id", pa.string()),
        ("data", pa.binary()),
        ("source", pa.string()),
        ("parent", pa.string()),
        ("generator", pa.string()),
        ("weights", pa.string()),
        ("prompt", pa.string()),
        ("seed", pa.int64()),
        ("embedding", pa.list_(pa.float32())),
        ("similarity", pa.float64()),
        ("nearest", pa.string()),
        ("nearest_similarity", pa.float64()),
        ("cluster", pa.int32()),
        ("rejected", pa.string()),
    ]
)
_SEED = pa.struct(
    [
        ("prompt", pa.string()),
        ("negative", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
        (
            "tries",
            pa.list_(
                pa.struct(
                    [
                        ("faces", pa.int32()),
                        ("size", pa.float64()),
                        ("sharpness", pa.float64()),
                        ("yaw", pa.float64()),
                        ("pitch", pa.float64()),
                        ("flatness", pa.float64()),
                        ("rejected", pa.string()),
                    ]
                )
            ),
        ),
    ]
)
_CLEAN = pa.struct(
    [
        ("rule", pa.string()),
        ("threshold", pa.float64()),
        ("cluster_sizes", pa.list_(pa.int32())),
        ("duplicates", pa.list_(pa.string())),
        ("duplicate_similarity", pa.float64()),
        ("duplicate_threshold", pa.float64()),
    ]
)
_JUDGE = pa.struct(
    [
        ("asked", pa.string()),
        ("sheets", pa.int32()),
        ("problem", pa.string()),
        ("restored", pa.list_(pa.string())),
        (
            "verdicts",
            pa.list_(
                pa.struct(
                    [
                        ("image_id", pa.string()),
                        ("expert", pa.string()),
                        ("outlier", pa.float64()),
                        ("reason", pa.string()),
                    ]
                )
            ),
        ),
    ]
)
SCREEN = pa.struct(
    [
        ("gallery", pa.string()),
        ("gallery_identity", pa.string()),
        ("gallery_image", pa.string()),
        ("gallery_similarity", pa.float64()),
        ("gallery_threshold", pa.float64()),
        ("nearest", pa.string()),
        ("nearest_similarity", pa.float64()),
        ("nearest_threshold", pa.float64()),
    ]
)
_EXPAND = pa.struct(
    [
        ("wanted", pa.int32()),
        ("drawn", pa.int32()),
        ("threshold", pa.float64()),
        ("unreached", pa.list_(pa.string())),
    ]
)
SCHEMA = pa.schema(
    [
        ("identity_id", pa.string()),
        ("index", pa.int64()),
        ("source", pa.string()),
        ("images", pa.list_(_IMAGE)),
        ("rejected", pa.string()),
        ("seed", _SEED),
        ("clean", _CLEAN),
        ("judge", _JUDGE),
        ("screen", SCREEN),
        ("expand", _EXPAND),
        ("digest", pa.binary(32)),
    ]
)
HEADS = ["identity_id", "index", "source", "rejected"]
_EVIDENCE: dict[str, type] = {
    "seed": SeedEvidence,
    "clean": CleanEvidence,
    "judge": JudgeEvidence,
    "screen": ScreenEvidence,
    "expand": ExpandEvidence,
}


def _feed(digest: Any, value: Any) -> None:
    """Hashes a value unambiguously: a type tag, a length where there is one, the bytes."""
    match value:
        case None:
            digest.update(b"n")
        case str():
            encoded = value.encode()
            digest.update(b"s" + struct.pack("<q", len(encoded)) + encoded)
        case bytes():
            digest.update(b"b" + struct.pack("<q", len(value)))
            digest.update(value)
        case int() | np.integer():
            digest.update(b"i" + struct.pack("<q", int(value)))
        case float() | np.floating():
            digest.update(b"f" + struct.pack("<d", float(value)))
        case np.ndarray():
            digest.update(b"a" + struct.pack("<q", value.size))
            digest.update(np.ascontiguousarray(value, dtype="<f4").tobytes())
        case dict():
            _feed(digest, [item for pair in value.items() for item in pair])
        case list():
            digest.update(b"l" + struct.pack("<q", len(value)))
            for item in value:
                _feed(digest, item)
        case _:
            for part in fields(value):
                _feed(digest, getattr(value, part.name))


def row_digest(identity: Identity) -> bytes:
    """SHA-256 (32 bytes) of everything a row holds."""
    digest = hashlib.sha256()
    _feed(digest, identity)
    return digest.digest()


def to_table(identities: Sequence[Identity]) -> pa.Table:
    """Rows of a face set, digests filled in."""
    rows = [
        {
            "identity_id": identity.identity_id,
            "index": identity.index,
            "source": identity.source,
            "images": [vars(image) for image in identity.images],
            "rejected": identity.rejected,
            **{
                name: asdict(found) if (found := getattr(identity, name)) else None
                for name in _EVIDENCE
            },
            "digest": row_digest(identity),
        }
        for identity in identities
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def to_vectors(column: pa.ListArray) -> list[np.ndarray | None]:
    """Copies of float32 vectors, None for null, without a Python object per number."""
    values = column.values.to_numpy(zero_copy_only=False)
    offsets = column.offsets.to_numpy()
    present = column.is_valid().to_numpy(zero_copy_only=False)
    return [
        values[offsets[i] : offsets[i + 1]].copy() if present[i] else None
        for i in range(len(column))
    ]


def from_table(table: pa.Table) -> list[Identity]:
    """The identities of a table written by `to_table`, or of some of its columns.

    What is missing of an image or of the evidence has its default; bytes and source are empty.
    """
    table = table.combine_chunks()
    found: list[Identity] = []
    for batch in table.to_batches():
        lists = batch.column("images")
        images = lists.flatten()
        names = [part.name for part in images.type]
        columns = [
            to_vectors(images.field(name))
            if name == "embedding"
            else images.field(name).to_pylist()
            for name in names
        ]
        flat = [
            Image(**{"data": b"", "source": "", **dict(zip(names, values, strict=True))})
            for values in zip(*columns, strict=True)
        ]
        counts = lists.value_lengths().to_pylist()
        present = [name for name in _EVIDENCE if name in batch.schema.names]
        heads = batch.select([*HEADS, *present]).to_pylist()
        start = 0
        for head, count in zip(heads, counts, strict=True):
            evidence = {
                name: _EVIDENCE[name](**head[name]) if head[name] else None for name in present
            }
            found.append(Identity(**{**head, **evidence}, images=flat[start : start + count]))
            start += count
    return found
