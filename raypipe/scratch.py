"""Local folders for files that nobody needs afterwards."""

import glob
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock

_PREFIX, _LOCK = ".raypipe-", ".lock"


@contextmanager
def scratch(parent: str | None = None) -> Iterator[str]:
    """An empty folder that is deleted afterwards; before it is made, what killed processes left.

    Args:
        parent: folder to make it in; none: the system's for temporary files (TMPDIR).

    Raises:
        OSError: where it cannot be made.
    """
    parent = parent or tempfile.gettempdir()
    _delete_abandoned(parent)
    folder = os.path.join(parent, _PREFIX + uuid.uuid4().hex)
    # Held for as long as the process lives: a folder is there only while its lock is held.
    with FileLock(folder + _LOCK):
        try:
            os.mkdir(folder, 0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.unlink(folder + _LOCK)


def _delete_abandoned(parent: str) -> None:
    """Deletes the folders in a folder whose processes were killed."""
    found = glob.glob(os.path.join(glob.escape(parent), _PREFIX + "*"))
    for folder in {path.removesuffix(_LOCK) for path in found}:
        try:
            with FileLock(folder + _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                os.unlink(folder + _LOCK)
        except OSError:  # in use, or another user's
            pass
