"""The rows of a training set by their positions, wherever the files are."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.config.curriculum import CurriculumConfig
from raypipe.errors import UserError

# Row groups that are read at the same time, for the sake of an object store that answers slowly.
_READERS = 4
IDS = ("identity_id", "image_id")


@dataclass(frozen=True, kw_only=True)
class RowGroups:
    """Where the rows of a set are. Small: it travels to every reader.

    Attributes:
        files: Parquet files in the order of the set.
        file: int64 (G,), of every row group, the file that it is in.
        number: int64 (G,), its number in that file.
        first: int64 (G,), position of its first row.
        images: rows in all.
        columns: names of the columns.
    """

    files: list[str]
    file: np.ndarray
    number: np.ndarray
    first: np.ndarray
    images: int
    columns: list[str]

    @classmethod
    def of(cls, files: Sequence[str]) -> "RowGroups":
        """Reads the footers of the files.

        Raises:
            UserError: where a file is not Parquet or lacks images or labels.
        """
        with ThreadPoolExecutor(_READERS) as readers:
            footers = list(readers.map(_footer, files))
        sizes = [[f.row_group(i).num_rows for i in range(f.num_row_groups)] for f in footers]
        flat = np.array([rows for part in sizes for rows in part], np.int64)
        return cls(
            files=list(files),
            file=np.repeat(np.arange(len(files)), [len(part) for part in sizes]),
            number=np.array([i for part in sizes for i in range(len(part))], np.int64),
            first=np.cumsum(flat) - flat,
            images=int(flat.sum()),
            columns=footers[0].schema.to_arrow_schema().names,
        )

    def read(self, positions: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Rows in the order of their positions, which may repeat.

        Returns:
            The columns, and `position` (int64).
        """
        group = np.searchsorted(self.first, positions, side="right") - 1
        needed, place = np.unique(group, return_inverse=True)

        def part(number: int) -> tuple[pa.Table, np.ndarray]:
            which = needed[number]
            wanted = np.flatnonzero(place == number)
            where, inner = storage.filesystem(self.files[self.file[which]])
            with where.open_input_file(inner) as stream:
                table = pq.ParquetFile(stream).read_row_group(self.number[which], list(columns))
            return table.take(positions[wanted] - self.first[which]), wanted

        with ThreadPoolExecutor(_READERS) as readers:
            parts = list(readers.map(part, range(len(needed))))
        back = np.argsort(np.concatenate([wanted for _, wanted in parts]), kind="stable")
        table = pa.concat_tables([table for table, _ in parts]).take(back)
        return table.append_column("position", pa.array(positions, pa.int64()))

    def column(self, name: str) -> pa.ChunkedArray:
        """A small column of the whole set."""

        def one(path: str) -> pa.Table:
            where, inner = storage.filesystem(path)
            return pq.read_table(inner, columns=[name], filesystem=where)

        with ThreadPoolExecutor(_READERS) as readers:
            return pa.concat_tables(readers.map(one, self.files))[name]

    @property
    def labels(self) -> np.ndarray:
        """int64 (images,), class of every position. Not kept: it would travel to every reader.

        Raises:
            UserError: where a label is missing or negative, or a class has no image.
        """
        column = self.column("label")
        if column.null_count:
            raise UserError(f"training set {self._where}: {column.null_count} rows have no label")
        labels = column.cast(pa.int64()).to_numpy()
        if labels.min() < 0:
            at = int(labels.argmin())
            raise UserError(
                f"training set {self._where}: position {at} has label {labels[at]}; labels are 0 "
                "and up"
            )
        counts = np.bincount(labels) if labels.max() < 2 * len(labels) else np.zeros(1, int)
        if not counts.all():
            raise UserError(
                f"training set {self._where}: labels go up to {labels.max()}, and label "
                f"{int(counts.argmin())} has no image; a head would hold classes that nobody is "
                "in. `raypipe convert` numbers them anew"
            )
        return labels

    def phases(self, config: CurriculumConfig) -> np.ndarray:
        """int64 (images,), phase of every position, from 0.

        Raises:
            UserError: where the set does not say what the phases are made by.
        """
        if config.by == "source":
            if "phase" not in self.columns:
                return np.zeros(self.images, np.int64)
            return self.column("phase").cast(pa.int64()).to_numpy()
        name, sign = {"similarity": ("similarity", -1), "nearest": ("nearest", 1)}[config.by]
        values = self.column(name) if name in self.columns else None
        if values is None or values.null_count:
            missing = "no column" if values is None else f"{values.null_count} rows without"
            raise UserError(
                f"train.curriculum.by: training set {self._where} has {missing} {name!r}; use by: "
                "source, or assemble the set from one with embeddings"
            )
        ranks = np.argsort(np.argsort(sign * values.to_numpy(), kind="stable"), kind="stable")
        return ranks * config.levels // self.images

    def names(self, positions: np.ndarray) -> list[str]:
        """What the set calls the images at positions: identity and image, or the position alone."""
        if any(name not in self.columns for name in IDS):
            return [f"position {position}" for position in positions.tolist()]
        table = self.read(positions, IDS)
        pairs = zip(*(table[name].to_pylist() for name in IDS), strict=True)
        return [f"{identity}/{image}" for identity, image in pairs]

    @property
    def _where(self) -> str:
        return self.files[0].rsplit("/", 1)[0]


def _footer(path: str) -> pq.FileMetaData:
    where, inner = storage.filesystem(path)
    try:
        with where.open_input_file(inner) as stream:
            footer = pq.read_metadata(stream)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({error})") from None
    names = footer.schema.to_arrow_schema().names
    for name in ("image", "label"):
        if name not in names:
            raise UserError(f"{path}: no column {name!r}; a training set has image and label")
    return footer
