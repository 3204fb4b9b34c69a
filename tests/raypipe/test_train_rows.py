import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raypipe.config.curriculum import CurriculumConfig
from raypipe.errors import UserError
from raypipe.train_rows import RowGroups

ROWS = 100


def table(**columns):
    values = {
        "image": [{"bytes": bytes([i]), "path": None} for i in range(ROWS)],
        "label": [i % 7 for i in range(ROWS)],
        "identity_id": [f"base/{i % 7}" for i in range(ROWS)],
        "image_id": [f"{i:03d}.jpg" for i in range(ROWS)],
        "phase": [i // 60 for i in range(ROWS)],
        "similarity": np.linspace(0.9, 0.1, ROWS).astype(np.float32),
    }
    return pa.table({k: v for k, v in (values | columns).items() if v is not None})


@pytest.fixture
def written(tmp_path):
    def write(**columns):
        whole = table(**columns)
        paths = []
        for number, start in enumerate(range(0, ROWS, 45)):
            paths.append(str(tmp_path / f"shard-{number}.parquet"))
            pq.write_table(whole.slice(start, 45), paths[-1], row_group_size=10)
        return RowGroups.of(paths)

    return write


def test_reads_rows_by_position_in_the_order_asked_for(written):
    rows = written()
    assert rows.images == ROWS
    assert rows.first.tolist() == [*range(0, 45, 10), *range(45, 90, 10), 90]
    positions = np.random.default_rng(0).permutation(ROWS)[:40]
    positions = np.concatenate([positions, positions[:5]])
    found = rows.read(positions, ("image", "label"))
    assert [image["bytes"] for image in found["image"].to_pylist()] == [
        bytes([p]) for p in positions.tolist()
    ]
    assert found["label"].to_pylist() == [p % 7 for p in positions.tolist()]
    assert found["position"].to_pylist() == positions.tolist()


def test_labels_do_not_travel_along(written):
    rows = written()
    before = len(pickle.dumps(rows))
    assert rows.labels.max() == 6
    assert len(pickle.dumps(rows)) == before


def test_names_images(written):
    assert written().names(np.array([8, 3])) == ["base/1/008.jpg", "base/3/003.jpg"]
    assert written(image_id=None).names(np.array([8])) == ["position 8"]


def test_phases_by_source_similarity_and_nearest(written):
    rows = written(nearest=np.linspace(0.1, 0.9, ROWS))
    assert rows.phases(CurriculumConfig()).tolist() == [i // 60 for i in range(ROWS)]
    thirds = (np.arange(ROWS) * 3 // ROWS).tolist()
    assert rows.phases(CurriculumConfig(by="similarity")).tolist() == thirds
    assert rows.phases(CurriculumConfig(by="nearest")).tolist() == thirds
    four = rows.phases(CurriculumConfig(by="similarity", levels=4))
    assert np.bincount(four).tolist() == [25] * 4


def test_a_set_of_anyones_has_one_phase(written):
    rows = written(phase=None, similarity=None)
    assert set(rows.phases(CurriculumConfig()).tolist()) == {0}
    with pytest.raises(UserError, match="no column 'similarity'; use by: source"):
        rows.phases(CurriculumConfig(by="similarity"))
    with pytest.raises(UserError, match="no column 'nearest'"):
        rows.phases(CurriculumConfig(by="nearest"))


def test_labels_are_checked(written):
    assert written().labels.tolist() == [i % 7 for i in range(ROWS)]
    with pytest.raises(UserError, match="position 20 has label -1"):
        written(label=[-1 if i == 20 else i % 7 for i in range(ROWS)]).labels  # noqa: B018
    with pytest.raises(UserError, match=r"labels go up to 7, and label 3 has no image.*convert"):
        written(label=[7 if i % 7 == 3 else i % 7 for i in range(ROWS)]).labels  # noqa: B018
    with pytest.raises(UserError, match="1 rows have no label"):
        written(label=[None if i == 20 else i % 7 for i in range(ROWS)]).labels  # noqa: B018


def test_files_that_are_no_training_set_are_named(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: not a Parquet file that can be read"):
        RowGroups.of([str(path)])
    pq.write_table(pa.table({"image": [b""]}), path)
    with pytest.raises(UserError, match="no column 'label'"):
        RowGroups.of([str(path)])
