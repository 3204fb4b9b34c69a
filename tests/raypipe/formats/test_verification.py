"""Verification sets in every format: what is read, what is refused, what is written."""

import hashlib
import io
import json
import lzma
import os
import pickle
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raypipe.errors import UserError
from raypipe.formats.detect import PAIR_FORMATS
from raypipe.formats.pair_set import contiguous
from raypipe.formats.verification import (
    convert_pairs,
    digest,
    is_pair_set,
    load,
    read_pairs,
    write_pairs,
)
from raypipe.images import decode, encode_png

DATA = Path(__file__).parents[2] / "data" / "formats"
JPEG = b"\xff\xd8\xff"
PROTOCOL = b"\x80\x04"


def made(pairs: int = 40, size: int = 30) -> tuple[list[bytes], np.ndarray]:
    """Images that recur, each with the first bytes of a JPEG, and as many pairs of each kind."""
    rng = random.Random(pairs)
    people = [[JPEG + rng.randbytes(size) for _ in range(3)] for _ in range(6)]
    images, issame = [], np.arange(pairs) % 2 == 0
    for same in issame:
        one, other = rng.sample(people, 2)
        images += rng.sample(one, 2) if same else [rng.choice(one), rng.choice(other)]
    return images, issame


def put(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def lfw(root: Path, text: str, *photos: str) -> str:
    put(root / "pairs.txt", text.encode())
    for name in photos:
        put(root / name, JPEG + name.encode())
    return str(root)


def npy(root: Path, pixels: np.ndarray, truths: str) -> str:
    root.mkdir(parents=True, exist_ok=True)
    np.save(root / f"{root.name}.npy", pixels)
    (root / "issame.txt").write_text(truths)
    return str(root)


@pytest.mark.parametrize("kind", ["bytes", "ndarray", "py2"])
def test_published_encodings_are_read_as_they_are(kind: str) -> None:
    truth = json.loads((DATA / "truth.json").read_text())
    images, issame = read_pairs(str(DATA / f"pairs_{kind}.bin"))
    assert issame.tolist() == truth["issame"]
    assert issame.dtype == bool
    who = dict(zip(truth["sha256"], truth["labels"], strict=True))
    shown = [who[hashlib.sha256(image).hexdigest()] for image in images]
    assert [a == b for a, b in zip(shown[0::2], shown[1::2], strict=True)] == truth["issame"]
    assert images == read_pairs(str(DATA / "pairs_bytes.bin"))[0]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "element",
    [bytes, lambda b: np.frombuffer(b, np.uint8), lambda b: np.frombuffer(b, np.uint8)[:, None]],
    ids=["bytes", "flat", "column"],
)
def test_whatever_pickle_wrote_is_read(tmp_path: Path, protocol: int, element) -> None:  # type: ignore[no-untyped-def]
    images, issame = made()
    for i, truths in enumerate(
        [issame.tolist(), issame, issame.astype(int).tolist(), list(issame), issame.astype(">i8")]
    ):
        value = ([element(image) for image in images], truths)
        path = put(tmp_path / f"{i}.bin", pickle.dumps(value, protocol))
        found, same = read_pairs(path)
        assert (found, same.tolist()) == (images, issame.tolist())
        packed = put(tmp_path / f"{i}.any", lzma.compress(pickle.dumps(value, protocol)))
        assert read_pairs(packed)[0] == images


def test_the_evil_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = DATA / "pairs_evil.bin"
    assert b"touch raypipe_pwned" in path.read_bytes()
    with pytest.raises(UserError, match=r"byte 7717: it names 'posix.system'.* nothing of it"):
        read_pairs(str(path))
    assert os.listdir(tmp_path) == []
    pickle.loads(path.read_bytes())  # it does run for whoever is careless
    assert os.listdir(tmp_path) == ["raypipe_pwned"]


TOUCH = b"X\x0d\x00\x00\x00touch touched"


@pytest.mark.parametrize(
    "body",
    [
        b"cos\nsystem\n(" + TOUCH + b"tR.",
        b"(" + TOUCH + b"ios\nsystem\n.",
        b"(cos\nsystem\n" + TOUCH + b"o.",
        b"cbuiltins\neval\n(" + TOUCH + b"tR.",
        b"c_codecs\nencode\n" + b"(cos\nsystem\n" + TOUCH + b"ttR.",
        b"cnumpy\nload\n(" + TOUCH + b"tR.",
        b"cnumpy\nndarray\n(K\x01tR.",
        b"cnumpy\nndarray\n)\x81.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\nK\x00ttR.",
        b"cnumpy\ndtype\n(X\x01\x00\x00\x00OtR.",
        b"cnumpy._core\nmultiarray._reconstruct\n.",
        b"\x82\x01.",
        b"Pos.system\n.",
        b"}X\x0a\x00\x00\x00__reduce__cos\nsystem\nsb.",
        b"\x97.",
    ],
)
def test_nothing_else_can_be_named_or_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="byte [0-9]+: "):
        read_pairs(put(tmp_path / "evil.bin", b"\x80\x02" + body))
    assert os.listdir(tmp_path) == ["evil.bin"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (([b"a", b"b", b"c"], [True]), "3 images for 1 pairs"),
        (([b"a", b"b"], [True, False]), "2 images for 2 pairs"),
        (([], []), "no pairs"),
        (([b"a", "text"], [True]), r"image 1 \(pair 0\) is a str"),
        (([b"a", b"b", b"c", 7], [True] * 2), r"image 3 \(pair 1\) is a int"),
        (([b"a", [b"b"]], [True]), r"image 1 \(pair 0\) is a list"),
        (([b"a", b""], [True]), r"image 1 \(pair 0\) is empty"),
        (([b"a", np.zeros(3, np.uint16)], [True]), r"image 1 \(pair 0\) is an array of uint16"),
        (([b"a", np.zeros((3, 3), np.uint8)], [True]), r"image 1 \(pair 0\).*shape \(3, 3\)"),
        (([b"a", np.zeros((3, 3, 3), np.uint8)], [True]), r"image 1 .*another shape"),
        (([b"a", np.zeros(3)], [True]), "dtype"),
        (([b"a", np.array([b"b", None], object)], [True]), "dtype"),
        (([b"a", b"b"], [2]), "truth value of pair 0 is 2"),
        (([b"a", b"b"] * 2, [True, "yes"]), "truth value of pair 1 is a str"),
        (([b"a", b"b"], np.zeros((1, 1, 1), bool)), "truth values: an array of another shape"),
        (([b"a", b"b"], True), "bool where the truth values should be"),
        ((b"ab", [True]), "bytes where the list of images should be"),
        (([b"a", b"b"], [True], 1), "not a pair of a list of images"),
        ([b"a"], "not a pair of a list of images"),
        ({"a": 1}, "opcode"),
    ],
)
def test_a_pickle_that_is_no_set_is_told_in_one_line(
    tmp_path: Path, value: object, message: str
) -> None:
    path = put(tmp_path / "x.bin", pickle.dumps(value, 4))
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_told_with_its_byte(tmp_path: Path) -> None:
    whole = (DATA / "pairs_bytes.bin").read_bytes()
    for length in (1, 2, 100, 5000, len(whole) - 1):
        with pytest.raises(UserError, match="byte [0-9]+: the file ends"):
            read_pairs(put(tmp_path / "cut.bin", whole[:length]))
    packed = lzma.compress(whole)
    with pytest.raises(UserError, match="cut off"):
        read_pairs(put(tmp_path / "cut.xz", packed[:-20]))
    with pytest.raises(UserError, match="not readable as xz"):
        read_pairs(put(tmp_path / "more.xz", packed + b"something that is no stream"))


def test_several_xz_streams_are_one_set(tmp_path: Path) -> None:
    whole = (DATA / "pairs_py2.bin").read_bytes()
    packed = lzma.compress(whole[:50_000]) + bytes(8) + lzma.compress(whole[50_000:])
    assert (
        read_pairs(put(tmp_path / "x.xz", packed))[0] == read_pairs(str(DATA / "pairs_py2.bin"))[0]
    )
    with pytest.raises(UserError, match="xz streams"):
        read_pairs(put(tmp_path / "many.xz", lzma.compress(b"") * 200))


def test_pairs_txt_of_lfw(tmp_path: Path) -> None:
    text = "2\t1\nAda_B\t1\t2\nAda_B\t2\tCy\t10\nCy\t1\t10\nCy\t1\tAda_B\t1\n"
    photos = ["Ada_B/Ada_B_0001.jpg", "Ada_B/Ada_B_0002.png", "Cy/Cy_0001.jpg", "Cy/Cy_0010.jpg"]
    found = load(lfw(tmp_path, text, *photos))
    a, b, c, d = (JPEG + name.encode() for name in photos)
    assert found.images == [a, b, b, d, c, d, c, a]
    assert found.issame.tolist() == [True, False, True, False]
    assert found.folds is not None and found.folds.tolist() == [0, 0, 1, 1]
    assert found.ids is not None and found.ids[:4] == [
        "Ada_B/0001",
        "Ada_B/0002",
        "Ada_B/0002",
        "Cy/0010",
    ]


@pytest.mark.parametrize("header", ["", "4\n", "2\n", "\n\n"])
def test_pairs_txt_without_folds(tmp_path: Path, header: str) -> None:
    lines = "A B  1 2\r\nA B 1 C 1\r\n" * 2
    text = header + lines.replace("A B", "A_B").replace("  ", " ")
    found = load(lfw(tmp_path, text, "A_B/A_B_0001.jpg", "A_B/A_B_0002.jpg", "C/C_0001.jpg"))
    assert found.folds is None
    assert found.issame.tolist() == [True, False] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A\t1\t2\nA\t1\t3\n", r"pairs.txt: line 2: A/A_0003.jpg: no such file"),
        ("A\t1\n", "line 1: 2 fields"),
        ("A\t1\t2\tB\t1\n", "line 1: 5 fields"),
        ("A\tone\t2\n", "line 1: 'one' is no number"),
        ("A\t1\t-2\n", "line 1: '-2' is no number"),
        ("../A\t1\t2\n", "line 1: '../A' is no name"),
        ("..\t1\t2\n", "line 1: '..' is no name"),
        ("/etc\t1\t2\n", "line 1: '/etc' is no name"),
        ("A\t1\t../B\t2\n", "line 1: '../B' is no name"),
        ("1\t2\nA\t1\t2\n", "says 1 folds of 2 and 2 pairs, but there are 1 pairs"),
        ("1\t1\nA\t1\t2\nA\t2\t1\n", "fold 0 has 2"),
        ("0\t7\n", "no pairs"),
        ("", "no pairs"),
        ("9\nA\t1\t2\n", "line 1 says 9, but there are 1 pairs"),
        ("A\t1\t2\n\xff".encode("latin1").decode("latin1"), "2 fields|1 fields"),
        ("A\t1\t" + "2" * 5000, "line 1: 5,00. characters"),
        ("E\t1\t2\n", "line 1: E/E_0001: no file"),
    ],
)
def test_a_broken_pairs_txt_is_told_by_its_line(tmp_path: Path, text: str, message: str) -> None:
    root = lfw(tmp_path, text, "A/A_0001.jpg", "A/A_0002.jpg", "E/E_0001.jpg/inside.jpg")
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(root)
    assert "\n" not in str(caught.value)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "secret", b"key")
    root = lfw(tmp_path / "set", "A\t1\t2\n", "A/A_0001.jpg")
    (tmp_path / "set/A/A_0002.jpg").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="no file of this folder"):
        read_pairs(root)


def test_pixels_come_out_as_they_are(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 5, 4), np.uint8)
    images, issame = read_pairs(npy(tmp_path / "lfw", pixels, "1\n0\n0\n1\n"))
    assert issame.tolist() == [True, False, False, True]
    shown = [decode(image, source="x").transpose(2, 0, 1) for image in images]
    assert np.array_equal(shown, pixels)


@pytest.mark.parametrize(
    ("pixels", "truths", "message"),
    [
        (np.zeros((4, 3, 2, 2), np.float32), "1\n0\n", "not pixels"),
        (np.zeros((4, 2, 2, 3), np.uint8), "1\n0\n", "not pixels"),
        (np.zeros((3, 4, 2, 2), np.uint8).T, "1\n0\n", "not pixels"),
        (np.array([b"x", None], object), "1\n0\n", "not pixels"),
        (np.zeros((4, 3, 0, 2), np.uint8), "1\n0\n", "4 images of 2×0"),
        (np.zeros((4, 3, 2, 2), np.uint8), "1\n", "4 images in the .npy, 1 pairs"),
        (np.zeros((4, 3, 2, 2), np.uint8), "1\n7\n", "line 2: expected 0 or 1"),
        (np.zeros((0, 3, 2, 2), np.uint8), "", "no pairs"),
    ],
)
def test_broken_pixels(tmp_path: Path, pixels: np.ndarray, truths: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_pairs(npy(tmp_path / "x", pixels, truths))


def test_pixels_cut_off_or_claimed(tmp_path: Path) -> None:
    root = npy(tmp_path / "x", np.zeros((4, 3, 2, 2), np.uint8), "1\n0\n")
    path = tmp_path / "x/x.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="cut off"):
        read_pairs(root)
    path.write_bytes(
        whole.replace(b"(4, 3, 2, 2), }    ", b"(999999999, 3, 9, 9), }")[: len(whole)]
    )
    with pytest.raises(UserError, match="999,999,999 images"):
        read_pairs(root)
    put(tmp_path / "x/other.npy", whole)
    with pytest.raises(UserError, match="2 .npy files"):
        read_pairs(root)


@pytest.mark.parametrize("format", PAIR_FORMATS)
def test_every_format_gives_back_what_was_written(tmp_path: Path, format: str) -> None:
    images, issame = made(43)
    path = tmp_path / "set"
    write_pairs(str(path), images, issame, format)
    found, same = read_pairs(str(path))
    assert (found, same.tolist()) == (images, issame.tolist())
    assert is_pair_set(str(path))
    copies = [bytes(bytearray(image)) for image in images]
    write_pairs(str(tmp_path / "again"), copies, issame.tolist(), format)
    assert digest(str(tmp_path / "again")) == digest(str(path))
    files = [sorted(p.rglob("*")) for p in (path, tmp_path / "again")]
    for one, other in zip(*files, strict=True):
        assert one.is_dir() or one.read_bytes() == other.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        write_pairs(str(path), images, issame, format)
    assert sorted(os.listdir(tmp_path)) == ["again", "set"]


def test_what_is_written_is_what_others_read(tmp_path: Path) -> None:
    images, issame = made()
    write_pairs(str(tmp_path / "x.bin"), images, issame, "bin")
    data = (tmp_path / "x.bin").read_bytes()
    assert pickle.loads(data) == (images, issame.tolist())
    assert data[:2] == PROTOCOL
    write_pairs(str(tmp_path / "x.xz"), images, issame, "xz")
    assert lzma.decompress((tmp_path / "x.xz").read_bytes()) == data


def test_folders_name_people_as_the_pairs_do(tmp_path: Path) -> None:
    a, b, c, d = (JPEG + letter for letter in (b"a", b"b", b"c", b"d"))
    issame = np.array([True, False, True, False])
    write_pairs(str(tmp_path / "x"), [a, b, c, d, b, c, d, a], issame, "pairs")
    assert (tmp_path / "x/pairs.txt").read_text().splitlines() == [
        "4",  # ten contiguous folds of four pairs have no regular header
        "person_000000\t1\t2",
        "person_000000\t3\tperson_000001\t1",
        "person_000000\t2\t3",
        "person_000001\t1\tperson_000000\t1",
    ]
    assert (tmp_path / "x/person_000000/person_000000_0003.jpg").read_bytes() == c


def test_the_header_of_lfw_is_written_where_it_holds(tmp_path: Path) -> None:
    images, _ = made(40)
    issame = np.tile([True, True, False, False], 10)
    write_pairs(str(tmp_path / "x"), images, issame, "pairs")
    assert (tmp_path / "x/pairs.txt").read_text().startswith("10\t2\n")
    found = load(str(tmp_path / "x"))
    assert found.folds is not None and np.array_equal(found.folds, contiguous(40))
    assert found.images == images


def test_folds_and_names_travel_where_the_format_has_them(tmp_path: Path) -> None:
    images, issame = made(40)
    folds = np.repeat([3, 5, 9], [10, 10, 20])
    names = [f"s{i}/1" for i in range(80)]
    source = str(tmp_path / "x.parquet")
    write_pairs(source, images, issame, "parquet", folds=folds, ids=names)
    assert convert_pairs(source, str(tmp_path / "y.parquet"), "parquet") == 40
    found = load(str(tmp_path / "y.parquet"))
    assert found.folds is not None and found.folds.tolist() == folds.tolist()
    assert found.ids == names
    for format in ("bin", "xz", "pairs"):
        with pytest.raises(UserError, match="folds.*write parquet"):
            convert_pairs(source, str(tmp_path / "z"), format)
    assert sorted(os.listdir(tmp_path)) == ["x.parquet", "y.parquet"]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    with pytest.raises(UserError, match="unknown format 'zip'.*bin, xz, pairs, parquet"):
        write_pairs(path, [b"a", b"b"], np.array([True]), "zip")
    with pytest.raises(UserError, match="3 images for 1 pairs"):
        write_pairs(path, [b"a"] * 3, np.array([True]), "bin")
    with pytest.raises(UserError, match="image 1 is neither JPEG"):
        write_pairs(path, [JPEG, b"GIF89a"], np.array([True]), "pairs")
    assert os.listdir(tmp_path) == []


def test_what_is_no_set_is_told_from_one(tmp_path: Path) -> None:
    listing = put(tmp_path / "list.txt", b"a.jpg 1\n")
    with pytest.raises(UserError, match="no verification set; expected"):
        read_pairs(listing)
    assert not is_pair_set(listing)
    with pytest.raises(UserError, match="no such file"):
        read_pairs(str(tmp_path / "nothing"))
    assert is_pair_set(str(DATA / "pairs_py2.bin"))
    assert not is_pair_set(str(DATA / "train.rec"))


def test_the_digest_of_a_folder_is_that_of_what_is_in_the_set(tmp_path: Path) -> None:
    root = lfw(tmp_path / "x", "A\t1\t2\n", "A/A_0001.jpg", "A/A_0002.jpg")
    before = digest(root)
    put(tmp_path / "x/A/A_0003.jpg", b"not in the list")
    assert digest(root) == before
    put(tmp_path / "x/A/A_0002.jpg", b"changed")
    assert digest(root) != before
    pixels = npy(tmp_path / "y", np.zeros((2, 3, 2, 2), np.uint8), "1\n")
    before = digest(pixels)
    (tmp_path / "y/issame.txt").write_text("0\n")
    assert digest(pixels) != before


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_set_survives_every_format(tmp_path_factory: pytest.TempPathFactory, data) -> None:  # type: ignore[no-untyped-def]
    tmp_path = tmp_path_factory.mktemp("any")
    pool = data.draw(st.lists(st.binary(max_size=40).map(JPEG.__add__), min_size=1, max_size=6))
    pairs = data.draw(st.integers(1, 30))
    images = [data.draw(st.sampled_from(pool)) for _ in range(2 * pairs)]
    issame = np.array(data.draw(st.lists(st.booleans(), min_size=pairs, max_size=pairs)))
    before = None
    for i, format in enumerate(("bin", "pairs", "parquet", "xz", "bin")):
        path = str(tmp_path / f"{i}")
        if before is None:
            write_pairs(path, images, issame, format)
        else:
            convert_pairs(before, path, format)
        found, same = read_pairs(path)
        assert (found, same.tolist()) == (images, issame.tolist())
        before = path
    assert digest(str(tmp_path / "4")) == digest(str(tmp_path / "0"))


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with bytes changed, cut, repeated or swapped, or with a huge length in it."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(found) + 1)
        other = rng.randrange(len(found) + 1)
        match rng.randrange(6):
            case 0:
                found[at : at + 1] = rng.randbytes(1)
            case 1:
                del found[at:]
            case 2:
                found[at : at + 8] = rng.choice([b"\xff", b"\x7f", b"\x00"]) * 8
            case 3:
                found[at:at] = found[other : other + 50]
            case 4:
                del found[at : at + rng.randint(1, 9)]
            case _:
                found[at:at] = bytes(
                    rng.choices(b"(].ae012thjqr\x85\x86\x87\x88\x8c\x94RbcBCTU", k=3)
                )
    return bytes(found)


def sources(root: Path) -> dict[str, tuple[Path, str]]:
    """Sets, each as the file to mutate and the path to read."""
    images, issame = made(12)
    png = encode_png(np.zeros((4, 4, 3), np.uint8))
    found = {}
    for protocol in (0, 2, 4, 5):
        for name, make in (("bytes", bytes), ("array", lambda b: np.frombuffer(b, np.uint8))):
            value = ([make(image) for image in images], list(issame))
            path = root / f"{name}{protocol}.bin"
            found[path.name] = (path, put(path, pickle.dumps(value, protocol)))
    path = root / "x.xz"
    found["xz"] = (path, put(path, lzma.compress(pickle.dumps((images, issame.tolist()), 4))))
    write_pairs(str(root / "lfw"), images, issame, "pairs")
    found["pairs.txt"] = (root / "lfw/pairs.txt", str(root / "lfw"))
    npy(root / "npy", np.zeros((4, 3, 2, 2), np.uint8), "1\n0\n")
    found["npy"] = (root / "npy/npy.npy", str(root / "npy"))
    found["issame"] = (root / "npy/issame.txt", str(root / "npy"))
    write_pairs(str(root / "p"), [png] * 24, issame, "parquet")
    found["parquet"] = (root / "p", str(root / "p"))
    return found


@pytest.mark.slow
def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(5)
    refused = count = 0
    for file, path in sources(tmp_path).values():
        whole = file.read_bytes()
        for _ in range(120):
            file.write_bytes(mutated(whole, rng))
            count += 1
            try:
                images, issame = read_pairs(path)
                assert len(images) == 2 * len(issame) > 0
            except UserError:
                refused += 1
        file.write_bytes(whole)
        assert read_pairs(path)
    assert count // 4 < refused < count


def sized(opcode: bytes, claim: int) -> bytes:
    return PROTOCOL + b"](" + opcode + struct.pack("<Q", claim) + b"abc" + b"e."


def needing_4_gb() -> bytes:
    """What xz compressed, with a header that asks for the largest dictionary there is."""
    packed = bytearray(lzma.compress((DATA / "pairs_py2.bin").read_bytes()))
    end = 12 + (packed[12] + 1) * 4  # the block's header: its size, flags, filter, dictionary, CRC
    assert packed[14:16] == b"\x21\x01"
    packed[16] = 40
    packed[end - 4 : end] = struct.pack("<I", zlib.crc32(packed[12 : end - 4]))
    return bytes(packed)


def bombs(root: Path) -> list[str]:
    """Sets of at most some megabytes that would take gigabytes, or minutes, if believed."""
    many = 1_000_000
    array = pickle.dumps(([np.zeros(1, np.uint8)] * 2, [True]), 2)
    assert array.count(b"(K\x01K\x01\x85") == 1
    huge = b"(K\x01J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"
    text = b"X" + struct.pack("<I", 1_000_000) + b"x" * 1_000_000
    encode = b"c_codecs\nencode\n" + text + b"X\x06\x00\x00\x00latin1\x86R"
    again = b"]q\x03(" + b"h\x00h\x01R" * 500_000 + b"e."
    files = {
        "claims8": sized(b"\x8e", 2**62),
        "claims_bytearray": sized(b"\x96", 2**40),
        "claims_text": sized(b"\x8d", 2**63),
        "claims4": PROTOCOL + b"B\xff\xff\xff\xffabc.",
        "memo": PROTOCOL + b"]r\xff\xff\xff\xff" * 10 + b".",
        "long4": PROTOCOL + b"\x8b\xff\xff\xff\x7f" + b"\x01" * 100 + b".",
        "shape": array.replace(b"(K\x01K\x01\x85", huge),
        "encode": PROTOCOL
        + encode.replace(b"encode\n", b"encode\nq\x00").replace(b"\x86R", b"\x86q\x01R")
        + again,
        "lists": PROTOCOL + b"]" * many + b".",
        "marks": PROTOCOL + b"(" * many + b".",
        "nested": PROTOCOL + b")" + b"\x85" * many + b".",
        "memos": PROTOCOL + b"]" + b"\x94" * many + b".",
        "laughs": PROTOCOL
        + b"]\x94"
        + b"".join(b"](" + (b"h" + bytes([i])) * 10 + b"e\x94" for i in range(200))
        + b"]\x88a\x86.",
        "strings": PROTOCOL + b"](" + b"C\x02ab" * many + b"e.",
        "frames": PROTOCOL + (b"\x95" + bytes(8)) * 500_000 + b".",
        "lines": b"\x80\x02" + b"(I1\n" * 1_000_000 + b".",
        "zeros.xz": lzma.compress(bytes(200 << 20), preset=0),
        "dictionary.xz": needing_4_gb(),
    }
    paths = [put(root / name, data) for name, data in files.items()]
    for name, text_of in (
        ("wide", "a\t" * 3_000_000),
        ("blank", "\n" * 3_000_000),
        ("long", "".join(f"A\t{i}\t{i + 1}\n" for i in range(300_000))),
    ):
        paths.append(lfw(root / name, text_of, "A/A_0000.jpg", "A/A_0001.jpg"))
    return paths


READ_ALL = """
import resource, sys, time
from raypipe.errors import UserError
from raypipe.formats.verification import read_pairs
import pyarrow.fs, concurrent.futures, raypipe.formats.pairs_txt
read_pairs(sys.argv[1])
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
for path in sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_AS, (size + (128 << 20), resource.RLIM_INFINITY))
    start = time.perf_counter()
    try:
        read_pairs(path)
        print("read", path)
    except UserError as error:
        print("refused", round(time.perf_counter() - start, 2), error)
    assert time.perf_counter() - start < 5, path
"""


@pytest.mark.slow
def test_bombs_take_neither_memory_nor_time(tmp_path: Path) -> None:
    paths = bombs(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, str(DATA / "pairs_py2.bin"), *paths],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["refused"] * len(paths)


@pytest.mark.slow
def test_a_set_of_the_size_of_cfp_fp_is_read_in_a_second_or_two(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [JPEG + rng.bytes(int(n)) for n in rng.integers(5_000, 10_000, 14_000)]
    path = put(tmp_path / "cfp_fp.bin", pickle.dumps((images, [True] * 7_000), 4))
    start = time.perf_counter()
    found, issame = read_pairs(path)
    assert time.perf_counter() - start < 3
    assert found == images
    assert len(issame) == 7_000


@pytest.mark.slow
def test_sets_on_an_object_store(s3_bucket: str, tmp_path: Path) -> None:
    images, issame = made(20)
    for format in PAIR_FORMATS:
        path = f"{s3_bucket}/pairs/{format}"
        write_pairs(path, images, issame, format)
        found, same = read_pairs(path)
        assert (found, same.tolist()) == (images, issame.tolist())
        write_pairs(str(tmp_path / format), images, issame, format)
        assert digest(path) == digest(str(tmp_path / format))
        with pytest.raises(UserError, match="is there already"):
            write_pairs(path, images, issame, format)


def test_equal_sets_are_equal_files_whatever_objects_hold_them(tmp_path: Path) -> None:
    images, issame = read_pairs(str(DATA / "pairs_bytes.bin"))
    write_pairs(str(tmp_path / "a"), images, issame, "bin")
    write_pairs(str(tmp_path / "b"), read_pairs(str(DATA / "pairs_ndarray.bin"))[0], issame, "bin")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert io.BytesIO((tmp_path / "a").read_bytes()).read(2) == PROTOCOL
