"""Real evaluation of a recognizer with random weights on pairs of coloured noise."""

import json
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save, save_file

from jobs import evaluate, evaluate_files
from jobs.work import begin
from raypipe import storage
from raypipe.aligners import ARCFACE_TEMPLATE, warp_to_template
from raypipe.config import parse
from raypipe.errors import UserError
from raypipe.formats import verification
from raypipe.formats.pair_rows import SCHEMA
from raypipe.images import decode, encode_png
from raypipe.models.iresnet import iresnet
from raypipe.onnx_export import export_onnx

PEOPLE, SHOWN, FOLDS = 8, 3, 4


def write_pairs(path, broken=None):
    """Each fold has two people: 6 pairs of one person and 6 of two."""
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (PEOPLE, 1, 8, 8, 3))
    small = np.clip(centres + rng.normal(0, 90, (PEOPLE, SHOWN, 8, 8, 3)), 0, 255)
    faces = np.kron(small.astype(np.uint8), np.ones((14, 14, 1), np.uint8))
    png = [[encode_png(face) for face in person] for person in faces]
    rows = []
    for fold in range(FOLDS):
        a, b = png[2 * fold : 2 * fold + 2]
        same = [(p[i], p[j]) for p in (a, b) for i, j in ((0, 1), (0, 2), (1, 2))]
        other = [(a[i], b[j]) for i in range(SHOWN) for j in range(2)]
        for kind, chosen in ((True, same), (False, other)):
            for first, second in chosen:
                rows.append((first, second, kind, "p", "q", fold))
    if broken is not None:
        rows[broken] = (b"\x89PNG\r\n\x1a\nbroken", *rows[broken][1:])
    table = pa.table(dict(zip(SCHEMA.names, zip(*rows, strict=True), strict=True)))
    pq.write_table(table.cast(SCHEMA), path)
    return rows


@pytest.fixture
def workspace(tmp_path):
    """A workspace whose train job is done."""
    config = configured(tmp_path)
    work = begin(config, job="train", settings={})
    torch.manual_seed(0)
    network = iresnet("10", width=2)
    save_file(network.state_dict(), work.path("recognizer.safetensors"))
    storage.write_json(work.path("recognizer.json"), {"depth": "10", "width": 2})
    work.finish({}, storage.sha256_file(work.path("recognizer.safetensors")))
    return tmp_path


def configured(workspace, **changes):
    settings = {
        "sets": [{"name": "noise", "path": f"{workspace}/noise.parquet"}],
        "fars": [0.1],
        "images_per_batch": 5,
    }
    return parse(
        {
            "workspace": str(workspace),
            "embedder": {"kind": "dlib"},
            "ingest": {"sources": [{"name": "base", "path": "base"}]},
            "evaluate": settings | changes,
        },
        "test",
    )


def test_without_a_recognizer_it_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="run `raypipe train`"):
        evaluate.run(configured(tmp_path))


def test_a_missing_set_is_named(workspace):
    with pytest.raises(UserError, match=r"'noise': .*noise\.parquet: no such file"):
        evaluate.run(configured(workspace))


@pytest.mark.slow
def test_equals_a_plain_computation_for_any_number_of_actors(workspace, ray_cluster):
    rows = write_pairs(workspace / "noise.parquet")
    manifest = evaluate.run(configured(workspace))
    path = workspace / "evaluate/results.json"
    first = path.read_bytes()
    result = json.loads(first)["sets"]["noise"]

    torch.manual_seed(0)
    network = iresnet("10", width=2).eval()
    distances = []
    for row in rows:
        units = []
        for data in row[:2]:
            face = torch.from_numpy(decode(data, source="x").copy()).permute(2, 0, 1)[None]
            face = (face.float() / 255 - 0.5) / 0.5
            with torch.no_grad():
                embedding = (network(face) + network(face.flip(3)))[0].double()
            units.append(embedding / embedding.norm())
        distances.append((units[0] - units[1]).square().sum().item())
    cosines = 1 - np.array(distances) / 2
    for kind, same in (("genuine", True), ("impostor", False)):
        mine = cosines[[row[2] is same for row in rows]]
        assert result["histogram"][kind] == np.histogram(mine, np.linspace(-1, 1, 101))[0].tolist()
    correct = []
    for fold in range(FOLDS):
        train = [i for i, row in enumerate(rows) if row[5] != fold]
        scores = [sum((distances[i] < k * 0.01) == rows[i][2] for i in train) for k in range(400)]
        best = int(np.argmax(scores)) * 0.01
        test = [i for i, row in enumerate(rows) if row[5] == fold]
        correct.append(np.mean([(distances[i] < best) == rows[i][2] for i in test]))
    assert result["accuracies"] == pytest.approx(correct)
    assert result["accuracy"] == pytest.approx(np.mean(correct))
    assert result["std"] == pytest.approx(np.std(correct))
    assert (result["pairs"], result["genuine"], result["impostor"]) == (48, 24, 24)
    assert result["images"] == PEOPLE * SHOWN
    assert set(result["tar_at_far"]) == {"0.1"}
    assert result["roc"][-1] == [1.0, 1.0]

    written = path.stat().st_mtime_ns
    assert evaluate.run(configured(workspace)) == manifest
    assert path.stat().st_mtime_ns == written

    storage.delete(str(workspace / "evaluate"))
    more = configured(workspace, pool={"min": 2, "max": 2, "batch_size": 1})
    assert evaluate.run(more).content_digest == manifest.content_digest
    assert path.read_bytes() == first


@pytest.mark.slow
def test_published_files_give_the_numbers_of_the_same_pairs_in_parquet(workspace, ray_cluster):
    """A header of pairs.txt states four folds; a .bin has none, so it is cut into ten."""
    rows = write_pairs(workspace / "noise.parquet")
    images = [data for row in rows for data in row[:2]]
    issame = np.array([row[2] for row in rows])
    verification.write_pairs(
        str(workspace / "lfw"), images, issame, "pairs", folds=np.array([row[5] for row in rows])
    )
    # Both kinds in every tenth.
    mixed = np.stack([np.flatnonzero(issame), np.flatnonzero(~issame)], axis=1).ravel()
    mixed_images = [data for i in mixed for data in rows[i][:2]]
    verification.write_pairs(str(workspace / "x.bin"), mixed_images, issame[mixed], "bin")
    names = ("noise.parquet", "lfw", "x.bin")
    sets = [{"name": name, "path": f"{workspace}/{name}"} for name in names]
    evaluate.run(configured(workspace, sets=sets))
    results = json.loads((workspace / "evaluate/results.json").read_text())["sets"]
    assert results["lfw"] == results["noise.parquet"]
    assert len(results["x.bin"]["accuracies"]) == 10
    assert results["x.bin"]["auc"] == pytest.approx(results["lfw"]["auc"])

    (workspace / "lfw/pairs.txt").write_text((workspace / "lfw/pairs.txt").read_text() + "\n")
    with pytest.raises(UserError, match="inputs.lfw"):
        evaluate.run(configured(workspace, sets=sets))


@pytest.mark.slow
def test_images_of_another_size_are_counted_and_told(workspace, ray_cluster, capsys):
    rows = write_pairs(workspace / "noise.parquet")
    tall = np.pad(decode(rows[0][0], source="x"), ((20, 20), (0, 0), (0, 0)), mode="edge")
    other = {rows[0][0]: encode_png(tall)}
    images = [other.get(data, data) for row in rows for data in row[:2]]
    folds = np.array([row[5] for row in rows])
    same = np.array([row[2] for row in rows])
    verification.write_pairs(str(workspace / "tall"), images, same, "parquet", folds=folds)
    sets = [{"name": name, "path": f"{workspace}/{name}"} for name in ("noise.parquet", "tall")]
    evaluate.run(configured(workspace, sets=sets))
    results = json.loads((workspace / "evaluate/results.json").read_text())["sets"]
    # What was padded is cut off again, so every number is that of the other set.
    assert results["tall"] == results["noise.parquet"] | {"resized": 1}
    assert results["noise.parquet"]["resized"] == 0
    assert "tall: 1 of 24 images are not 112×112" in capsys.readouterr().err


@pytest.mark.slow
def test_an_undecodable_image_is_named_by_set_and_row(workspace, ray_cluster):
    write_pairs(workspace / "noise.parquet", broken=17)
    with pytest.raises(UserError, match="'noise', row 17, first"):
        evaluate.run(configured(workspace))
    assert not (workspace / "evaluate/manifest.json").exists()


def keep_epoch(workspace, epoch, seed):
    """What train leaves of an epoch."""
    torch.manual_seed(seed)
    path = str(workspace / f"train/epochs/epoch-{epoch:03d}.safetensors")
    storage.write_bytes(path, save(iresnet("10", width=2).state_dict()))


@pytest.mark.slow
def test_kept_epochs_are_scored_once_and_each_as_if_it_were_the_last(workspace, ray_cluster):
    write_pairs(workspace / "noise.parquet")
    keep_epoch(workspace, 2, seed=1)
    keep_epoch(workspace, 10, seed=0)  # the weights of the final recognizer
    (workspace / "train/epochs/epoch-011.safetensors.0.tmp").write_bytes(b"not whole yet")
    manifest = evaluate.run(configured(workspace))
    path = workspace / "evaluate/results.json"
    results = json.loads(path.read_bytes())
    assert [epoch["epoch"] for epoch in results["epochs"]] == [2, 10]
    last = results["epochs"][1]["sets"]["noise"]
    assert last == {name: results["sets"]["noise"][name] for name in last}
    assert results["epochs"][0]["sets"]["noise"]["auc"] != last["auc"]
    table = (workspace / "evaluate/results.md").read_text()
    assert "## Accuracy by epoch" in table
    assert "| HSFace10K, 0.5M | 98.87 |" in table

    # An epoch is scored anew only where its weights are others.
    files = [workspace / f"evaluate/epochs/epoch-{epoch:03d}.json" for epoch in (2, 10)]
    written = [file.stat().st_mtime_ns for file in files]
    keep_epoch(workspace, 2, seed=0)
    for name in ("manifest.json", "results.json"):
        (workspace / "evaluate" / name).unlink()
    again = evaluate.run(configured(workspace))
    assert again.content_digest != manifest.content_digest
    assert files[0].stat().st_mtime_ns != written[0]
    assert files[1].stat().st_mtime_ns == written[1]
    first, second = json.loads(path.read_bytes())["epochs"]
    assert first["sets"] == second["sets"]

    with pytest.raises(UserError, match="inputs.epochs"):
        evaluate.run(configured(workspace, epochs=False))


@pytest.mark.slow
def test_beside_training_every_epoch_is_scored_as_it_comes(workspace, ray_cluster, capsys):
    """Train is played by a thread that leaves the files it leaves, and its manifest last."""
    write_pairs(workspace / "noise.parquet")
    manifest = workspace / "train/manifest.json"
    done = manifest.read_bytes()
    manifest.unlink()
    found = []

    def train():
        for epoch in (1, 2):
            keep_epoch(workspace, epoch, seed=epoch)
            scored = workspace / f"evaluate/epochs/epoch-{epoch:03d}.json"
            while not scored.exists():
                time.sleep(0.05)
            found.append(epoch)
        keep_epoch(workspace, 3, seed=3)
        manifest.write_bytes(done)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    config = configured(workspace, epochs=True)
    config = config.model_copy(update={"train": config.train.model_copy(update={"keep_every": 1})})
    evaluate.follow(config)
    thread.join(10)
    assert found == [1, 2]
    results = json.loads((workspace / "evaluate/results.json").read_text())
    assert [epoch["epoch"] for epoch in results["epochs"]] == [1, 2, 3]
    said = capsys.readouterr().err
    assert all(said.count(f"evaluate: epoch {epoch}: noise") == 1 for epoch in (1, 2, 3))
    assert "waiting for more in" in said


def test_without_kept_epochs_there_is_nothing_to_follow(workspace):
    with pytest.raises(UserError, match="train.keep_every is 0"):
        evaluate.follow(configured(workspace))


@pytest.mark.slow
def test_groups_are_scored_where_the_set_states_them(workspace, ray_cluster):
    rows = write_pairs(workspace / "noise.parquet")
    table = pq.read_table(workspace / "noise.parquet")
    groups = [("even", "odd")[i % 2] for i in range(len(rows))]
    pq.write_table(table.append_column("group", pa.array(groups)), workspace / "noise.parquet")
    evaluate.run(configured(workspace))
    found = json.loads((workspace / "evaluate/results.json").read_text())["sets"]["noise"]
    assert set(found["groups"]) == {"even", "odd"}
    for parts in ("genuine", "impostor"):
        assert sum(group[parts] for group in found["groups"].values()) == found[parts]
    # Folds and groups are of equal size, so the accuracies are means of each other.
    mean = np.mean([group["accuracy"] for group in found["groups"].values()])
    assert mean == pytest.approx(found["accuracy"])
    assert "By group" in (workspace / "evaluate/results.md").read_text()


@pytest.mark.slow
def test_files_of_anyone_give_what_the_job_gives(workspace, ray_cluster, tmp_path, capsys):
    """Weights, and the same network in ONNX, without a workspace."""
    write_pairs(workspace / "noise.parquet")
    evaluate.run(configured(workspace, images_per_batch=64, fars=[0.001, 0.01]))
    expected = json.loads((workspace / "evaluate/results.json").read_text())["sets"]["noise"]
    weights = str(workspace / "train/recognizer.safetensors")
    model, out = str(tmp_path / "small.onnx"), str(tmp_path / "out.json")
    export_onnx(weights, model)
    evaluate_files.run([weights, model, str(workspace / "noise.parquet")], out, gpu=False)
    found = json.loads((tmp_path / "out.json").read_text())["recognizers"]
    assert list(found) == sorted([weights, model])
    of_weights = found[weights]["sets"]["noise"]
    assert of_weights.keys() == expected.keys()
    for name in ("accuracies", "thresholds", "auc"):
        assert of_weights[name] == pytest.approx(expected[name])
    assert found[weights]["weights"] == storage.sha256_file(weights)
    of_onnx = found[model]["sets"]["noise"]
    assert of_onnx["auc"] == pytest.approx(expected["auc"], abs=0.01)
    assert of_onnx["pairs"] == expected["pairs"]
    said = capsys.readouterr().err
    assert "HSFace10K" in said and "published [1]" in said and "not measured here" in said

    save_file({"some.weight": torch.zeros(2)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(
        UserError, match="other.safetensors: weights of no recognizer that is known"
    ):
        evaluate_files.run(
            [str(tmp_path / "other.safetensors"), str(workspace / "noise.parquet")], None, gpu=False
        )


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["{}/none.onnx", "{}/noise.parquet"], "none.onnx: no such file"),
        (["{}/train/recognizer.safetensors", "{}/lfw.bin"], "'lfw': .*lfw.bin: no such file"),
        (["{}/train/recognizer.safetensors", "{}/text.bin"], "text.bin: no verification set"),
        (["{}/train/recognizer.safetensors"], "no verification set to score on"),
        (["{}/noise.parquet"], "neither a configuration .* nor a recognizer"),
        (["{}/a.pt", "{}/x/noise.bin", "{}/noise.parquet"], "a.pt: no such file"),
        (
            ["{}/train/recognizer.safetensors", "{}/x/noise.bin", "{}/noise.parquet"],
            "two verification sets have one name",
        ),
    ],
)
def test_a_path_that_is_wrong_is_one_line(workspace, paths, message):
    write_pairs(workspace / "noise.parquet")
    (workspace / "text.bin").write_text("nothing of the kind")
    with pytest.raises(UserError, match=message) as caught:
        evaluate_files.run([path.format(workspace) for path in paths], None, gpu=False)
    assert "\n" not in str(caught.value)


TEMPLATES = [(0, 5), (0, 5), (0, 6), (1, 5), (2, 7), (2, 7), (3, 8), (3, 9), (3, 9)]
COMPARED = [(0, 1, 1), (2, 3, 1), (0, 2, 0), (0, 3, 0), (1, 2, 0), (1, 3, 0)]


def write_ijb(root):
    """Loose crops, in which the face is turned and shifted, and the same faces aligned.

    Templates 0 and 1 share a photograph, so that at least their pair is easy.
    """
    rng = np.random.default_rng(0)
    for folder in ("loose/meta", "loose/loose_crop", "straight/meta", "straight/aligned"):
        (root / folder).mkdir(parents=True)
    turn = np.array([[0.9, 0.3], [-0.3, 0.9]])
    media, faces, crops = [], [], []
    for i, (template, medium) in enumerate(TEMPLATES):
        small = np.random.default_rng(0 if i == 3 else i).integers(0, 256, (10, 9, 3), np.uint8)
        image = np.kron(small, np.ones((16, 16, 1), np.uint8))
        points = (ARCFACE_TEMPLATE @ turn + rng.normal(0, 1, (5, 2)) + 20).round(3)
        crops.append(warp_to_template(image, points.astype(np.float32), ARCFACE_TEMPLATE))
        (root / f"loose/loose_crop/{i}.png").write_bytes(encode_png(image))
        (root / f"straight/aligned/{i}.png").write_bytes(encode_png(crops[-1]))
        media.append(f"{i}.png {100 - template} {medium}")
        faces.append(" ".join([f"{i}.png", *(f"{p:.3f}" for p in points.ravel()), f"0.{9 - i}"]))
    lists = {
        "face_tid_mid": media,
        "name_5pts_score": faces,
        "template_pair_label": [f"{100 - a} {100 - b} {same}" for a, b, same in COMPARED],
    }
    for name, lines in lists.items():
        for folder in ("loose", "straight"):
            (root / folder / f"meta/ijbx_{name}.txt").write_text("\n".join(lines) + "\n")
    return crops


@pytest.mark.slow
def test_ijb_equals_a_plain_computation_for_any_number_of_actors(workspace, ray_cluster, capsys):
    crops = write_ijb(workspace)
    write_pairs(workspace / "noise.parquet")
    names = ("loose", "straight", "noise.parquet")
    sets = [{"name": name, "path": f"{workspace}/{name}"} for name in names]
    manifest = evaluate.run(configured(workspace, sets=sets, images_per_batch=2))
    path = workspace / "evaluate/results.json"
    first = path.read_bytes()
    results = json.loads(first)
    assert set(results["sets"]) == {"noise.parquet"}
    assert manifest.counts["pairs"] == {"loose": 6, "straight": 6, "noise.parquet": 48}

    torch.manual_seed(0)
    network = iresnet("10", width=2).eval()
    media = [{} for _ in range(4)]
    for i, (template, medium) in enumerate(TEMPLATES):
        face = torch.from_numpy(crops[i].copy()).permute(2, 0, 1)[None]
        face = (face.float() / 255 - 0.5) / 0.5
        with torch.no_grad():
            embedding = (network(face) + network(face.flip(3)))[0].double() * (9 - i) / 10
        media[template].setdefault(medium, []).append(embedding)
    sums = [sum(sum(shown) / len(shown) for shown in of.values()) for of in media]
    units = [total / total.norm() for total in sums]
    scores = [(units[a] @ units[b]).item() for a, b, _ in COMPARED]
    impostors = sorted(scores[2:], reverse=True)
    found = results["ijb"]["loose"]
    # Of four impostor pairs none is accepted at a rate below one in eight.
    tar = sum(score > impostors[0] for score in scores[:2]) / 2
    least = min(score for score in scores[:2] if score > impostors[0])
    assert tar > 0
    for point in found["tar_at_far"].values():
        assert point == {"tar": tar, "far": 0, "threshold": pytest.approx(least, abs=1e-6)}
    assert list(found["tar_at_far"]) == ["0.0001", "0.001", "0.01", "0.1", "1e-05", "1e-06"]
    wins = [genuine > impostor for genuine in scores[:2] for impostor in impostors]
    assert found["auc"] == pytest.approx(np.mean(wins))
    assert (found["pairs"], found["genuine"], found["impostor"]) == (6, 2, 4)
    assert (found["templates"], found["images"], found["resized"]) == (4, 9, 0)
    assert results["ijb"]["straight"] == found
    said = capsys.readouterr().err
    assert "1e-06" in said
    assert f"{100 * tar:.2f}" in said

    storage.delete(str(workspace / "evaluate"))
    pool = {"min": 2, "max": 2, "batch_size": 1}
    evaluate.run(configured(workspace, sets=sets, images_per_batch=2, pool=pool))
    assert path.read_bytes() == first


@pytest.mark.slow
def test_an_undecodable_image_of_ijb_is_named_by_its_file(workspace, ray_cluster):
    write_ijb(workspace)
    (workspace / "loose/loose_crop/4.png").write_bytes(b"no image")
    sets = [{"name": "loose", "path": f"{workspace}/loose"}]
    with pytest.raises(UserError, match=r"loose_crop/4\.png: not a readable image; replace the"):
        evaluate.run(configured(workspace, sets=sets))


def test_damage_of_ijb_is_named_by_set_list_and_line(workspace):
    write_ijb(workspace)
    sets = [{"name": "loose", "path": f"{workspace}/loose"}]
    (workspace / "loose/loose_crop/4.png").unlink()
    with pytest.raises(UserError, match=r"'loose': .*/4\.png: no such file, though line 5 of"):
        evaluate.run(configured(workspace, sets=sets))
    storage.delete(str(workspace / "evaluate"))
    with open(workspace / "loose/meta/ijbx_template_pair_label.txt", "a") as lines:
        lines.write("99 98\n")
    with pytest.raises(UserError, match=r"'loose': .*label\.txt: line 7: 2 fields"):
        evaluate.run(configured(workspace, sets=sets))
