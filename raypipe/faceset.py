"""The face set: a folder of Parquet files, one row per identity, each row with its images.

A row is what a job reads, streams, resumes by and writes; `raypipe.identities` says what it holds.

Layout of a set: `manifest.json` (see `raypipe.manifest`), `run.json`, `rows/*.parquet`.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.errors import UserError
from raypipe.identities import HEADS, NO_PICTURE, SCHEMA, Identity, from_table, to_table, to_vectors

ROWS = "rows"
# Files that are read at the same time, for the sake of an object store that answers slowly.
_READERS = 8
_NAMES = pa.schema([SCHEMA.field("identity_id")])


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
        columns = [*HEADS, *(f"images.list.element.{name}" for name in names)]
        for batch in self._batches(files, columns, 64):
            yield from from_table(pa.Table.from_batches([batch]))

    def read(self, identity_ids: Sequence[str]) -> list[Identity]:
        """The named identities, in the order asked for; one that is missing is left out.

        Of all rows the names are read, and images only where somebody wanted is found: a filter of
        pyarrow reads whatever lies between the first and the last name of a file, which is the
        whole set where names are not in order.
        """
        wanted = pa.array(identity_ids, pa.string())

        def find(path: str) -> list[Identity]:
            names = pa.concat_tables([_NAMES.empty_table(), *self.tables(["identity_id"], [path])])
            if not pc.any(pc.is_in(names["identity_id"], value_set=wanted)).as_py():
                return []
            tables = (
                table.filter(pc.is_in(table["identity_id"], value_set=wanted))
                for table in self.tables_of(path)
            )
            return [identity for table in tables for identity in from_table(table)]

        with ThreadPoolExecutor(_READERS) as readers:
            found = readers.map(find, self.files())
            rows = {item.identity_id: item for part in found for item in part}
        return [rows[identity_id] for identity_id in identity_ids if identity_id in rows]

    def iter_embeddings(self, files: Iterable[str] | None = None) -> Iterator[Embedded]:
        """Embeddings without a byte of an image read."""
        columns = HEADS + [
            f"images.list.element.{name}" for name in ("image_id", "embedding", "rejected")
        ]
        for batch in self._batches(files, columns, 256):
            lists = batch.column("images")
            images = lists.flatten()
            ids = images.field("image_id").to_pylist()
            reasons = images.field("rejected").to_pylist()
            vectors = to_vectors(images.field("embedding"))
            heads = batch.select(HEADS).to_pylist()
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
