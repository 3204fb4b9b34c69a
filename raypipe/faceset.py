"""The face set: a folder of Parquet files, one row per identity, each row with its images.

A row is what a job reads, streams, resumes by and writes. Encoded bytes travel, never decoded
arrays. A rejected image or identity stays in its row with the reason.

Layout of a set: `manifest.json` (see `raypipe.manifest`), `run.json`, `rows/*.parquet`.
"""

import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.errors import UserError

ROWS = "rows"
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
        ("screen", SCREEN),
        ("expand", _EXPAND),
        ("digest", pa.binary(32)),
    ]
)
_HEADS = ["identity_id", "index", "source", "rejected"]
_EVIDENCE: dict[str, type] = {
    "seed": SeedEvidence,
    "clean": CleanEvidence,
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
        heads = batch.select([*_HEADS, *present]).to_pylist()
        start = 0
        for head, count in zip(heads, counts, strict=True):
            evidence = {
                name: _EVIDENCE[name](**head[name]) if head[name] else None for name in present
            }
            found.append(Identity(**{**head, **evidence}, images=flat[start : start + count]))
            start += count
    return found


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """An identity as its embeddings alone.

    Attributes:
        image_ids: the images that have an embedding, n of them.
        image_rejected: their reasons, in step.
        embeddings: float32 (n, D), raw.
    """

    identity_id: str
    index: int
    source: str
    rejected: str | None
    image_ids: list[str]
    image_rejected: list[str | None]
    embeddings: np.ndarray

    @property
    def person(self) -> np.ndarray:
        """The embeddings that stand for the person, float32 (m, D): of kept images, or, where there
        are none, the vector that images are to be made from."""
        for wanted in (None, NO_PICTURE):
            found = [i for i, reason in enumerate(self.image_rejected) if reason == wanted]
            if found:
                return self.embeddings[found]
        return self.embeddings[:0]


class FaceSet:
    """A face set on any filesystem, opened for reading."""

    def __init__(self, root: str) -> None:
        self.root = root

    def files(self) -> list[str]:
        """Parquet files, in the order of their names.

        Raises:
            UserError: where the folder holds none.
        """
        found = [
            entry.path
            for entry in storage.listdir(storage.join(self.root, ROWS))
            if entry.name.endswith(".parquet")
        ]
        if not found:
            raise UserError(f"{self.root}: not a face set (no {ROWS}/*.parquet in it)")
        return found

    def _batches(
        self, files: Iterable[str] | None, columns: list[str] | None, rows: int = 16
    ) -> Iterator[pa.RecordBatch]:
        for path in files if files is not None else self.files():
            where, inner = storage.filesystem(path)
            try:
                with where.open_input_file(inner) as stream:
                    yield from pq.ParquetFile(stream).iter_batches(rows, columns=columns)
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"{path}: not a readable Parquet file ({error})") from error

    def tables(
        self, columns: list[str], files: Iterable[str] | None = None, rows: int = 1024
    ) -> Iterator[pa.Table]:
        """Some columns, `rows` rows at a time; "images.list.element.rejected" is a nested one."""
        for batch in self._batches(files, columns, rows):
            yield pa.Table.from_batches([batch])

    def tables_of(self, path: str) -> Iterator[pa.Table]:
        """Whole rows of one file, a few at a time."""
        for batch in self._batches([path], None):
            yield pa.Table.from_batches([batch])

    def iter_identities(self, files: Iterable[str] | None = None) -> Iterator[Identity]:
        """Every identity with its images, a few rows in memory at a time."""
        for batch in self._batches(files, None):
            yield from from_table(pa.Table.from_batches([batch]))

    def iter_without_bytes(
        self, names: Sequence[str], files: Iterable[str] | None = None
    ) -> Iterator[Identity]:
        """Every identity with some fields of its images, `names` of them; no evidence."""
        columns = [*_HEADS, *(f"images.list.element.{name}" for name in names)]
        for batch in self._batches(files, columns, 64):
            yield from from_table(pa.Table.from_batches([batch]))

    def read(self, identity_ids: Sequence[str]) -> list[Identity]:
        """The named identities, in the order asked for; one that is missing is left out."""
        where, _ = storage.filesystem(self.root)
        paths = [storage.filesystem(path)[1] for path in self.files()]
        data = pyarrow.dataset.dataset(paths, filesystem=where, format="parquet", schema=SCHEMA)
        wanted = pyarrow.dataset.field("identity_id").isin(pa.array(identity_ids, pa.string()))
        rows = {item.identity_id: item for item in from_table(data.to_table(filter=wanted))}
        return [rows[identity_id] for identity_id in identity_ids if identity_id in rows]

    def iter_embeddings(self, files: Iterable[str] | None = None) -> Iterator[Embedded]:
        """Embeddings without a byte of an image read."""
        columns = _HEADS + [
            f"images.list.element.{name}" for name in ("image_id", "embedding", "rejected")
        ]
        for batch in self._batches(files, columns, 256):
            lists = batch.column("images")
            images = lists.flatten()
            ids = images.field("image_id").to_pylist()
            reasons = images.field("rejected").to_pylist()
            vectors = to_vectors(images.field("embedding"))
            heads = batch.select(_HEADS).to_pylist()
            start = 0
            for head, count in zip(heads, lists.value_lengths().to_pylist(), strict=True):
                has = [i for i in range(start, start + count) if vectors[i] is not None]
                present = [
                    vector for vector in vectors[start : start + count] if vector is not None
                ]
                yield Embedded(
                    **head,
                    image_ids=[ids[i] for i in has],
                    image_rejected=[reasons[i] for i in has],
                    embeddings=np.stack(present) if has else np.zeros((0, 0), np.float32),
                )
                start += count


def write_rows(root: str, name: str, identities: Sequence[Identity]) -> None:
    """Writes one Parquet file of a set, atomically."""
    buffer = pa.BufferOutputStream()
    pq.write_table(to_table(identities), buffer)
    storage.write_bytes(storage.join(root, ROWS, name), buffer.getvalue().to_pybytes())


def write_files(root: str, identities: Iterable[Identity], name: str, size: int = 256) -> None:
    """Writes the files `name`-000000.parquet and so on of a set, `size` rows each."""
    rows = iter(identities)
    for number in itertools.count():
        if not (part := list(itertools.islice(rows, size))):
            return
        write_rows(root, f"{name}-{number:06d}.parquet", part)
