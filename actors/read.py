"""Reads the images of listed identities."""

from raypipe.formats import open_reader
from raypipe.identities import Identity


class ReadActor:
    """Fills in the bytes of listed identities and checks that they can be decoded.

    Args:
        paths: source of an identity → where it is.
        max_bytes: a larger image file is rejected unread.
    """

    def __init__(self, *, paths: dict[str, str], max_bytes: int) -> None:
        self._readers = {
            source: open_reader(path, source=source, max_bytes=max_bytes)
            for source, path in paths.items()
        }

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        return [self._readers[identity.source].read(identity) for identity in identities]
