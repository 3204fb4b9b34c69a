"""Folders for a while: gone afterwards, and gone at the next time where the process was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from raypipe.scratch import scratch

HOLD = (
    "import sys, time; from raypipe.scratch import scratch\n"
    "with scratch(sys.argv[1]) as folder:\n"
    "    open(folder + '/half', 'w').close()\n"
    "    print(folder, flush=True)\n"
    "    time.sleep(600)\n"
)


def holder(folder: Path) -> tuple[subprocess.Popen, Path]:
    """A process that holds a scratch folder, and that folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_gone_afterwards(tmp_path: Path) -> None:
    with scratch(str(tmp_path)) as one, scratch(str(tmp_path)) as other:
        assert one != other
        Path(one, "sub").mkdir()
        Path(one, "sub/file").write_bytes(b"x")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_gone_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with scratch(str(tmp_path)) as folder:
            Path(folder, "file").write_bytes(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_deleted_and_what_another_holds_is_not(
    tmp_path: Path,
) -> None:
    dead, left = holder(tmp_path)
    alive, held = holder(tmp_path)
    try:
        dead.kill()
        dead.wait()
        assert (left / "half").exists()
        with scratch(str(tmp_path)):
            assert not left.exists()
            assert (held / "half").exists()
    finally:
        alive.kill()
        alive.wait()
    with scratch(str(tmp_path)):
        pass
    assert not list(tmp_path.iterdir())
