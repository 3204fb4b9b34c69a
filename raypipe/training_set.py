"""The training set: one row per image in the order of training, as Parquet and as WebDataset.

Layout: `parquet/shard-000000.parquet`, ..., `webdataset/shard-000000.tar`, ... and
`webdataset/index.json`. Shard k of either holds the positions k·S to (k+1)·S - 1. The same images
give the same files, byte for byte.
"""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.formats import hugging_face
from raypipe.formats.tar import Shard
from raypipe.identities import Identity
from raypipe.similarity import similarities

PARQUET, WEBDATASET = "parquet", "webdataset"

# Of every image: column → type, and what it is.
COLUMNS = {
    "label": (pa.int64(), "class number, 0 to the number of identities - 1"),
    "identity_id": (pa.string(), "who it is: source/name"),
    "image_id": (pa.string(), "name of the image, unique within the identity"),
    "source": (pa.string(), "which source the identity came from"),
    "phase": (pa.int32(), "phase of the curriculum, from 0"),
    "position": (pa.int64(), "place in the order of training, from 0"),
    "origin": (pa.string(), "where the bytes came from: a path in the source, or what made them"),
    "parent": (pa.string(), "image_id of the image it was made from"),
    "generator": (pa.string(), "what made it, where it is synthetic or augmented"),
    "weights": (pa.string(), "hex SHA-256 of the generator's weights"),
    "prompt": (pa.string(), "text it was made from"),
    "seed": (pa.int64(), "seed it was made from"),
    "similarity": (
        pa.float32(),
        "cosine to the centre of its identity; of an augmented image, that of its parent",
    ),
    "nearest": (
        pa.float32(),
        "cosine of its identity to the nearest other identity of the set, where it was measured",
    ),
}
_ABOUT = [(name, kind) for name, (kind, _) in COLUMNS.items()]
# How rows travel to their shard. The key is that of the WebDataset sample.
FLAT = pa.schema([("key", pa.string()), ("data", pa.binary()), *_ABOUT])


SCHEMA = hugging_face.schema(_ABOUT)


def shard_name(number: int) -> str:
    """Name of a shard without its extension."""
    return f"shard-{number:06d}"


def shard_paths(number: int) -> tuple[str, str]:
    """Paths of a shard inside the set: the Parquet file and the tar."""
    name = shard_name(number)
    return f"{PARQUET}/{name}.parquet", f"{WEBDATASET}/{name}.tar"


def shard_ranges(images: int, shard_size: int) -> list[range]:
    """The positions that each shard holds."""
    starts = range(0, images, shard_size)
    return [range(start, min(start + shard_size, images)) for start in starts]


def to_rows(
    identities: Iterable[Identity],
    labels: Mapping[str, tuple[int, int]],
    positions: np.ndarray,
    images_per_identity: int,
    nearest: np.ndarray | None = None,
) -> pa.Table:
    """The images of identities as rows of the set, not in order yet.

    Args:
        identities: with images_per_identity kept images each; those without a label are left out.
        labels: identity_id → (label, phase).
        positions: int64, as `curriculum.image_positions` returns them.
        nearest: float32, as `similarity.to_nearest` returns it; none: not measured.

    Returns:
        A table of `FLAT`.
    """
    rows = []
    for identity in identities:
        if identity.identity_id not in labels:
            continue
        label, phase = labels[identity.identity_id]
        kept = identity.kept
        assert len(kept) == images_per_identity, f"{identity.identity_id}: {len(kept)} kept images"
        measured = similarities(identity)
        measured = measured[[image.rejected is None for image in identity.images]]
        for number, (image, value) in enumerate(zip(kept, measured.tolist(), strict=True)):
            rows.append(
                {
                    "key": f"{label:07d}_{number:04d}",
                    "data": image.data,
                    "label": label,
                    "identity_id": identity.identity_id,
                    "image_id": image.image_id,
                    "source": identity.source,
                    "phase": phase,
                    "position": int(positions[label * images_per_identity + number]),
                    "origin": image.source,
                    "parent": image.parent,
                    "generator": image.generator,
                    "weights": image.weights,
                    "prompt": image.prompt,
                    "seed": image.seed,
                    "similarity": None if math.isnan(value) else value,  # JSON knows no NaN
                    "nearest": None if nearest is None else float(nearest[label]),
                }
            )
    return pa.Table.from_pylist(rows, schema=FLAT)


def to_parquet(rows: pa.Table) -> bytes:
    """One Parquet shard of rows (`FLAT`) in the order they have."""
    image = hugging_face.images(rows["data"].combine_chunks(), rows["key"].to_pylist())
    columns = [image, *(rows[name] for name, _ in _ABOUT)]
    buffer = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_arrays(columns, schema=SCHEMA),
        buffer,
        row_group_size=hugging_face.ROW_GROUP,
        **hugging_face.options(SCHEMA, ["label", "position", "phase"]),
    )
    return buffer.getvalue().to_pybytes()


def _keys_and_data(rows: pa.Table) -> tuple[list[str], list[bytes]]:
    return rows["key"].to_pylist(), rows["data"].to_pylist()


def to_tar(rows: pa.Table) -> bytes:
    """One WebDataset shard: KEY.cls (the label in digits), KEY.jpg (or .png, ...), KEY.json."""
    about = rows.select([name for name, _ in _ABOUT]).to_pylist()
    buffer = io.BytesIO()
    shard = Shard(buffer)
    for key, data, more in zip(*_keys_and_data(rows), about, strict=True):
        shard.write(key, data, more["label"], more)
    shard.close()
    return buffer.getvalue()


def write_shard(root: str, number: int, rows: Callable[[], pa.Table]) -> tuple[str, str]:
    """Writes what is missing of a shard.

    Args:
        rows: gives the rows of the shard in order; not called where both files are there.

    Returns:
        Hex SHA-256 of the Parquet file and of the tar.
    """
    parquet, tar = (storage.join(root, path) for path in shard_paths(number))
    # A file that is there is whole: every write is atomic.
    if not (storage.exists(parquet) and storage.exists(tar)):
        table = rows()
        storage.write_bytes(parquet, to_parquet(table))
        storage.write_bytes(tar, to_tar(table))
    return storage.sha256_file(parquet), storage.sha256_file(tar)


def finished_shards(root: str) -> int:
    """Shards of which both files are written; the tar is the second."""
    tars = storage.listdir(storage.join(root, WEBDATASET))
    return sum(entry.name.endswith(".tar") for entry in tars)


def remove_unfinished(root: str) -> None:
    """Removes what a killed writer left; to be called when no writer is at work."""
    for folder in (PARQUET, WEBDATASET):
        for entry in storage.listdir(storage.join(root, folder)):
            if entry.name.endswith(".tmp"):
                storage.delete(entry.path)


def write_index(root: str, images: Sequence[int]) -> None:
    """Writes the index of the tars of a set, given the images in each."""
    write_tar_index(storage.join(root, WEBDATASET), images)


def write_tar_index(folder: str, images: Sequence[int]) -> None:
    """Writes the index of the tars in a folder (`wids` format), given the images in each."""
    shards = [
        {"url": f"{shard_name(number)}.tar", "nsamples": count}
        for number, count in enumerate(images)
    ]
    index = {"wids_version": 1, "shardlist": shards}
    storage.write_json(storage.join(folder, "index.json"), index)


def generators(root: str) -> list[tuple[str, str]]:
    """What made images of the set: name and hex SHA-256 of its weights, sorted, each pair once."""
    found: set[tuple[str, str]] = set()
    for entry in storage.listdir(storage.join(root, PARQUET)):
        where, inner = storage.filesystem(entry.path)
        table = pq.read_table(inner, columns=["generator", "weights"], filesystem=where)
        pairs = table.filter(table["weights"].is_valid()).group_by(["generator", "weights"])
        found |= {
            (row["generator"] or "", row["weights"]) for row in pairs.aggregate([]).to_pylist()
        }
    return sorted(found)


def content_digest(digests: Iterable[str]) -> str:
    """SHA-256 over the digests of all shard files: in order, the Parquet file before the tar."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()
