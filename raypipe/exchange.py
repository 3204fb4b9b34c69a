"""Brings the images of a face set into the order of training: a shuffle through files.

Two passes, both of bounded memory, each file on its own, so that both run on any number of workers
and a killed run goes on where it was. First every group of files of the set becomes one exchange
file (Arrow IPC) with a record batch for each shard; then each shard collects its batch from every
exchange file and sorts it.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pyarrow as pa

from raypipe import storage
from raypipe.faceset import ROWS, FaceSet
from raypipe.training_set import FLAT

EXCHANGE = "exchange"
# Bytes of images that one exchange file is made of. More makes fewer files, of which every shard
# reads a piece; a worker holds about three times as much.
_GROUP_BYTES = 256 * 2**20
# Requests that wait on an object store at the same time.
_READERS = 8


def file_groups(face_set: FaceSet, group_bytes: int = _GROUP_BYTES) -> list[list[str]]:
    """The files of a face set, cut into groups of at most so many bytes where files are smaller."""
    groups: list[list[str]] = []
    room = 0
    for entry in storage.listdir(storage.join(face_set.root, ROWS)):
        if not entry.name.endswith(".parquet"):
            continue
        if not groups or entry.size > room:
            groups.append([])
            room = group_bytes
        groups[-1].append(entry.path)
        room -= entry.size
    return groups


def exchange_file(root: str, number: int) -> str:
    """Path of an exchange file."""
    return storage.join(root, EXCHANGE, _name(number))


def _name(number: int) -> str:
    return f"{number:06d}.arrow"


def spread(path: str, tables: Iterable[pa.Table], shards: Sequence[range]) -> None:
    """Writes rows (`FLAT`), sorted by position, with one record batch for each shard."""
    rows = pa.concat_tables([FLAT.empty_table(), *tables]).sort_by("position").combine_chunks()
    ends = [positions.stop for positions in shards]
    cuts = np.searchsorted(rows["position"].to_numpy(), [0, *ends])
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, FLAT) as writer:
        for first, last in pairwise(cuts):
            batches = rows.slice(first, last - first).to_batches()
            writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], FLAT))
    storage.write_bytes(path, buffer.getvalue())


def gather(root: str, groups: int, shard: int, positions: range) -> pa.Table:
    """The rows of a shard, which has these positions, in order, from all exchange files."""
    where, folder = storage.filesystem(storage.join(root, EXCHANGE))

    def piece(number: int) -> pa.RecordBatch:
        with where.open_input_file(f"{folder}/{_name(number)}") as stream:
            return pa.ipc.open_file(stream).get_batch(shard)

    with ThreadPoolExecutor(_READERS) as readers:
        table = pa.Table.from_batches(readers.map(piece, range(groups)), FLAT)
    table = table.sort_by("position")
    found = table["position"].to_numpy()
    assert np.array_equal(found, positions), f"shard {shard}: an image is missing or there twice"
    return table
