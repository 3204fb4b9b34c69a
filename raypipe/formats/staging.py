"""Where a writer works until its files are whole."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from raypipe import storage
from raypipe.errors import UserError


@contextmanager
def staged(path: str) -> Iterator[str]:
    """A local path to write a file or a folder to; it comes to lie at `path` if the body succeeds.

    A local result is renamed, a remote one uploaded file by file. What a killed writer left,
    `.NAME.*.tmp` beside its place, may be deleted.

    Raises:
        UserError: where something lies at the path, or it cannot be written.
    """
    if storage.exists(path):
        raise UserError(f"{path}: is there already; delete it or choose another place")
    _, inner = storage.filesystem(path)
    if storage.is_uri(path):
        with tempfile.TemporaryDirectory() as made:
            local = os.path.join(made, os.path.basename(inner.rstrip("/")))
            yield local
            upload(local, path)
        return
    folder, name = os.path.split(inner.rstrip("/"))
    try:
        os.makedirs(folder, exist_ok=True)
        made = tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=folder)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
    try:
        local = os.path.join(made, name)
        yield local
        os.rename(local, inner)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


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
