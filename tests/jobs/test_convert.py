"""Every format into every other, through the command line and by hand."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from jobs.cli import app
from jobs.convert import convert
from raypipe.errors import UserError
from raypipe.formats import Record, open_reader, open_writer
from raypipe.formats.detect import WRITERS
from raypipe.formats.verification import read_pairs
from raypipe.images import encode_jpeg, encode_png

FILES = Path(__file__).parents[1] / "data" / "formats"
TRUTH = json.loads((FILES / "truth.json").read_text())
# "lists" needs the images as files, and so reads as the list of them.
PLAIN = [name for name in WRITERS if name not in ("vec2face", "lists")]


def truth() -> list[tuple[str, int]]:
    return list(zip(TRUTH["sha256"], TRUTH["labels"], strict=True))


def held(path: Path | str) -> list[tuple[str, int]]:
    """Digest and label of every record."""
    return [(sha256(r.image).hexdigest(), r.label) for r in open_reader(str(path)).records()]


def raypipe(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["convert", *arguments])


@pytest.mark.parametrize("first", PLAIN)
def test_from_every_format_to_every_other(tmp_path: Path, first: str) -> None:
    source = FILES / "train.rec"
    convert(str(source), str(tmp_path / "first"), first)
    assert held(tmp_path / "first") == truth()
    for second in PLAIN:
        convert(str(tmp_path / "first"), str(tmp_path / second), second)
        assert held(tmp_path / second) == truth(), f"{first} to {second}"


@pytest.mark.parametrize("name", ["train.rec", "hsface.lmdb"])
def test_what_others_wrote_holds_what_they_wrote(name: str) -> None:
    assert held(FILES / name) == truth()


def shuffled(images: int = 40) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    for number in range(images):
        rgb = rng.integers(0, 256, (8, 8, 3), np.uint8)
        image = encode_png(rgb) if number % 3 else encode_jpeg(rgb)
        label = int(rng.integers(0, 5))
        yield Record(image, label, f"person {label}", f"{number}")


@pytest.mark.parametrize("format", PLAIN)
def test_a_shuffled_set_keeps_its_order_where_the_format_can_hold_it(
    tmp_path: Path, format: str
) -> None:
    records = list(shuffled())
    with open_writer(str(tmp_path / "set"), "webdataset") as writer:
        for record in records:
            writer.write(record)
    result = convert(str(tmp_path / "set"), str(tmp_path / "out"), format)
    together = format in ("hsface", "insightface", "folder")
    wanted = sorted(records, key=lambda r: r.label) if together else records
    assert held(tmp_path / "out") == [(sha256(r.image).hexdigest(), r.label) for r in wanted]
    assert ("brought together" in result.text) == together


def test_labels_with_gaps_are_numbered_anew(tmp_path: Path) -> None:
    records = [r._replace(label=100 + 2 * r.label) for r in shuffled()]
    with open_writer(str(tmp_path / "set"), "webdataset") as writer:
        for record in records:
            writer.write(record)
    result = convert(str(tmp_path / "set"), str(tmp_path / "out"), "im2rec")
    assert "labels were 100 to 108 with gaps" in result.text
    assert [label for _, label in held(tmp_path / "out")] == [r.label for r in shuffled()]


def test_a_mask_takes_some_and_numbers_them_densely(tmp_path: Path) -> None:
    kept = [3, 4, 9, 20, 21]
    np.save(tmp_path / "mask.npy", np.array(kept))
    source, target = str(FILES / "hsface.lmdb"), str(tmp_path / "out")
    convert(source, target, "hsface", mask=str(tmp_path / "mask.npy"))
    labels = np.unique([TRUTH["labels"][i] for i in kept], return_inverse=True)[1]
    assert held(target) == [(TRUTH["sha256"][i], n) for i, n in zip(kept, labels, strict=True)]


@pytest.mark.parametrize("format", ["webdataset", "hsface"])
def test_damage_is_named_and_everything_else_converted(tmp_path: Path, format: str) -> None:
    found = raypipe(str(FILES / "truncated.rec"), str(tmp_path / "out"), "--format", format)
    assert found.exit_code == 1
    intact = held(tmp_path / "out")
    assert intact == truth()[: len(intact)]
    assert len(intact) >= 20
    assert "truncated.rec: byte " in found.stderr
    assert "Traceback" not in found.stderr


def test_damage_in_a_shuffled_set_is_still_told(tmp_path: Path) -> None:
    records = list(shuffled())
    with open_writer(str(tmp_path / "set"), "im2rec") as writer:
        for record in records:
            writer.write(record)
    data = (tmp_path / "set" / "train.rec").read_bytes()
    (tmp_path / "cut.rec").write_bytes(data[:-300])
    result = convert(str(tmp_path / "cut.rec"), str(tmp_path / "out"), "hsface")
    (fault,) = result.faults
    assert "cut.rec: byte " in fault
    assert set(held(tmp_path / "out")) < {(sha256(r.image).hexdigest(), r.label) for r in records}


@pytest.mark.parametrize("format", PLAIN)
def test_what_is_no_image_is_left_out_and_told(tmp_path: Path, format: str) -> None:
    records = list(shuffled())
    with open_writer(str(tmp_path / "set"), "im2rec") as writer:
        for record in records:
            writer.write(record)
        for _ in range(7):
            writer.write(Record(b"these are words", 2, "2", ""))
    result = convert(str(tmp_path / "set"), str(tmp_path / "out"), format)
    assert set(held(tmp_path / "out")) == {(sha256(r.image).hexdigest(), r.label) for r in records}
    assert "record 40 is no image" in result.faults[0]
    assert result.faults[-1].startswith("7 records of ")


def test_a_verification_set_goes_into_its_own_formats_only(tmp_path: Path) -> None:
    images, issame = read_pairs(str(FILES / "pairs_bytes.bin"))
    for format in ("bin", "xz", "pairs", "parquet"):
        convert(str(FILES / "pairs_py2.bin"), str(tmp_path / format), format)
        again, same = read_pairs(str(tmp_path / format))
        assert again == images
        assert np.array_equal(same, issame)
    convert(str(tmp_path / "parquet"), str(tmp_path / "back"), "bin")
    assert read_pairs(str(tmp_path / "back"))[0] == images
    with pytest.raises(UserError, match="a verification set, which 'hsface' cannot hold"):
        convert(str(FILES / "pairs_py2.bin"), str(tmp_path / "no"), "hsface")
    with pytest.raises(UserError, match="a training set, which 'bin' cannot hold"):
        convert(str(FILES / "train.rec"), str(tmp_path / "no"), "bin")
    with pytest.raises(UserError, match="read_pairs"):
        open_reader(str(FILES / "pairs_py2.bin"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{0}/nothing", "{0}/out", "--format", "hsface"], "no such file or folder"),
        (["{1}", "{0}/out", "--format", "h5"], "unknown format 'h5'; known: hsface"),
        (["{1}", "{0}/there", "--format", "hsface"], "is there already"),
        (["{1}", "{0}/out", "--format", "hsface", "--mask", "m.npy"], "a mask is for an LMDB"),
        (["{2}", "{0}/out", "--format", "bin"], "refused"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_left(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    (tmp_path / "there").mkdir()
    paths = (tmp_path, FILES / "train.rec", FILES / "pairs_evil.bin")
    found = raypipe(*(argument.format(*paths) for argument in arguments))
    assert found.exit_code == 2
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
