"""Brings records into the order of their labels, whatever order they come in.

Their images do not fit in memory, and to fetch each from its place in a shuffled set would read the
set many times over. So they are dealt to files, each of which holds a range of labels and fits.
"""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from raypipe.formats import DamagedError, Record, Survey

_SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("label", pa.int64()),
        ("identity", pa.string()),
        ("image_id", pa.string()),
        ("feature", pa.list_(pa.float32())),
    ]
)
_BUCKET_IMAGES = 25_000  # 200 MB of 112×112 JPEG
_MOST_BUCKETS = 256  # files open at a time
_BUFFERED = 64 * 2**20  # bytes held before they are dealt out


def by_label(records: Iterable[Record], survey: Survey, folder: str) -> Iterator[Record]:
    """The same records, labels rising, and in the order they came within a label.

    Args:
        survey: of the set the records are from.
        folder: an empty local folder, in which there is room for the set.

    Raises:
        DamagedError: after the last record, where `records` does.
    """
    images = max(_BUCKET_IMAGES, -(-survey.images // _MOST_BUCKETS))
    bucket = (np.cumsum(survey.counts) - survey.counts) // images  # of each label
    of_label = dict(zip(survey.labels.tolist(), bucket.tolist(), strict=True))
    damage = _deal(records, of_label, folder)
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        with pa.OSFile(path) as stream, pa.ipc.open_stream(stream) as batches:
            table = batches.read_all()
        os.unlink(path)
        order = np.argsort(table["label"].to_numpy(), kind="stable")
        for batch in table.take(pa.array(order)).to_batches(max_chunksize=1000):
            yield from _records(batch)
    if damage:
        raise damage


def _deal(records: Iterable[Record], of_label: dict[int, int], folder: str) -> DamagedError | None:
    """Writes each record to the file of its label."""
    writers: dict[int, pa.RecordBatchStreamWriter] = {}
    waiting: dict[int, list[Record]] = {}

    def flush() -> None:
        for number, some in waiting.items():
            if number not in writers:
                path = os.path.join(folder, f"{number:06d}.arrow")
                writers[number] = pa.ipc.new_stream(path, _SCHEMA)
            columns = zip(*some, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, _SCHEMA, strict=True)]
            writers[number].write_batch(pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA))
        waiting.clear()

    held, damage = 0, None
    try:
        for record in records:
            waiting.setdefault(of_label[record.label], []).append(record)
            held += len(record.image)
            if held > _BUFFERED:
                flush()
                held = 0
    except DamagedError as error:  # comes when all that is intact has come
        damage = error
    flush()
    for writer in writers.values():
        writer.close()
    return damage


def _records(batch: pa.RecordBatch) -> Iterator[Record]:
    columns = [batch.column(name).to_pylist() for name in _SCHEMA.names]
    for image, label, identity, image_id, feature in zip(*columns, strict=True):
        vector = None if feature is None else np.array(feature, np.float32)
        yield Record(image, label, identity, image_id, vector)
