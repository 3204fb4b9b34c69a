"""Writes a folder of Parquet files that Hugging Face `datasets` and DuckDB open as they are.

Layout: `data/train-00000-of-00003.parquet`, ... (columns `image`, `label`, `identity`, `image_id`),
`README.md` (dataset card) and `croissant.json`.
"""

import os
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.card import README, Column, SetFacts, Shard, card
from raypipe.croissant import CROISSANT, croissant
from raypipe.formats import Record, hugging_face
from raypipe.licences import NOT_STATED, Use
from raypipe.training_set import content_digest

DATA = "data"
_FILE_IMAGES = 50_000  # 400 MB of 112×112 JPEG
_GROUP_BYTES = 32 * 2**20
COLUMNS = (
    Column(name="label", kind="int64", about="class number, 0 to the number of identities - 1"),
    Column(name="identity", kind="string", about="who it is, in the words of the source"),
    Column(name="image_id", kind="string", about="key of the image in the source"),
)
_SCHEMA = hugging_face.schema(
    [("label", pa.int64()), ("identity", pa.string()), ("image_id", pa.string())]
)
_OPTIONS = hugging_face.options(_SCHEMA, ["label"])


class ParquetSetWriter:
    """Writes a set in the order its records come; holds a row group of them, and a count a label.

    Labels are written as numbers and not as a ClassLabel: its names would stand in the head of
    every file, some megabytes of them in a set of 300,000 people.
    """

    by_label = False

    def __init__(self, path: str) -> None:
        """See `raypipe.formats.open_writer`; how many files there are shows at the end."""
        self._path = path
        os.makedirs(os.path.join(path, DATA))
        self._waiting: list[Record] = []
        self._held = 0
        self._per_label: Counter[int] = Counter()
        self._images = 0
        self._files: list[Shard] = []
        self._writer: pq.ParquetWriter | None = None

    def write(self, record: Record) -> None:
        """See `raypipe.formats.Writer`."""
        self._waiting.append(record)
        self._held += len(record.image)
        self._per_label[record.label] += 1
        self._images += 1
        full = len(self._waiting) == hugging_face.ROW_GROUP or self._held > _GROUP_BYTES
        if self._images % _FILE_IMAGES == 0:
            self._flush()
            self._close()
        elif full:
            self._flush()

    def finish(self) -> None:
        """See `raypipe.formats.Writer`."""
        if self._waiting or not self._images:
            self._flush()
        self._close()
        digest = content_digest(shard.sha256 for shard in self._files)
        shards = [self._renamed(number, shard) for number, shard in enumerate(self._files)]
        counts = self._per_label.values()
        facts = SetFacts(
            name=f"faces-{digest[:12]}",
            about="Images of faces with the identity each shows, for training face recognition; "
            "converted by raypipe from a set in another format, every image as the bytes it was.",
            identities=len(counts),
            images=self._images,
            fewest=min(counts, default=0),
            most=max(counts, default=0),
            pattern=f"{DATA}/train-*.parquet",
            shards=shards,
            tars=[],
            columns=COLUMNS,
            provenance="Converted from another format. Whoever made the set knows where its images "
            "come from; write it here.\n",
            uses=[
                Use(
                    kind="source",
                    name="the set it was converted from",
                    role="images of the set",
                    licence=NOT_STATED,
                    said_by="nobody",
                )
            ],
        )
        storage.write_bytes(os.path.join(self._path, README), card(facts).encode())
        storage.write_json(os.path.join(self._path, CROISSANT), croissant(facts))

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._local(self._unfinished()), _SCHEMA, **_OPTIONS)
        data = pa.array([record.image for record in self._waiting], pa.binary())
        first = self._images - len(self._waiting)
        names = (f"{number:09d}" for number in range(first, self._images))
        columns = [
            hugging_face.images(data, names),
            pa.array([record.label for record in self._waiting], pa.int64()),
            pa.array([record.identity for record in self._waiting], pa.string()),
            pa.array([record.image_id for record in self._waiting], pa.string()),
        ]
        self._writer.write_table(pa.table(columns, schema=_SCHEMA))
        self._waiting, self._held = [], 0

    def _close(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._writer = None
        path = self._unfinished()
        size = os.path.getsize(self._local(path))
        sha256 = storage.sha256_file(self._local(path))
        self._files.append(Shard(path=path, size=size, sha256=sha256))

    def _unfinished(self) -> str:
        return f"{DATA}/{len(self._files):05d}.parquet"

    def _renamed(self, number: int, shard: Shard) -> Shard:
        path = f"{DATA}/train-{number:05d}-of-{len(self._files):05d}.parquet"
        os.rename(self._local(shard.path), self._local(path))
        return Shard(path=path, size=shard.size, sha256=shard.sha256)

    def _local(self, path: str) -> str:
        return os.path.join(self._path, path)
