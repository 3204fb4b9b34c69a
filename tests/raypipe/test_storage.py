"""Paths and URIs: keys as they stand, whole files, nothing left of what was killed."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe import storage
from raypipe.errors import UserError

NAMES = ["Zoë Å", "a#b", "a?b=c", "a%41", "a+b&c", "日本/1 (2).jpg"]


@pytest.mark.parametrize("place", ["local", "s3"])
def test_names_of_people_are_taken_as_they_stand(place: str, s3_bucket: str, tmp_path: Path):
    root = f"{s3_bucket}/odd names, 100%" if place == "s3" else str(tmp_path)
    for name in NAMES:
        storage.write_bytes(storage.join(root, name), name.encode())
    found = [entry for entry in storage.listdir(root, recursive=True) if entry.is_file]
    assert [entry.path.removeprefix(f"{root}/") for entry in found] == sorted(NAMES)
    for entry in found:
        assert storage.read_bytes(entry.path).decode() == entry.path.removeprefix(f"{root}/")
    storage.delete(storage.join(root, "a%41"))
    assert not storage.exists(storage.join(root, "a%41"))
    assert len(storage.listdir(root + "/")) == len(NAMES) - 1


def test_a_bucket_that_is_not_there(s3_bucket: str) -> None:
    assert not storage.exists("s3://no-such-bucket/x")
    with pytest.raises(UserError, match="s3://no-such-bucket/x: no such file"):
        storage.read_bytes("s3://no-such-bucket/x")
    with pytest.raises(UserError, match="s3://no-such-bucket/x: cannot be written"):
        storage.write_bytes("s3://no-such-bucket/x", b"x")


def test_a_scheme_that_nobody_knows() -> None:
    with pytest.raises(UserError, match="s4://faces/x: not a path raypipe can open"):
        storage.exists("s4://faces/x")


def test_what_a_killed_writer_left_is_deleted(tmp_path: Path) -> None:
    # The process dies at the moment when the file is written and not yet renamed.
    line = (
        "import os, signal; from raypipe import storage\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"storage.write_bytes({str(tmp_path / 'parts' / 'a.bin')!r}, b'x' * 10)\n"
    )
    subprocess.run([sys.executable, "-c", line], check=False, timeout=60)
    assert len(left := list((tmp_path / "parts").iterdir())) == 1
    assert left[0].name.startswith("a.bin.") and left[0].suffix == ".tmp"
    (tmp_path / "mine.tmp").write_bytes(b"")
    storage.delete_unfinished(str(tmp_path))
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["mine.tmp", "parts"]


@pytest.fixture(scope="module")
def gcs_bucket() -> Iterator[str]:
    """URI of a bucket of an emulator of Google Cloud Storage on loopback.

    Its own process: in ours it would wait for the interpreter's lock, which pyarrow's client holds
    while it waits for the server. "anonymous" keeps the client from asking Google for a key.
    """
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--host", "127.0.0.1", "--port", str(port), "--in-memory"]
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gcp_storage_emulator",
            "start",
            "--default-bucket",
            "faces",
            *where,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"] = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield "gs://anonymous@faces"
    del os.environ["CLOUD_STORAGE_EMULATOR_ENDPOINT"]
    server.terminate()
    server.wait()


@pytest.mark.slow
def test_google_cloud_storage(gcs_bucket: str) -> None:
    path = f"{gcs_bucket}/people/Zoë 1.bin"
    assert not storage.exists(path)
    storage.write_bytes(path, b"x" * 3_000_000)
    assert storage.read_bytes(path) == b"x" * 3_000_000
    assert storage.read_bytes(path, 10) == b"x" * 10
    assert [(entry.path, entry.size) for entry in storage.listdir(f"{gcs_bucket}/people")] == [
        (path, 3_000_000)
    ]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"a": list(range(1000))}), buffer)
    storage.write_bytes(f"{gcs_bucket}/t.parquet", buffer.getvalue())
    where, inner = storage.filesystem(f"{gcs_bucket}/t.parquet")
    assert pq.read_table(inner, filesystem=where).num_rows == 1000
    storage.delete(path)
    assert not storage.exists(path)
    with pytest.raises(UserError, match="no such file"):
        storage.read_bytes(path)


@pytest.mark.slow
def test_weights_from_google_cloud_storage(
    gcs_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from raypipe.node_cache import FOLDER, local

    monkeypatch.setenv(FOLDER, str(tmp_path))
    storage.write_bytes(f"{gcs_bucket}/w.bin", b"one")
    assert Path(local(f"{gcs_bucket}/w.bin")).read_bytes() == b"one"
    storage.write_bytes(f"{gcs_bucket}/w.bin", b"two")
    assert Path(local(f"{gcs_bucket}/w.bin")).read_bytes() == b"two"
