"""Row groups at the edges of a Parquet set."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe.formats import Record, open_reader, open_writer


def test_a_row_group_without_a_row_is_no_damage(tmp_path: Path) -> None:
    table = pa.table({"image": [b"\xff\xd8\xff one"], "label": [0]})
    with pq.ParquetWriter(tmp_path / "set.parquet", table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table.slice(1))
    found = open_reader(str(tmp_path / "set.parquet"))
    assert [record.image for record in found.records()] == [b"\xff\xd8\xff one"]


def test_a_set_that_fills_its_row_groups_ends_with_the_last(tmp_path: Path) -> None:
    with open_writer(str(tmp_path / "set"), "parquet") as writer:
        for number in range(1000):
            writer.write(Record(b"\xff\xd8\xff", 0, "0", str(number)))
    (path,) = (tmp_path / "set" / "data").iterdir()
    assert pq.ParquetFile(path).num_row_groups == 1
