"""What other trainers take, read as they read it."""

import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from raypipe.errors import UserError
from raypipe.formats import Record, open_reader, open_writer
from raypipe.formats.image_folder import ImageFolder
from raypipe.images import encode_jpeg, encode_png

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 12, 12, 3), np.uint8)
IMAGES = [*map(encode_jpeg, PIXELS[:8]), encode_png(PIXELS[8])]


def records(labels: list[int]) -> list[Record]:
    return [Record(IMAGES[i % 9], label, f"p{label}", str(i)) for i, label in enumerate(labels)]


SOME = records(sorted(i % 12 for i in range(60)))


def write(path: Path | str, some: list[Record]) -> None:
    with open_writer(str(path), "lists") as writer:
        assert writer.by_label
        for record in some:
            writer.write(record)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("my set-1", SOME)  # a place that is relative, and has to be quoted
    return tmp_path / "my set-1"


def test_the_lists_name_every_image_in_order(made: Path) -> None:
    absolute = (made / "sota_fr.txt").read_text().splitlines()
    assert [Path(line).read_bytes() for line in absolute] == [r.image for r in SOME]
    spaced = [line.split(" ") for line in (made / "train.txt").read_text().splitlines()]
    assert [(made / path).read_bytes() for path, _ in spaced] == [r.image for r in SOME]
    assert [int(label) for _, label in spaced] == [r.label for r in SOME]
    numbered = [line.split("\t") for line in (made / "train.lst").read_text().splitlines()]
    assert [int(number) for number, _, _ in numbered] == list(range(60))
    assert numbered[7][1:] == ["1.000000", "images/0000001/0002.jpg"]
    assert [float(label) for _, label, _ in numbered] == [r.label for r in SOME]


@pytest.mark.parametrize("name", ["", "images", "sota_fr.txt", "train.txt", "train.lst"])
def test_all_of_it_reads_back(made: Path, name: str) -> None:
    found = list(open_reader(str(made / name)).records())
    assert [r[:2] for r in found] == [r[:2] for r in SOME]
    if not name:
        assert isinstance(open_reader(str(made)), ImageFolder)


def test_sota_fr_finds_the_same_labels(made: Path) -> None:
    """It sorts the paths by folder and numbers the folders (data/data_loader_train_lmdb.py)."""
    config = runpy.run_path(str(made / "my_set_1_sota_fr.py"))["config"]
    assert (config["num_ims"], config["mask"]) == (60, None)
    assert config["train_source"] == str(made / "sota_fr.txt")
    lines = Path(config["train_source"]).read_text().splitlines()
    assert not any("," in line or '"' in line for line in lines)  # to pandas.read_csv
    samples = sorted(lines, key=lambda line: line.split("/")[-2])
    assert samples == lines
    folders = list(dict.fromkeys(line.split("/")[-2] for line in samples))
    assert [folders.index(line.split("/")[-2]) for line in samples] == [r.label for r in SOME]


class Folder(torch.utils.data.Dataset):
    """Images and classes as torchvision's ImageFolder finds them: both in the order of names."""

    def __init__(self, root: str) -> None:
        folders = sorted(path for path in Path(root).iterdir() if path.is_dir())
        self.samples = [(path, n) for n, f in enumerate(folders) for path in sorted(f.iterdir())]
        self.classes = len(folders)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, label = self.samples[index]
        return torch.from_numpy(np.array(Pillow.open(path).convert("RGB"))), label


def test_arcface_torch_finds_its_folder_of_classes(made: Path) -> None:
    config = runpy.run_path(str(made / "my_set_1_arcface_torch.py"))["config"]
    dataset = Folder(config["rec"])
    assert (
        (config["num_classes"], config["num_image"]) == (dataset.classes, len(dataset)) == (12, 60)
    )
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=20))
    assert torch.cat([labels for _, labels in batches]).tolist() == [r.label for r in SOME]
    assert batches[0][0].shape == (20, 12, 12, 3)
    assert np.array_equal(batches[0][0][8], PIXELS[8])  # a PNG, so as it was
    for key in ("val_targets", "output", "warmup_epoch", "num_epoch"):  # base.py has no such
        assert key in config


def test_the_readme_has_commands_that_name_what_is_there(made: Path) -> None:
    text = (made / "README.txt").read_text()
    assert text.startswith("60 images of 12 identities; the classes are 0 to 11.\n")
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("    ")]
    copied = [words[1] for words in commands if words[0] == "cp"]
    assert copied == [str(made / f"my_set_1_{n}.py") for n in ("arcface_torch", "sota_fr")]
    assert all(Path(path).is_file() for path in copied)
    (converted,) = (words for words in commands if words[0] == "raypipe")
    assert Path(converted[2]).is_file()
    (entered,) = (words for words in commands if words[0] == "cd")
    assert entered[1] == str(made)
    assert all(len(line) <= 100 or str(made) in line for line in text.splitlines())


def test_labels_that_leave_gaps_become_classes_without(tmp_path: Path) -> None:
    write(tmp_path / "out", records([3, 3, 8, 12_000_000]))
    found = list(open_reader(str(tmp_path / "out")).records())
    assert [r.label for r in found] == [0, 0, 1, 2]
    lines = (tmp_path / "out" / "train.txt").read_text().splitlines()
    assert [line.split(" ")[1] for line in lines] == ["0", "0", "1", "2"]


def test_the_same_records_are_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for turn in range(2):
        write(tmp_path / "out", SOME)
        paths = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
        found.append([(str(path), path.read_bytes()) for path in paths])
        (tmp_path / "out").rename(tmp_path / f"before {turn}")
    assert found[0] == found[1]
    assert len(found[0]) == 60 + 6


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\nb"])
def test_a_place_that_pandas_would_misread_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="reads its list as CSV"):
        write(tmp_path / name, SOME)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bucket_is_refused(s3_bucket: str) -> None:
    with pytest.raises(UserError, match="the lists are of paths on a local disk"):
        write(f"{s3_bucket}/lists_out", SOME)
