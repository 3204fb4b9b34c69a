"""Keys are found in files of the real library, and a file that it did not write is no danger."""

import os
import pickle
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import UserError
from raypipe.formats.lmdb_pages import CUT, LOST, MISSING, ODD, Pages


@pytest.fixture
def traced() -> Iterator[None]:
    """Memory is counted in a test; its peak is to be reset before what is measured."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


def make(path: Path, items: dict[bytes, bytes], step: int = 1000) -> Path:
    """A file of the library's own, committed every `step` keys; without its lock file."""
    path.unlink(missing_ok=True)
    with lmdb.open(str(path), subdir=False, map_size=2**30, lock=False, sync=False) as env:
        keys = list(items)
        for start in range(0, len(keys), step):
            with env.begin(write=True) as transaction:
                for key in keys[start : start + step]:
                    transaction.put(key, items[key])
    return path


def value(pages: Pages, key: bytes) -> bytes | int:
    at, size = pages.lookup(key)
    return pages.blob.read(at, size) if size >= 0 else ~size


@settings(max_examples=40, deadline=None)
@given(
    items=st.dictionaries(
        st.binary(min_size=1, max_size=511) | st.integers(0, 3000).map(lambda i: b"%d" % i),
        st.binary(max_size=60) | st.integers(0, 20_000).map(lambda n: b"v" * n),
        max_size=60,
    ),
    absent=st.lists(st.binary(min_size=1, max_size=20), max_size=5),
    step=st.integers(1, 60),
)
def test_what_the_library_wrote_is_found(
    tmp_path_factory: pytest.TempPathFactory,
    items: dict[bytes, bytes],
    absent: list[bytes],
    step: int,
) -> None:
    path = make(tmp_path_factory.getbasetemp() / "any.lmdb", items, step)
    pages = Pages(str(path))
    assert {key: value(pages, key) for key in items} == items
    assert pages.entries == len(items)
    assert all(value(pages, key) == MISSING for key in absent if key not in items)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[bytes, bytes]]:
    """A tree of depth 4: long keys, so that few fit on a page."""
    items = {b"%d" % i + b"k" * (i % 7 * 80): b"value %d" % i for i in range(5000)}
    items[b"big"] = os.urandom(100_000)
    path = make(tmp_path_factory.mktemp("deep") / "deep.lmdb", items)
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as env:
        assert env.stat()["depth"] >= 4
    return path, items


@pytest.mark.slow
def test_a_deep_tree(deep: tuple[Path, dict[bytes, bytes]]) -> None:
    path, items = deep
    pages = pickle.loads(pickle.dumps(Pages(str(path))))
    assert {key: value(pages, key) for key in items} == items
    order = sorted(items)
    leaves = pages.leaves(order, lambda key: key)
    assert [leaf.start for leaf in leaves[1:]] == [leaf.stop for leaf in leaves[:-1]]
    nodes = pages.nodes([leaf.number for leaf in leaves])
    spans = zip(nodes.key.tolist(), (nodes.key + nodes.key_size).tolist(), strict=True)
    assert [nodes.data[start:stop] for start, stop in spans] == order
    assert nodes.whole.all()
    assert pages.lost_root is None


def test_deleted_and_replaced_keys(tmp_path: Path) -> None:
    items = {b"%d" % i: b"x" * 3000 for i in range(500)}
    path = make(tmp_path / "a.lmdb", items)
    with lmdb.open(str(path), subdir=False, map_size=2**30, lock=False) as env:
        for i in range(0, 500, 3):
            with env.begin(write=True) as transaction:
                transaction.delete(b"%d" % i)
                transaction.put(b"%d" % (i + 1), b"new")
    pages = Pages(str(path))
    for i in range(499):
        expected: bytes | int = [MISSING, b"new", b"x" * 3000][i % 3]
        assert value(pages, b"%d" % i) == expected


def test_an_empty_file_of_the_library(tmp_path: Path) -> None:
    pages = Pages(str(make(tmp_path / "a.lmdb", {})))
    assert (pages.entries, value(pages, b"0")) == (0, MISSING)


def test_sorted_duplicates_and_databases_are_not_read(tmp_path: Path) -> None:
    path = make(tmp_path / "a.lmdb", {b"a": b"1"})
    data = bytearray(path.read_bytes())
    for page in (0, 4096):
        data[page + 92] = 4  # MDB_DUPSORT in the flags of the tree of keys
    path.write_bytes(data)
    with pytest.raises(UserError, match="key order of its own"):
        Pages(str(path)).lookup(b"a")
    path = tmp_path / "b.lmdb"
    with lmdb.open(str(path), subdir=False, lock=False, max_dbs=1) as env:
        env.open_db(b"faces")
    assert value(Pages(str(path)), b"faces") == ODD


@pytest.mark.parametrize("data", [b"", b"x" * 10_000, bytes(16) + bytes.fromhex("dec0efbe")])
def test_what_is_no_lmdb_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.lmdb").write_bytes(data)
    with pytest.raises(UserError, match="no LMDB file that raypipe reads"):
        Pages(str(tmp_path / "a.lmdb")).lookup(b"a")


def test_a_file_of_version_1_of_the_library_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "a.lmdb"), subdir=False, lock=False, lib_version=1) as env:
        with env.begin(write=True) as transaction:
            transaction.put(b"a", b"1")
    with pytest.raises(UserError, match="version 0.9 of a 64-bit machine"):
        Pages(str(tmp_path / "a.lmdb")).lookup(b"a")


@pytest.mark.parametrize("page", [0, 1])
def test_one_of_the_two_meta_pages_will_do(tmp_path: Path, page: int) -> None:
    """Each commit writes the other one, and may be cut short."""
    path = make(tmp_path / "a.lmdb", {b"a": b"1"})
    with lmdb.open(str(path), subdir=False, map_size=2**30, lock=False) as env:
        with env.begin(write=True) as transaction:
            transaction.put(b"b", b"2")
        newest = env.info()["last_txnid"] % 2
    data = bytearray(path.read_bytes())
    data[page * 4096 + 16] ^= 1
    path.write_bytes(data)
    pages = Pages(str(path))
    assert value(pages, b"a") == b"1"
    assert value(pages, b"b") == (MISSING if page == newest else b"2")


def test_where_the_last_root_is_lost_the_commit_before_it_is_read(tmp_path: Path) -> None:
    path = make(tmp_path / "a.lmdb", {b"%d" % i: b"v" * 3000 for i in range(40)}, step=20)
    first = value(Pages(str(path)), b"0")
    root = Pages(str(path)).meta.root
    data = bytearray(path.read_bytes())
    data[root * 4096 + 10] = 0xFF
    path.write_bytes(data)
    pages = Pages(str(path))
    assert value(pages, b"0") == first
    assert value(pages, b"39") == MISSING
    assert (pages.entries, pages.lost_root) == (40, root * 4096)


@pytest.mark.parametrize("kept", [0.95, 0.5, 0.1, 0.01])
def test_cut_off_files_give_what_is_left(
    tmp_path: Path, deep: tuple[Path, dict[bytes, bytes]], kept: float
) -> None:
    path, items = deep
    data = path.read_bytes()
    cut = tmp_path / "cut.lmdb"
    cut.write_bytes(data[: int(len(data) * kept)])
    pages = Pages(str(cut))
    found = {key: value(pages, key) for key in items}
    assert all(got in (items[key], LOST, CUT, MISSING) for key, got in found.items())
    assert any(got in (LOST, CUT, MISSING) for got in found.values())


_DIES = """
import lmdb, sys
with lmdb.open(sys.argv[1], subdir=False, readonly=True, lock=False) as env:
    with env.begin() as transaction:
        for key in range(400):
            transaction.get(b"%d" % key)
print("lived")
"""


def test_the_library_dies_of_a_file_that_is_cut_off(tmp_path: Path) -> None:
    """Why it does not read here."""
    path = make(tmp_path / "a.lmdb", {b"%d" % i: os.urandom(8000) for i in range(400)})
    command = [sys.executable, "-c", _DIES, str(path)]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b"lived\n"
    os.truncate(path, path.stat().st_size // 2)
    assert subprocess.run(command, capture_output=True).returncode in (-7, -11)  # SIGBUS, SIGSEGV
    pages = Pages(str(path))
    assert {type(value(pages, b"%d" % i)) for i in range(400)} == {bytes, int}


@pytest.mark.slow
def test_mutated_files_end_in_values_or_one_error(
    tmp_path: Path, deep: tuple[Path, dict[bytes, bytes]], traced: None
) -> None:
    source, items = deep
    data, draw = source.read_bytes(), random.Random(3)
    keys = [*draw.sample(sorted(items), 30), b"big", b"none"]
    path = tmp_path / "mutated.lmdb"
    pages = Pages(str(source))
    depths = [pages.meta.root, *(leaf.number for leaf in pages.leaves(keys[:1], bytes))]
    for _ in range(40):
        changed = bytearray(data)
        for _ in range(draw.choice([1, 4, 40, 400])):
            # Most of what matters is in the meta pages, and at the beginnings of others.
            number = draw.choice([0, 1, *depths, draw.randrange(len(data) // 4096)])
            at = number * 4096 + draw.randrange(draw.choice([32, 160, 4096]))
            width = draw.choice([1, 2, 8])
            changed[at : at + width] = draw.choice([b"\xff" * width, draw.randbytes(width)])
        path.write_bytes(changed[: len(data)])
        pages = Pages(str(path))
        tracemalloc.reset_peak()
        try:
            for key in keys:
                at, size = pages.lookup(key)
                assert size < 0 or 0 <= at <= at + size <= pages.blob.size
        except UserError:
            pass
        assert tracemalloc.get_traced_memory()[1] < 6 * len(data)
