"""Formats that face images come in: a reader each, behind one factory."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from raypipe.faceset import Identity


class Listing(NamedTuple):
    """An identity as it stands in the source, before a byte of its images is read.

    Attributes:
        identity: its images have an `image_id` and a `source`, and empty `data`.
        fingerprint: hex digest that changes when the files behind it do.
    """

    identity: Identity
    fingerprint: str


class Reader(Protocol):
    """Reads one format.

    What cannot be used becomes a rejection with a reason that starts with "ingest:", in the listing
    or when it is read; only a source that is no set at all is an error.
    """

    def identities(self) -> Iterator[Listing]:
        """Every identity of the source, in its order."""
        ...

    def read(self, identity: Identity) -> Identity:
        """The identity of a listing with the bytes of its images, each checked to be decodable."""
        ...


def open_reader(path: str, *, source: str, max_bytes: int) -> Reader:
    """The reader for what lies at a path.

    Args:
        path: local path or URI of the set.
        source: name the identities carry as their `source`.
        max_bytes: a larger image file is rejected unread.

    Raises:
        UserError: where the path is missing or nothing that raypipe reads.
    """
    from raypipe.formats.image_folder import ImageFolder

    return ImageFolder(path, source=source, max_bytes=max_bytes)
