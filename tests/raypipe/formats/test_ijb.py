import numpy as np
import pytest

from raypipe.errors import UserError
from raypipe.formats import ijb
from raypipe.formats.staging import upload

MEDIA = ["1.jpg 10 5", "2.jpg 10 5", "3.jpg 7 5", "4.jpg 300 6"]
FACES = [f"{i}.jpg 46.060 62.026 87.785 60.323 68.851 77.656 52 99.875 86 98.5 0.{i}" for i in
         range(1, 5)]  # fmt: skip
PAIRS = ["10 7 1", "300 10 0", "7 300 0"]


def write(root, media=MEDIA, faces=FACES, pairs=PAIRS, folder="loose_crop"):
    (root / "meta").mkdir(exist_ok=True)
    (root / folder).mkdir(exist_ok=True)
    for name, lines in (
        ("ijbc_face_tid_mid.txt", media),
        ("ijbc_name_5pts_score.txt", faces),
        ("ijbc_template_pair_label.txt", pairs),
    ):
        (root / "meta" / name).write_text("".join(f"{line}\n" for line in lines))
    for i in range(1, 5):
        (root / folder / f"{i}.jpg").write_bytes(b"x" * i)
    return str(root)


def test_reads_the_lists(tmp_path):
    found = ijb.read_ijb(write(tmp_path))
    assert found.names == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    assert found.templates.tolist() == [1, 1, 0, 2]
    assert found.media.tolist() == [5, 5, 5, 6]
    assert found.points.shape == (4, 5, 2)
    assert found.points[2, :2] == pytest.approx(np.array([[46.06, 62.026], [87.785, 60.323]]))
    assert found.scores == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert found.first.tolist() == [1, 2, 0]
    assert found.second.tolist() == [0, 1, 2]
    assert found.same.tolist() == [True, False, False]
    assert [a.dtype for a in (found.first, found.points, found.same)] == ["i4", "f4", "?"]


def test_many_blocks_are_one_list(tmp_path, monkeypatch):
    monkeypatch.setattr(ijb, "_BLOCK", 1000)  # of 4 MiB: several blocks in a small list
    pairs = [f"{10 if i % 3 else 7} 300 {i % 2}" for i in range(2000)]
    path = write(tmp_path, pairs=pairs)
    found = ijb.read_ijb(path)
    assert found.same.tolist() == [i % 2 == 1 for i in range(2000)]
    assert found.first.tolist() == [1 if i % 3 else 0 for i in range(2000)]
    for line, damage, message in (
        (1500, "10 300", "line 1500: 2 fields"),
        (1234, "10 300 x", "line 1234: label: "),
        (1999, "10 11 1", "line 1999: second template: 11 has no images"),
    ):
        write(tmp_path, pairs=[*pairs[: line - 1], damage, *pairs[line:]])
        with pytest.raises(UserError, match=message):
            ijb.read_ijb(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"media": [*MEDIA[:2], "3.jpg 7", MEDIA[3]]},
            r"tid_mid\.txt: line 3: 2 fields; expected 3",
        ),
        ({"media": [MEDIA[0], "2.jpg ten 5"]}, r"tid_mid\.txt: line 2: template: .*'ten'"),
        ({"media": [MEDIA[0], "", MEDIA[1]]}, "line 2: "),
        ({"media": [MEDIA[0], "2.jpg  10 5"]}, "line 2: 4 fields"),
        ({"media": []}, r"tid_mid\.txt: Empty"),
        ({"faces": FACES[:3]}, r"score\.txt: 3 images, but .* has 4"),
        ({"faces": [*FACES, FACES[0]]}, r"score\.txt: 5 images, but .* has 4"),
        ({"faces": [FACES[0], *FACES[2:]]}, r"line 2: image: '3\.jpg', but .* has '2\.jpg'"),
        ({"faces": [FACES[0], FACES[1].replace("52", "?"), *FACES[2:]]}, r"line 2: x4: .*'\?'"),
        ({"faces": [*FACES[:3], FACES[3].replace("0.4", "nan")]}, "line 4: score: nan is no"),
        ({"faces": [*FACES[:3], "4.jpg" + " 1" * 10 + " 0.9"]}, "line 4: its five points are one"),
        ({"pairs": [PAIRS[0], "8 7 0"]}, r"label\.txt: line 2: template: 8 has no images"),
        ({"pairs": [PAIRS[0], "301 7 0"]}, r"label\.txt: line 2: template: 301 has no images"),
        ({"pairs": [PAIRS[0], "10 7 2"]}, r"label\.txt: line 2: label: 2 is neither"),
        ({"pairs": PAIRS[1:]}, "needs pairs of one person"),
    ],
)
def test_damage_is_named_by_list_line_and_field(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        ijb.read_ijb(write(tmp_path, **change))


def test_a_missing_or_double_list(tmp_path):
    path = write(tmp_path)
    (tmp_path / "meta/ijbb_face_tid_mid.txt").write_text("")
    with pytest.raises(UserError, match=r"meta: expected one \*_face_tid_mid\.txt, found 2"):
        ijb.read_ijb(path)
    for name in ("ijbb_face_tid_mid.txt", "ijbc_template_pair_label.txt"):
        (tmp_path / "meta" / name).unlink()
    with pytest.raises(UserError, match=r"expected one \*_template_pair_label\.txt, found 0"):
        ijb.read_ijb(path)


@pytest.mark.parametrize("folder", ["loose_crop", "aligned"])
def test_images_are_found_and_stand_in_the_digest(tmp_path, folder):
    path = write(tmp_path, folder=folder)
    names = ijb.read_ijb(path).names
    assert ijb.image_files(path, names) == [f"{path}/{folder}/{name}" for name in names]
    assert ijb.is_loose(path) is (folder == "loose_crop")
    before = ijb.digest_ijb(path)
    assert ijb.digest_ijb(path) == before
    (tmp_path / folder / "3.jpg").write_bytes(b"longer")
    assert ijb.digest_ijb(path) != before
    (tmp_path / folder / "3.jpg").unlink()
    with pytest.raises(UserError, match=rf"{folder}/3\.jpg: no such file, though line 3 of .*mid"):
        ijb.image_files(path, names)


def test_tells_its_folder_from_others(tmp_path):
    assert not ijb.is_ijb(str(tmp_path))
    (tmp_path / "x.bin").write_bytes(b"")
    assert not ijb.is_ijb(str(tmp_path / "x.bin"))
    assert ijb.is_ijb(write(tmp_path))


def test_a_bucket_gives_the_same(tmp_path, s3_bucket):
    path, uri = write(tmp_path), f"{s3_bucket}/ijbc"
    upload(path, uri)
    assert ijb.is_ijb(uri) and ijb.is_loose(uri)
    names = ijb.read_ijb(uri).names
    assert ijb.image_files(uri, names) == [f"{uri}/loose_crop/{name}" for name in names]
    assert ijb.digest_ijb(uri) == ijb.digest_ijb(path)
