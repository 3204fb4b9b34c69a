"""Reads the images of listed identities."""

from raypipe.faceset import Identity
from raypipe.formats import open_reader


class ReadActor:
    """Fills in the bytes of listed identities and checks that they can be decoded."""

    def __init__(self, *, path: str, source: str, max_bytes: int) -> None:
        self._reader = open_reader(path, source=source, max_bytes=max_bytes)

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        return [self._reader.read(identity) for identity in identities]
