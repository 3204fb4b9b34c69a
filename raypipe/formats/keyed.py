"""What the readers of formats have in common in which every image has a key and a label.

Such a set is cut into parts. A cheap pass over them lists every image: who it is and where its
bytes are; then any worker reads the images of an identity from where they are.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raypipe import images
from raypipe.formats import Damage, DamagedError, Listing, Record, Scan, Survey
from raypipe.identities import Identity, Image
from raypipe.reasons import REASONS

# One row an image, without its bytes.
ENTRIES = pa.schema(
    [
        ("image_id", pa.string()),
        ("identity", pa.string()),
        ("label", pa.int64()),
        ("source", pa.string()),  # where the bytes are, for `fetch`; a person can read it
        ("bytes", pa.int64()),  # of the encoded image; null where only reading it would tell
        ("rejected", pa.string()),  # why it cannot be read: "ingest:damaged"; else null
    ]
)
UNKNOWN = "."  # identity of damaged records that do not say whose they are
_KEPT = 100


class Part(NamedTuple):
    """A piece of a set to be read on its own: [start, stop) of a file, in the format's own unit."""

    path: str
    start: int
    stop: int


class KeyedReader(ABC):
    """Reads a set of keyed, labelled images. It opens files on first use and can be pickled.

    Attributes:
        path: of the set.
        source: name the identities carry.
        max_bytes: a larger image is rejected unread.
        strewn: whether `identities` found that the images of most people do not lie side by side.
    """

    def __init__(self, path: str, *, source: str, max_bytes: int) -> None:
        self.path = path
        self.source = source
        self.max_bytes = max_bytes
        self.strewn = False

    @abstractmethod
    def stamp(self) -> str | None:
        """See `raypipe.formats.Reader`: names, sizes and times of the files."""

    @abstractmethod
    def parts(self) -> list[Part]:
        """The pieces of the set, in order, each at most some 50,000 images or 256 MB."""

    def sequence(self) -> list[Part]:
        """The pieces as `records` reads them, where finding those of `parts` takes a reading."""
        return self.parts()

    @abstractmethod
    def entries(self, part: Part) -> pa.Table:
        """The images of a part in order (`ENTRIES`), with as few bytes read as the format allows.

        A damaged record is an entry that is rejected as "ingest:damaged", with identity `UNKNOWN`
        where it cannot be told, and a source that names the byte offset.
        """

    @abstractmethod
    def part_records(self, part: Part) -> Iterator[Record | Damage]:
        """The records of a part in order, read in one go; what is damaged in their midst."""

    @abstractmethod
    def fetch(self, sources: Sequence[str]) -> list[bytes | Damage]:
        """The images at places that `entries` named, in step.

        What a damage says is the reason of the image's rejection, where it is such a reason.
        """

    def survey(self) -> Survey:
        """See `raypipe.formats.Reader`."""
        last, in_order = -1, True
        seen, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for part in self.parts():
            table = self.entries(part)
            labels = table.filter(table["rejected"].is_null())["label"].to_numpy()
            if not len(labels):
                continue
            in_order &= bool(labels[0] >= last and np.all(np.diff(labels) >= 0))
            last = labels[-1]
            new, more = np.unique(labels, return_counts=True)
            seen, place = np.unique(np.concatenate([seen, new]), return_inverse=True)
            counts = np.bincount(place, np.concatenate([counts, more])).astype(np.int64)
        return Survey(int(counts.sum()), seen, counts, in_order)

    def records(self) -> Iterator[Record]:
        """See `raypipe.formats.Reader`."""
        damages = Damages()
        for part in self.sequence():
            for found in self.part_records(part):
                if isinstance(found, Record):
                    yield found
                else:
                    damages.add(found)
        damages.tell()

    def identities(self, scan: Scan[Part, pa.Table] = map) -> Iterator[Listing]:
        """See `raypipe.formats.Reader`. An entry of each image is held in memory."""
        table = pa.concat_tables(list(scan(self.entries, self.parts()))).combine_chunks()
        codes = table["identity"].combine_chunks().dictionary_encode()
        order = codes.indices.to_numpy()
        self.strewn = bool(np.count_nonzero(np.diff(order)) > 2 * len(codes.dictionary))
        if np.any(np.diff(order) < 0):  # codes count up by first appearance
            table = table.take(pa.array(np.argsort(order, kind="stable")))
        ends = np.cumsum(np.bincount(order, minlength=len(codes.dictionary)))
        stamp = self.stamp() or ""
        start = 0
        for index, (name, end) in enumerate(zip(codes.dictionary.to_pylist(), ends, strict=True)):
            yield self._listing(name, index, table.slice(start, end - start), stamp)
            start = end

    def _listing(self, name: str, index: int, rows: pa.Table, stamp: str) -> Listing:
        found: dict[str, Image] = {}
        digest = hashlib.sha256(stamp.encode())
        for image_id, source, size, rejected in _rows(
            rows, "image_id", "source", "bytes", "rejected"
        ):
            if rejected is None and size is not None and size > self.max_bytes:
                rejected = "ingest:file_too_large"
            if image_id in found:  # as where a WebDataset repeats its keys in each shard
                image_id = f"{image_id} ({source})"
            found[image_id] = Image(image_id=image_id, data=b"", source=source, rejected=rejected)
            digest.update(f"\0{image_id}\0{source}\0{size}".encode())
        identity = Identity(
            identity_id=name,
            index=index,
            source=self.source,
            images=list(found.values()),
            rejected="ingest:damaged" if name == UNKNOWN else None,
        )
        return Listing(identity, digest.hexdigest())

    def read(self, identity: Identity) -> Identity:
        """See `raypipe.formats.Reader`."""
        wanted = [image for image in identity.images if image.rejected is None]
        data = iter(self.fetch([image.source for image in wanted]))
        found = [
            image if image.rejected is not None else _checked(image, next(data), self.max_bytes)
            for image in identity.images
        ]
        rejected = identity.rejected
        if rejected is None and all(image.rejected for image in found):
            rejected = "ingest:empty"
        return replace(identity, images=found, rejected=rejected)


class Damages:
    """Damages met while reading: the first hundred, and how many."""

    def __init__(self) -> None:
        self.first: list[Damage] = []
        self.count = 0

    def add(self, damage: Damage) -> None:
        """Notes one."""
        self.count += 1
        if len(self.first) < _KEPT:
            self.first.append(damage)

    def tell(self) -> None:
        """Raises DamagedError where there was one."""
        if self.count:
            raise DamagedError(self.first, self.count)


def checked(image: Image, data: bytes, max_bytes: int) -> Image:
    """An image with its bytes, rejected where they are too many or cannot be decoded."""
    if len(data) > max_bytes:
        return replace(image, data=b"", rejected="ingest:file_too_large")
    try:
        images.decode(data, source=image.source)
    except images.ImageError as error:
        return replace(image, data=data, rejected=f"ingest:{error.reason}")
    return replace(image, data=data)


def _checked(image: Image, data: bytes | Damage, max_bytes: int) -> Image:
    if isinstance(data, Damage):
        return replace(image, rejected=data.what if data.what in REASONS else "ingest:damaged")
    return checked(image, data, max_bytes)


def entries_batch(rows: Sequence[tuple]) -> pa.RecordBatch:
    """Rows of `ENTRIES`, which take a fraction of the memory so."""
    columns = zip(*rows, strict=True) if rows else [()] * len(ENTRIES)
    arrays = [pa.array(column, f.type) for column, f in zip(columns, ENTRIES, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=ENTRIES)


def _rows(table: pa.Table, *names: str) -> Iterator[tuple]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)
