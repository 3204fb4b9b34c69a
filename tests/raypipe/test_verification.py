import lzma
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.errors import UserError
from raypipe.formats.pair_rows import SCHEMA
from raypipe.formats.verification import convert_pairs, write_pairs
from raypipe.verification import (
    by_group,
    histogram,
    read_pairs,
    squared_distances,
    unit,
    verify,
)


def made_pairs(pairs=300, folds=10, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((pairs, 8))
    same = np.arange(pairs) % 2 == 0
    second = np.where(same[:, None], first + spread * rng.standard_normal((pairs, 8)), 0)
    second[~same] = rng.standard_normal((np.sum(~same), 8))
    return first, second, same, np.repeat(np.arange(folds), pairs // folds)


def scalar_protocol(distances, same, folds, fars):
    """The protocol as it is written down, one threshold and one pair at a time."""
    n = len(distances)
    accuracies, tars = [], {far: [] for far in fars}
    for fold in sorted(set(folds)):
        train = [i for i in range(n) if folds[i] != fold]
        test = [i for i in range(n) if folds[i] == fold]

        def accuracy(rows, t):
            return sum((distances[i] < t) == bool(same[i]) for i in rows) / len(rows)

        best, best_accuracy = 0.0, -1.0
        for k in range(400):
            if accuracy(train, k * 0.01) > best_accuracy:
                best, best_accuracy = k * 0.01, accuracy(train, k * 0.01)
        accuracies.append(accuracy(test, best))

        impostors = sorted(distances[i] for i in train if not same[i])
        for far in fars:
            rates, below = [], 0
            for k in range(4000):
                while below < len(impostors) and impostors[below] < k * 0.001:
                    below += 1
                rates.append(below / len(impostors))
            threshold = 0.0
            for k in range(3999):
                if rates[k] <= far < rates[k + 1]:
                    part = (far - rates[k]) / (rates[k + 1] - rates[k])
                    threshold = (k + part) * 0.001
            genuine = [i for i in test if same[i]]
            tars[far].append(sum(distances[i] < threshold for i in genuine) / len(genuine))
    return accuracies, {far: sum(values) / len(values) for far, values in tars.items()}


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
def test_equals_the_protocol_written_with_scalars(spread):
    first, second, same, folds = made_pairs(spread=spread)
    distances = squared_distances(unit(first), unit(second))
    result = verify(distances, same, folds, [0.01, 0.1])
    accuracies, tars = scalar_protocol(distances.tolist(), same, folds.tolist(), [0.01, 0.1])
    assert result.accuracies == pytest.approx(accuracies)
    for far, expected in tars.items():
        assert result.tars[far][0] == pytest.approx(expected)


def test_groups_equal_the_counts_written_with_scalars():
    first, second, same, folds = made_pairs(spread=1.5)
    distances = squared_distances(unit(first), unit(second))
    groups = [("north", "south", None)[i % 3] for i in range(len(same))]
    thresholds = verify(distances, same, folds, []).thresholds
    assert len(set(thresholds)) > 1
    found = by_group(distances, same, folds, groups, thresholds, [0.05, 0.001])
    assert list(found) == ["north", "south"]
    for name, result in found.items():
        mine = [i for i in range(len(same)) if groups[i] == name]
        right = sum((distances[i] < thresholds[folds[i]]) == same[i] for i in mine)
        assert result.accuracy == pytest.approx(right / len(mine))
        genuine = [distances[i] for i in mine if same[i]]
        impostor = [distances[i] for i in mine if not same[i]]
        assert (result.genuine, result.impostor) == (len(genuine), len(impostor))
        wrong = sum(distances[i] < thresholds[folds[i]] for i in mine if not same[i])
        assert result.far == pytest.approx(wrong / len(impostor))
        for far, (tar, reached) in result.tars.items():
            allowed = int(far * len(impostor))  # 2 of 50, and none
            bound = sorted(impostor)[allowed]  # the first impostor that has to be refused
            assert tar == pytest.approx(sum(d < bound for d in genuine) / len(genuine))
            assert reached == pytest.approx(allowed / len(impostor))


def test_a_group_of_one_kind_has_no_rate_of_the_other():
    same = np.array([True, False, True, False])
    folds, groups = np.array([0, 0, 1, 1]), ["a", "b", "a", "b"]
    found = by_group(np.array([0.5, 1.5, 0.5, 0.2]), same, folds, groups, [1.0, 1.0], [0.1])
    assert (found["a"].accuracy, found["a"].tar, found["a"].far) == (1.0, 1.0, None)
    assert (found["b"].accuracy, found["b"].tar, found["b"].far) == (0.5, None, 0.5)
    assert found["a"].tars == found["b"].tars == {}


def test_folds_are_those_of_kfold_without_shuffle():
    from sklearn.model_selection import KFold

    first, _, _, folds = made_pairs()
    parts = [test.tolist() for _, test in KFold(10, shuffle=False).split(first)]
    assert parts == [np.flatnonzero(folds == fold).tolist() for fold in range(10)]


def test_curve_and_area_are_those_of_scikit_learn():
    from sklearn.metrics import roc_auc_score, roc_curve

    first, second, same, folds = made_pairs(pairs=3000, spread=1.5)
    distances = squared_distances(unit(first), unit(second))
    result = verify(distances, same, folds, [0.01])
    assert result.auc == pytest.approx(roc_auc_score(same, -distances))
    false, true, _ = roc_curve(same, -distances, drop_intermediate=False)
    known = set(zip(false.round(9).tolist(), true.round(9).tolist(), strict=True))
    assert {(round(a, 9), round(b, 9)) for a, b in result.roc} <= known
    assert result.roc[0][0] == 0
    assert result.roc[-1] == (1.0, 1.0)
    assert 100 < len(result.roc) <= 200


def test_ties_count_half_in_the_area():
    distances = np.array([1.0, 1.0, 1.0, 1.0])
    same = np.array([True, False, True, False])
    assert verify(distances, same, np.array([0, 0, 1, 1]), [0.1]).auc == pytest.approx(0.5)


def test_perfect_separation_and_its_opposite():
    same = np.arange(40) % 2 == 0
    folds = np.repeat(np.arange(10), 4)
    perfect = verify(np.where(same, 0.5, 1.5), same, folds, [0.001, 0.1])
    assert perfect.accuracies == [1.0] * 10
    assert perfect.auc == 1.0
    assert perfect.tars[0.1][0] == 1.0
    wrong = verify(np.where(same, 1.5, 0.5), same, folds, [0.1])
    assert wrong.auc == 0.0
    assert wrong.tars[0.1][0] == 0.0


def test_a_rate_the_other_folds_never_reach_accepts_nobody():
    same = np.arange(40) % 2 == 0
    distances = np.where(same, 0.5, 4.0)  # no impostor lies below the last threshold
    result = verify(distances, same, np.repeat(np.arange(10), 4), [0.1])
    assert result.tars[0.1] == (0.0, 0.0, 0.0)


def test_unit_scales_rows_and_leaves_zero_alone():
    rows = unit(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32))
    assert rows.tolist() == [[0.6, 0.8], [0.0, 0.0]]


def test_histogram_counts_every_pair_once():
    first, second, same, _ = made_pairs()
    counts = histogram(squared_distances(unit(first), unit(second)), same)
    assert sum(counts["genuine"]) == same.sum()
    assert sum(counts["impostor"]) == (~same).sum()
    assert len(counts["edges"]) == len(counts["genuine"]) + 1


def table(rows=8, **columns):
    values = {
        "first": [b"a"] * rows,
        "second": [b"b"] * rows,
        "same": [i % 2 == 0 for i in range(rows)],
        "first_id": ["x"] * rows,
        "second_id": ["y"] * rows,
        "fold": [i // 4 for i in range(rows)],
    } | columns
    return pa.table(values)


def test_reads_what_was_written(tmp_path):
    path = str(tmp_path / "pairs.parquet")
    pq.write_table(table().cast(SCHEMA), path)
    pairs = read_pairs(path, "orl")
    assert pairs.first == [b"a"] * 8
    assert pairs.same.tolist() == [True, False] * 4
    assert pairs.folds.tolist() == [0] * 4 + [1] * 4


def test_groups_are_read_where_the_file_has_them(tmp_path):
    path = str(tmp_path / "pairs.parquet")
    pq.write_table(table(group=["a", None] * 4), path)
    assert read_pairs(path, "orl").groups == ["a", None] * 4
    convert_pairs(path, str(tmp_path / "again.parquet"), "parquet")
    assert read_pairs(str(tmp_path / "again.parquet"), "orl").groups == ["a", None] * 4
    pq.write_table(table(), path)
    assert read_pairs(path, "orl").groups is None


@pytest.mark.parametrize("pairs", [6000, 4280])
def test_sets_of_sota_fr_are_read_whatever_their_number_of_pairs(tmp_path, pairs):
    """SLLFW, Hadrian and Eclipse come as lzma of the pickled tuple of lfw, in the order of folds.

    What they are read from is written here by lzma and pickle, not by raypipe.
    """
    images = [b"\xff\xd8\xff%d" % (i % 900) for i in range(2 * pairs)]
    issame = [i // (pairs // 20) % 2 == 0 for i in range(pairs)]
    path = tmp_path / "hadrian_even.xz"
    path.write_bytes(lzma.compress(pickle.dumps((images, issame)), preset=0))
    found = read_pairs(str(path), "hadrian")
    assert found.first == images[0::2]
    assert found.second == images[1::2]
    assert found.same.tolist() == issame
    assert np.bincount(found.folds).tolist() == [pairs // 10] * 10


def test_without_folds_they_are_those_of_kfold(tmp_path):
    from sklearn.model_selection import KFold

    images = [b"%d" % i for i in range(2 * 67)]
    write_pairs(str(tmp_path / "x.bin"), images, np.arange(67) % 2 == 0, "bin")
    pairs = read_pairs(str(tmp_path / "x.bin"), "x")
    parts = [test.tolist() for _, test in KFold(10, shuffle=False).split(pairs.same)]
    assert parts == [np.flatnonzero(pairs.folds == fold).tolist() for fold in range(10)]
    assert [*pairs.first[:2], *pairs.second[:2]] == [b"0", b"2", b"1", b"3"]


def test_a_sorted_list_has_no_folds_and_is_refused(tmp_path):
    path = str(tmp_path / "sorted.bin")
    write_pairs(path, [b"a", b"b"] * 60, np.arange(60) < 30, "bin")
    with pytest.raises(UserError, match=r"fold 0 needs genuine .* ten contiguous parts of its 60"):
        read_pairs(path, "sorted")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (table().drop_columns(["same"]), "no column 'same'"),
        (table(fold=["one"] * 8), "column 'fold' should be int32"),
        (table(group=[["a"]] * 8), "column 'group' should be string"),
        (table(first=[b"a"] * 7 + [None]), "row 7: no first"),
        (table(fold=[0] * 8), "several values"),
        (table(fold=[1] * 4 + [0] * 4), "must rise"),
        (table(same=[True, False] * 2 + [True] * 4), "fold 1 needs genuine and impostor"),
    ],
)
def test_refuses_a_broken_set(tmp_path, broken, message):
    path = str(tmp_path / "pairs.parquet")
    pq.write_table(broken, path)
    with pytest.raises(UserError, match=message) as caught:
        read_pairs(path, "orl")
    assert "'orl'" in str(caught.value)


def test_refuses_a_missing_file_and_what_is_no_set(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_pairs(str(tmp_path / "none.parquet"), "orl")
    path = tmp_path / "text.parquet"
    path.write_bytes(b"not parquet")
    with pytest.raises(UserError, match="'orl'.*no verification set"):
        read_pairs(str(path), "orl")
