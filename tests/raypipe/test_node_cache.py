"""Weights of URIs are fetched once a node, whole, and again when they are others."""

import hashlib
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from raypipe import storage
from raypipe.errors import UserError
from raypipe.node_cache import FOLDER, local, local_folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(path: str) -> str:
    with pytest.raises(UserError) as caught:
        local(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kept(cache: Path) -> list[str]:
    """Names of the files in the cache, but for locks."""
    return sorted(p.name for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_a_local_path_stays(cache: Path) -> None:
    assert local("models/w.pt") == "models/w.pt"
    assert local("file:///models/w.pt") == "/models/w.pt"
    assert not cache.exists()


def test_a_file_is_fetched_once_and_keeps_its_name(cache: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/once/my w.pt"
    storage.write_bytes(uri, b"weights")
    found = Path(local(uri))
    assert found.read_bytes() == b"weights"
    assert found.name == "my w.pt" and found.is_relative_to(cache)
    made = found.stat().st_ctime_ns
    assert local(uri) == str(found) and found.stat().st_ctime_ns == made


def test_a_new_version_takes_the_place_of_the_old_one(cache: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/new/w.pt"
    storage.write_bytes(uri, b"first")
    first = local(uri)
    storage.write_bytes(uri, b"second")
    second = local(uri)
    assert Path(second).read_bytes() == b"second"
    assert not os.path.exists(first)
    time.sleep(1.1)  # S3 tells the time of a version in seconds
    storage.write_bytes(uri, b"others")
    assert Path(local(uri)).read_bytes() == b"others"
    assert kept(cache) == ["w.pt"]


def test_a_folder_has_the_files_that_are_asked_for(cache: Path, s3_bucket: str) -> None:
    for name in ("index.json", "unet/w.bin", "unet/w.fp16.bin"):
        storage.write_bytes(f"{s3_bucket}/pipeline/{name}", name.encode())
    found = Path(local_folder(f"{s3_bucket}/pipeline/", ["index.json", "unet/w.bin"]))
    assert found.name == "pipeline"
    assert (found / "unet/w.bin").read_bytes() == b"unet/w.bin"
    assert kept(cache) == ["index.json", "w.bin"]
    more = Path(local_folder(f"{s3_bucket}/pipeline", ["index.json", "unet/w.fp16.bin"]))
    assert (more / "unet/w.fp16.bin").exists()


def test_what_is_not_there_is_named(cache: Path, s3_bucket: str) -> None:
    storage.write_bytes(f"{s3_bucket}/there/w.pt", b"x")
    assert refused(f"{s3_bucket}/there/x.pt") == f"{s3_bucket}/there/x.pt: no such file"
    assert refused(f"{s3_bucket}/there") == f"{s3_bucket}/there: no such file"
    assert "s4://a/b: not a path raypipe can open" in refused("s4://a/b")


def test_what_was_cut_off_is_fetched_again(cache: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/cut/w.pt"
    storage.write_bytes(uri, b"weights")
    found = Path(local(uri))
    found.write_bytes(b"weig")
    assert Path(local(uri)).read_bytes() == b"weights"


def test_a_full_disk(cache: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/full/w.pt"
    storage.write_bytes(uri, b"x" * 100_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        message = refused(uri)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert message.startswith(f"{uri}: cannot be fetched to {cache} (")
    assert message.endswith("RAYPIPE_CACHE names the folder")
    assert kept(cache) == []
    assert len(Path(local(uri)).read_bytes()) == 100_000


def test_a_folder_that_cannot_be_made(
    tmp_path: Path, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file" / "cache"))
    storage.write_bytes(f"{s3_bucket}/nowhere/w.pt", b"x")
    assert "w.pt: cannot be fetched to" in refused(f"{s3_bucket}/nowhere/w.pt")


def test_what_nobody_used_for_a_month_is_deleted(cache: Path, s3_bucket: str) -> None:
    for name in ("old", "used", "new"):
        storage.write_bytes(f"{s3_bucket}/month/{name}", name.encode())
    month = time.time() - 31 * 24 * 3600
    for name in ("old", "used"):
        os.utime(Path(local(f"{s3_bucket}/month/{name}")).parents[1], (month, month))
    local(f"{s3_bucket}/month/used")
    local(f"{s3_bucket}/month/new")
    assert kept(cache) == ["new", "used"]


@pytest.mark.slow
def test_one_of_many_processes_fetches(cache: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/many/w.pt"
    storage.write_bytes(uri, os.urandom(20_000_000))
    line = (
        "import os; from raypipe.node_cache import local; "
        f"found = os.stat(local({uri!r})); print(found.st_ino, found.st_ctime_ns)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", line], stdout=subprocess.PIPE) for _ in range(6)
    ]
    found = {process.communicate()[0] for process in started}
    assert all(process.returncode == 0 for process in started)
    assert len(found) == 1  # another fetch would have made another file


@pytest.mark.slow
def test_a_killed_fetch_leaves_nothing_that_counts(cache: Path, s3_bucket: str) -> None:
    uri = f"{s3_bucket}/killed/w.pt"
    data = os.urandom(1 << 20) * 100
    storage.write_bytes(uri, data)
    line = f"from raypipe.node_cache import local; local({uri!r})"
    process = subprocess.Popen([sys.executable, "-c", line])
    while not any(path.stat().st_size for path in cache.rglob("w.pt")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    (half,) = cache.rglob("w.pt")
    assert half.parent.suffix == ".part" and half.stat().st_size < len(data)
    storage.write_bytes(uri, data[:1000])  # the same key, so that the next fetch is of another
    whole = Path(local(uri))
    assert hashlib.sha256(whole.read_bytes()).digest() == hashlib.sha256(data[:1000]).digest()
    assert kept(cache) == ["w.pt"]


def test_a_file_of_the_hub_is_taken_from_its_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The library reads HF_HOME once, when it is imported; so with the other one below.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for folder, commit in (("models--some--faces", "a"), ("datasets--some--faces", "b")):
        root = tmp_path / "hub" / folder
        (root / "snapshots" / (commit * 40) / "weights").mkdir(parents=True)
        (root / "snapshots" / (commit * 40) / "weights/w.pt").write_text(commit)
        (root / "refs").mkdir()
        (root / "refs/main").write_text(commit * 40)
    assert Path(local("hf://some/faces/weights/w.pt")).read_text() == "a"
    assert Path(local("hf://some/faces@main/weights/w.pt")).read_text() == "a"
    assert Path(local("hf://datasets/some/faces/weights/w.pt")).read_text() == "b"
    assert not cache.exists()


@pytest.mark.parametrize("path", ["hf://faces", "hf://some/faces", "hf://some/faces/"])
def test_no_file_of_a_hub(path: str) -> None:
    assert refused(path) == f"{path}: no file of a hub; expected hf://OWNER/REPOSITORY/FILE"


@pytest.mark.slow  # waits for the name of the hub to be looked up
def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = refused("hf://nobody/no-such-faces/w.pt")
    assert message.startswith("hf://nobody/no-such-faces/w.pt: not in the cache of the hub, and ")
