"""How fast sets are read, beside what a user would take instead, and what converting one holds.

python benchmarks/formats.py [--images 30000] [--records 1000000] [--skip speed|memory]

Speed: a set of random images of 8 KB is written in every format; each is read through by raypipe
and by the usual tool, turn by turn on one core, from the page cache, without decoding. The best of
five turns counts. Memory: a set of small records goes through `raypipe convert`, from one format
into the next; anonymous memory (what is not a file's pages) is sampled while it does.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from raypipe.formats import Record, open_reader, open_writer

_BYTES, _PER_PERSON, _TURNS = 8000, 50, 5
_CHAIN = ["webdataset", "insightface", "parquet", "hsface", "im2rec", "webdataset"]


def records(count: int, size: int) -> Iterator[Record]:
    """Images that only look like JPEG: nothing here decodes them."""
    rng = np.random.default_rng(0)
    for number in range(count):
        image = b"\xff\xd8\xff\xe0" + rng.bytes(size - 4)
        label = number // _PER_PERSON
        yield Record(image, label, f"{label}", f"{number}")


def write(path: str, format: str, count: int, size: int) -> None:
    with open_writer(path, format) as writer:
        for record in records(count, size):
            writer.write(record)


def by_raypipe(path: str) -> int:
    found = 0
    for record in open_reader(path).records():
        found += len(record.image) > 0 and record.label >= 0
    return found


def by_lmdb(path: str) -> int:
    """As SOTA-FR's loader does: a key, a get, an unpackb."""
    import lmdb
    import msgpack

    with lmdb.open(path, subdir=False, readonly=True, lock=False) as env, env.begin() as txn:
        count = msgpack.unpackb(txn.get(b"__len__"))
        found = 0
        for index in range(count):
            image, label = msgpack.unpackb(txn.get(str(index).encode()))
            found += len(image) > 0 and label >= 0
    return found


def by_webdataset(path: str) -> int:
    import webdataset

    shards = sorted(str(shard) for shard in Path(path).glob("*.tar"))
    data = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    found = 0
    for sample in data:
        found += len(sample["jpg"]) > 0 and int(sample["cls"]) >= 0
    return found


def _datasets(path: str, streaming: bool, rows: int = 0) -> int:
    import datasets

    files = sorted(str(file) for file in Path(path).rglob("*.parquet"))
    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=streaming, cache_dir=cache
        )
        data = data.cast_column("image", datasets.Image(decode=False))
        data = data.select_columns(["image", "label"])
        start, found = time.perf_counter(), 0
        if rows:
            for batch in data.iter(rows):
                for image, label in zip(batch["image"], batch["label"], strict=True):
                    found += len(image["bytes"]) > 0 and label >= 0
        else:
            for row in data:
                found += len(row["image"]["bytes"]) > 0 and row["label"] >= 0
        _datasets.seconds = time.perf_counter() - start
    return found


def by_datasets(path: str) -> int:
    """From its Arrow cache, which took a pass over the set to make."""
    return _datasets(path, streaming=False)


def by_datasets_batches(path: str) -> int:
    return _datasets(path, streaming=False, rows=1000)


def by_datasets_streaming(path: str) -> int:
    return _datasets(path, streaming=True)


def by_datasets_streaming_batches(path: str) -> int:
    return _datasets(path, streaming=True, rows=1000)


def by_pyarrow(path: str) -> int:
    import pyarrow.parquet as pq

    found = 0
    for file in sorted(Path(path).rglob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(1000, columns=["image", "label"]):
            for row in batch.to_pylist():
                found += len(row["image"]["bytes"]) > 0 and row["label"] >= 0
    return found


def by_struct(path: str) -> int:
    """RecordIO as a script in a notebook would read it: headers only, no split records."""
    import struct

    found = 0
    with open(Path(path) / "train.rec", "rb") as file:
        while head := file.read(8):
            size = struct.unpack("<II", head)[1] & (1 << 29) - 1
            data = file.read(size)
            file.seek(-size % 4, io.SEEK_CUR)
            flag, label = struct.unpack_from("<If", data)
            found += flag == 0 and label >= 0 and len(data[24:]) > 0
    return found


READERS: dict[str, dict[str, Callable[[str], int]]] = {
    "hsface": {"raypipe": by_raypipe, "lmdb + msgpack": by_lmdb},
    "webdataset": {"raypipe": by_raypipe, "webdataset": by_webdataset},
    "parquet": {
        "raypipe": by_raypipe,
        "datasets": by_datasets,
        "datasets, 1,000 rows at a time": by_datasets_batches,
        "datasets, streaming": by_datasets_streaming,
        "datasets, streaming, 1,000 rows at a time": by_datasets_streaming_batches,
        "pyarrow, to_pylist": by_pyarrow,
    },
    "im2rec": {"raypipe": by_raypipe, "struct by hand": by_struct},
}


def speed(folder: str, images: int) -> None:
    """Prints images/s of every reader; `datasets` is not charged for opening the set."""
    print(f"{images:,} images of {_BYTES:,} bytes, best of {_TURNS} turns, one core\n")
    print("| format | reader | images/s |\n|---|---|---|")
    for format, readers in READERS.items():
        path = os.path.join(folder, format)
        write(path, format, images, _BYTES)
        best: dict[str, float] = {}
        for _ in range(_TURNS):
            for name, read in readers.items():
                start = time.perf_counter()
                assert read(path) == images, f"{name} lost an image"
                seconds = time.perf_counter() - start
                if name.startswith("datasets"):
                    seconds = _datasets.seconds
                best[name] = min(best.get(name, seconds), seconds)
        for name, seconds in best.items():
            print(f"| {format} | {name} | {images / seconds:,.0f} |", flush=True)


def _anonymous(pid: int) -> int:
    """Anonymous memory of a process in bytes, 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def _converted(source: str, target: str, format: str) -> tuple[float, list[int]]:
    """Seconds, and anonymous memory four times a second, of a `raypipe convert`."""
    command = [sys.executable, "-m", "jobs.cli", "convert", source, target, "--format", format]
    start, samples = time.perf_counter(), []
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        while process.poll() is None:
            samples.append(_anonymous(process.pid))
            time.sleep(0.25)
        assert process.returncode == 0, process.stderr.read().decode()
    return time.perf_counter() - start, [size for size in samples if size]


def memory(folder: str, count: int) -> None:
    """Prints peak memory of converting a tenth of the records and all of them, link by link."""
    print(f"\nConverting {count // 10:,} and {count:,} records of 200 bytes\n")
    print(
        "| from | to | records/s | peak of a tenth, MiB | peak of all, MiB |\n|---|---|---|---|---|"
    )
    sizes = (count // 10, count)
    for size in sizes:
        write(os.path.join(folder, f"{_CHAIN[0]}-{size}-0"), _CHAIN[0], size, 200)
    for link, (first, second) in enumerate(pairwise(_CHAIN)):
        peaks = []
        for size in sizes:
            source = os.path.join(folder, f"{first}-{size}-{link}")
            target = os.path.join(folder, f"{second}-{size}-{link + 1}")
            seconds, samples = _converted(source, target, second)
            peaks.append(max(samples) / 2**20)
        print(
            f"| {first} | {second} | {count / seconds:,.0f} | {peaks[0]:,.0f} | {peaks[1]:,.0f} |",
            flush=True,
        )


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--skip", choices=["speed", "memory"])
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    with tempfile.TemporaryDirectory() as folder:
        if options.skip != "speed":
            speed(folder, options.images)
        if options.skip != "memory":
            memory(folder, options.records)


if __name__ == "__main__":
    main()
