"""Verification pairs as rows of a Parquet file: raypipe's own format, which states its folds."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.errors import UserError
from raypipe.formats.blob import Blob
from raypipe.formats.pair_set import PairSet, contiguous

SCHEMA = pa.schema(
    [
        ("first", pa.binary()),
        ("second", pa.binary()),
        ("same", pa.bool_()),
        ("first_id", pa.string()),
        ("second_id", pa.string()),
        ("fold", pa.int32()),
    ]
)
GROUP = "group"  # an optional column of strings
_ROWS = 64
_ROW_GROUP_BYTES = 32 << 20
# Encoded images do not compress. A file that unpacks to so many times its size, and some more, is
# none of images.
_RATIO, _SLACK = 32, 16 << 20
_FAILURES = (pa.ArrowException, OSError, ValueError, MemoryError)


def open_parquet(path: str) -> pq.ParquetFile:
    """Opens a file and reads its footer, which can claim no more than fits the file's size.

    Raises:
        UserError: where it is no Parquet.
    """
    where, inner = storage.filesystem(path)
    try:
        stream = where.open_input_file(inner)
        size = stream.size()
        return pq.ParquetFile(
            stream,
            pre_buffer=False,
            thrift_string_size_limit=size,
            thrift_container_size_limit=size // 4 + 64,
        )
    except _FAILURES as error:
        raise UserError(f"{path}: not readable as Parquet ({error})") from error


def read_parquet(path: str) -> PairSet:
    """Reads a file with the columns of `SCHEMA`, and `GROUP` where it has that; images that are
    equal are one object.

    Raises:
        UserError: where it is no Parquet, or a column is missing, of another type or has no value.
    """
    opened = open_parquet(path)
    for name in SCHEMA.names:
        if name not in opened.schema_arrow.names:
            raise UserError(f"{path} has no column {name!r}; expected {', '.join(SCHEMA.names)}")
    size, metadata = Blob(path).size, opened.metadata
    unpacked = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    if metadata.num_rows > size or unpacked > _RATIO * size + _SLACK:
        raise UserError(
            f"{path}: {size:,} bytes that claim to be {metadata.num_rows:,} rows of {unpacked:,} "
            "bytes: refused"
        )
    rows: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    groups: list[str | None] | None = [] if GROUP in opened.schema_arrow.names else None
    columns = SCHEMA.names if groups is None else [*SCHEMA.names, GROUP]
    known: dict[bytes, bytes] = {}  # Parquet holds an image that recurs once; so do we
    try:
        for batch in opened.iter_batches(_ROWS, columns=columns):
            for field in SCHEMA:
                found = _column(batch.column(field.name), field, len(rows["same"]), path)
                rows[field.name].extend(found)
            for name in ("first", "second"):
                rows[name][-len(batch) :] = [
                    known.setdefault(image, image) for image in rows[name][-len(batch) :]
                ]
            if groups is not None:
                groups.extend(_cast(batch.column(GROUP), GROUP, pa.string(), path))
    except _FAILURES as error:
        raise UserError(f"{path}: not readable as Parquet ({error})") from error
    return PairSet(
        images=_interleaved(rows["first"], rows["second"]),
        issame=np.array(rows["same"], bool),
        folds=np.array(rows["fold"], np.int32),
        ids=_interleaved(rows["first_id"], rows["second_id"]),
        groups=groups,
    )


def _interleaved(first: list[Any], second: list[Any]) -> list[Any]:
    return [item for pair in zip(first, second, strict=True) for item in pair]


def _column(column: pa.Array, field: pa.Field, start: int, path: str) -> list[Any]:
    values = _cast(column, field.name, field.type, path)
    if None in values:
        raise UserError(f"{path}: row {start + values.index(None)}: no {field.name}")
    return values


def _cast(column: pa.Array, name: str, kind: pa.DataType, path: str) -> list[Any]:
    try:
        return column.cast(kind).to_pylist()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"{path}: column {name!r} should be {kind}") from error


def write_parquet(
    local: str,
    images: Sequence[bytes],
    issame: np.ndarray,
    folds: np.ndarray | None,
    ids: Sequence[str] | None,
    groups: Sequence[str | None] | None = None,
) -> None:
    """Writes the columns of `SCHEMA`, and `GROUP` where there are groups; see
    `raypipe.formats.verification.write_pairs`."""
    schema = SCHEMA if groups is None else SCHEMA.append(pa.field(GROUP, pa.string()))
    if folds is None:
        folds = contiguous(len(issame))
    if ids is None:
        known: dict[bytes, int] = {}
        ids = [f"{known.setdefault(image, len(known)):06d}" for image in images]
    with pq.ParquetWriter(local, schema) as writer:
        for start, stop in _row_groups(images):
            mine = slice(2 * start, 2 * stop)
            columns = [
                images[mine][0::2],
                images[mine][1::2],
                issame[start:stop],
                ids[mine][0::2],
                ids[mine][1::2],
                folds[start:stop],
                *([] if groups is None else [groups[start:stop]]),
            ]
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))


def _row_groups(images: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Ranges of pairs whose images have about `_ROW_GROUP_BYTES`."""
    start = size = 0
    for pair in range(len(images) // 2):
        size += len(images[2 * pair]) + len(images[2 * pair + 1])
        if size >= _ROW_GROUP_BYTES:
            yield start, pair + 1
            start, size = pair + 1, 0
    if start < len(images) // 2:
        yield start, len(images) // 2
