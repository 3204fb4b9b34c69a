"""Where a writer works until its files are whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from raypipe import storage
from raypipe.errors import UserError
from raypipe.scratch import scratch


@contextmanager
def staged(path: str) -> Iterator[str]:
    """A local path to write a file or a folder to; it comes to lie at `path` if the body succeeds.

    A local result is renamed, a remote one uploaded file by file. What a killed writer left is
    deleted by the next one.

    Raises:
        UserError: where something lies at the path, or it cannot be written.
    """
    if storage.exists(path):
        raise UserError(f"{path}: is there already; delete it or choose another place")
    _, inner = storage.filesystem(path)
    folder, name = os.path.split(inner.rstrip("/"))
    try:
        if storage.is_uri(path):
            with scratch() as made:
                yield os.path.join(made, name)
                upload(os.path.join(made, name), path)
        else:
            os.makedirs(folder, exist_ok=True)
            with scratch(folder) as made:
                yield os.path.join(made, name)
                os.rename(os.path.join(made, name), inner)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error


def upload(local: str, path: str) -> None:
    """Copies a local file or folder to any filesystem, piece by piece."""
    if os.path.isdir(local):
        for name in sorted(os.listdir(local)):
            upload(os.path.join(local, name), storage.join(path, name))
        return
    where, inner = storage.filesystem(path)
    try:
        with open(local, "rb") as stream, where.open_output_stream(inner, compression=None) as out:
            shutil.copyfileobj(stream, out, 8 << 20)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
