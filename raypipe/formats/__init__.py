"""Formats that face images come in and go out: one small module each, behind two factories.

What moves is a `Record`: the encoded bytes as they were, never decoded and encoded anew.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from raypipe.errors import UserError
from raypipe.identities import Identity

MAX_BYTES = 20_000_000
_SHOWN = 5

_In = TypeVar("_In")
_Out = TypeVar("_Out")
# How a function is applied to the parts of a set: `map`, or the same over the workers of a cluster.
Scan = Callable[[Callable[[_In], _Out], Iterable[_In]], Iterable[_Out]]


class Record(NamedTuple):
    """One image of a set.

    Attributes:
        image: encoded bytes, as they are in the source.
        label: class number; 0 to K-1 in a sound set.
        identity: who it is, in the source's own words; the label in digits where it has none.
        image_id: the key in the source.
        feature: float32 (D,), where the format has one.
    """

    image: bytes
    label: int
    identity: str
    image_id: str
    feature: np.ndarray | None = None


class Damage(NamedTuple):
    """What could not be read, and where: `offset` is in bytes from the beginning of the file."""

    path: str
    offset: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}: byte {self.offset}: {self.what}"


class DamagedError(UserError):
    """Raised when everything intact has been read, and something was not.

    Attributes:
        damages: the first of them, in the order of the source.
    """

    def __init__(self, damages: Sequence[Damage], count: int) -> None:
        shown = "; ".join(str(damage) for damage in damages[:_SHOWN])
        more = f"; and {count - _SHOWN:,} more" if count > _SHOWN else ""
        super().__init__(f"{shown}{more} (everything else was read)")
        self.damages = list(damages)


class Listing(NamedTuple):
    """An identity as it stands in the source, before a byte of its images is read.

    Attributes:
        identity: its images have an `image_id` and a `source`, and empty `data`.
        fingerprint: hex digest that changes when the files behind it do.
    """

    identity: Identity
    fingerprint: str


class Survey(NamedTuple):
    """What a set holds, known before an image is read.

    Attributes:
        images: how many records it gives.
        labels: int64, the labels that occur, rising.
        counts: int64, the records of each of them.
        in_order: whether the labels never fall from one record to the next.
    """

    images: int
    labels: np.ndarray
    counts: np.ndarray
    in_order: bool


class Reader(Protocol):
    """Reads one format."""

    def survey(self) -> Survey:
        """Counts records and labels, without reading images where the format allows it."""
        ...

    def records(self) -> Iterator[Record]:
        """Every record in the order of the source.

        Raises:
            DamagedError: after the last record, where something could not be read.
        """
        ...

    def stamp(self) -> str | None:
        """Changes when the files of the set do; None where only a listing would tell."""
        ...

    def identities(self, scan: Scan = map) -> Iterator[Listing]:
        """Every identity, in the order of their first images, for `read`.

        What cannot be used becomes a rejection with a reason that starts with "ingest:", here or
        in `read`; only a source that is no set at all is an error.

        Args:
            scan: applies a function to the parts of the set.
        """
        ...

    def read(self, identity: Identity) -> Identity:
        """The identity of a listing with the bytes of its images, each checked to be decodable."""
        ...


class Writer(Protocol):
    """Writes one format; nothing is in its place before the end.

    Attributes:
        by_label: whether labels must not fall from one record to the next.
    """

    by_label: bool

    def write(self, record: Record) -> None:
        """Adds a record.

        Raises:
            UserError: where the format cannot hold it.
        """
        ...

    def finish(self) -> None:
        """Completes the files. `open_writer` calls it where its body did not fail."""
        ...


def open_reader(
    path: str, *, source: str = "base", max_bytes: int = MAX_BYTES, mask: str | None = None
) -> Reader:
    """The reader for what lies at a path; its format is told by its content, not by its name.

    Args:
        path: local path or URI of the set.
        source: name the identities carry as their `source`.
        max_bytes: a larger image is rejected unread.
        mask: .npy file with the indices of the records to read; for LMDB.

    Raises:
        UserError: where the path is missing or nothing that raypipe reads.
    """
    from raypipe.formats.detect import detect

    return detect(path, source=source, max_bytes=max_bytes, mask=mask)


def open_writer(path: str, format: str) -> AbstractContextManager[Writer]:
    """A writer to be used in a `with` block, which puts all files in their place at its end.

    Args:
        path: local path or URI that must not exist yet.
        format: one of `raypipe.formats.detect.WRITERS`.

    Raises:
        UserError: where the format is unknown or something lies at the path already.
    """
    from raypipe.formats.detect import writer

    return writer(path, format)
