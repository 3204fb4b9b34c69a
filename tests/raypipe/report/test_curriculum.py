import pyarrow as pa

from raypipe import storage
from raypipe.report.sections.curriculum import phases, similarities
from raypipe.training_set import FLAT, PARQUET, shard_name, to_parquet


def write(root: str, number: int, first: int, phase_of: list[int]) -> None:
    rows = [
        {"key": f"k{first + i}", "data": b"x", "source": "base", "phase": phase}
        | {"position": first + i, "label": 0, "identity_id": "p", "image_id": str(i)}
        | {"similarity": [-1.0, 0.5, 0.99, None][i % 4]}
        for i, phase in enumerate(phase_of)
    ]
    table = pa.Table.from_pylist(rows, schema=FLAT)
    storage.write_bytes(
        storage.join(root, PARQUET, f"{shard_name(number)}.parquet"), to_parquet(table)
    )


def test_finds_where_each_phase_begins(tmp_path) -> None:
    root = str(tmp_path)
    write(root, 0, 0, [0] * 20)
    write(root, 1, 20, [0] * 5 + [1] * 3 + [2] * 12)
    write(root, 2, 40, [2] * 20)
    found, total = phases(root)
    assert total == 60
    assert [(phase.number, phase.start) for phase in found] == [(0, 0), (1, 25), (2, 28)]
    assert [row["position"] for row in found[1].rows] == [25, 26, 27]
    assert [row["position"] for row in found[2].rows] == list(range(28, 40))


def test_counts_similarities_by_phase(tmp_path) -> None:
    root = str(tmp_path)
    write(root, 0, 0, [0] * 8)
    write(root, 1, 8, [1] * 4)
    write(root, 2, 12, [1] * 4)
    found = similarities(root)
    assert list(found) == [0, 1]
    for counts in found.values():
        assert counts.sum() == 6
        assert counts[[0, 750, 995]].tolist() == [2, 2, 2]
