"""One Parquet file of images: which columns hold what, and its row groups, checked and in pieces.

pyarrow does the reading; what it would believe of a file and should not is checked here first: the
length of the footer, how many rows a row group can hold, where its bytes are, how far they unpack.
"""

import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.errors import UserError

# What a column of images, of labels, ... is called; the first name that is there counts.
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
LABELS = ("label", "labels", "class", "cls")
IDENTITIES = ("identity_id", "identity")
KEYS = ("image_id", "key", "__key__")
MAGIC = b"PAR1"
NO_IMAGE = "no bytes of an image, which must be in the file and not beside it"
# Rows read at once hold about so many bytes of images, and are at most so many.
_BATCH_BYTES = 16 * 2**20
_BATCH_ROWS = 1000
_BUFFER = 2**20
# A row group holds at most one row for each byte of its images and some more, which may be the same
# picture many times; and unpacks to so many times its bytes and some more. JPEG and PNG do not.
_SAME = 10_000
_RATIO, _SLACK = 32, 16 * 2**20
# Bytes of the longest name or key. A page of one such and its repetitions would unpack to any size.
_LONGEST = 4096
FAILURES = (pa.ArrowException, OSError, ValueError, MemoryError)


class Columns(NamedTuple):
    """Names of the columns that are read; None where there is none.

    Attributes:
        image: encoded images: a struct of `bytes` and perhaps `path`, or binary.
        bytes: path of the leaf that holds them: "image.bytes", or the column itself.
        path: path of the leaf that names them: "image.path".
        label: class number, or name of the class.
        identity: who it is, where that is a column of its own.
        key: key of the image, where that is a column of its own.
        classes: names of the classes by number, from the metadata of Hugging Face `datasets`.
    """

    image: str
    bytes: str
    path: str | None
    label: str | None
    identity: str | None
    key: str | None
    classes: pa.Array

    @property
    def texts(self) -> tuple[str | None, ...]:
        """The columns of names and keys."""
        return self.label, self.identity, self.key or self.path


class Group(NamedTuple):
    """A row group.

    Attributes:
        first: its first row in the file.
        rows: how many it has.
        offset: of its images in the file, in bytes.
        size: bytes of its images.
        nulls: whether it says that images are missing.
        batch: rows to read at once.
        fault: why it cannot be read, None where nothing is wrong with it.
    """

    first: int
    rows: int
    offset: int
    size: int
    nulls: bool
    batch: int
    fault: str | None


class FooterError(ValueError):
    """A footer that cannot be read: nothing of the file can.

    Attributes:
        offset: where it is, in bytes.
    """

    def __init__(self, offset: int, message: str) -> None:
        super().__init__(message)
        self.offset = offset


class ImageFile:
    """A Parquet file that holds images.

    Attributes:
        path: of the file.
        size: of the file in bytes.
        columns: what is where.
        groups: its row groups in order.

    Raises:
        FooterError: where its footer is damaged.
        UserError: where it cannot be opened, or has no column of images or of labels.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        where, inner = storage.filesystem(path)
        try:
            stream = where.open_input_file(inner)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error})") from error
        self.size = stream.size()
        footer = _footer_length(stream, self.size)
        options = {
            "pre_buffer": False,  # it would hold a whole row group
            "buffer_size": _BUFFER,
            "page_checksum_verification": True,
            "thrift_string_size_limit": footer,
            # What there may be many of in a footer takes more than four bytes each.
            "thrift_container_size_limit": footer // 4 + 64,
            "arrow_extensions_enabled": False,
        }
        try:
            plain = pq.ParquetFile(stream, **options)
            self.columns = find_columns(plain.schema_arrow, path)
            # As a dictionary a name that stands in every row is held once.
            texts = [name for name in self.columns.texts if name]
            self._file = pq.ParquetFile(
                stream, metadata=plain.metadata, read_dictionary=texts, **options
            )
            self.groups = self._groups()
        except FAILURES as error:
            if isinstance(error, UserError):
                raise
            message = f"the footer cannot be read ({line(error)})"
            raise FooterError(max(self.size - 8 - footer, 0), message) from error

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(group.rows for group in self.groups)

    def _groups(self) -> list[Group]:
        found, first, footer = [], 0, self._file.metadata
        leaves = [footer.schema.column(i).path for i in range(footer.num_columns)]
        used = [i for i, leaf in enumerate(leaves) if leaf in self._leaves(with_images=True)]
        image = leaves.index(self.columns.bytes)
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            chunk, rows = group.column(image), group.num_rows
            fault = None
            if rows < 0 or rows > chunk.total_compressed_size + _SAME:
                fault = f"it claims {rows:,} rows in {chunk.total_compressed_size:,} bytes"
                rows = 0
            for i in used:
                fault = fault or _fault(group.column(i), self.size)
            statistics = chunk.statistics
            nulls = bool(statistics and statistics.has_null_count and statistics.null_count)
            found.append(
                Group(first, rows, _start(chunk), chunk.total_compressed_size, nulls,
                      _batch(chunk, rows), fault)
            )  # fmt: skip
            first += rows
        return found

    def _leaves(self, *, with_images: bool) -> list[str]:
        found = [*self.columns.texts, self.columns.bytes if with_images else None]
        return [name for name in found if name]

    def is_number(self, name: str) -> bool:
        """Whether a column holds integers."""
        return pa.types.is_integer(self._file.schema_arrow.field(name).type)

    def batches(
        self, number: int, *, images: bool, others: bool = True, rows: int | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a row group in order, some at a time.

        Args:
            number: of the row group.
            images: whether to read the images.
            others: whether to read the other columns that `Columns` names.
            rows: so many at a time; none: as many as make some megabytes.

        Raises:
            FAILURES: where the row group is damaged.
        """
        names = self._leaves(with_images=images) if others else [self.columns.bytes]
        if not names:
            return
        yield from self._file.iter_batches(
            rows or (self.groups[number].batch if images else 50_000),
            row_groups=[number],
            columns=names,
            use_threads=False,
        )

    def images(self, batch: pa.RecordBatch) -> pa.Array:
        """The encoded images of a batch; null where one is missing."""
        column = batch.column(self.columns.image)
        if not pa.types.is_struct(column.type):
            return column
        return column.flatten()[column.type.get_field_index("bytes")]

    def texts(self, batch: pa.RecordBatch, name: str) -> pa.Array:
        """A column of names or keys as strings; bytes that are not UTF-8 become \\xNN.

        Raises:
            ValueError: where one is too long.
        """
        if name == self.columns.path:
            column = batch.column(self.columns.image)
            column = column.flatten()[column.type.get_field_index("path")]
        else:
            column = batch.column(name)
        return as_texts(column)


def as_texts(column: pa.Array) -> pa.Array:
    """See `ImageFile.texts`."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.string())
    different = column.dictionary if pa.types.is_dictionary(column.type) else column
    longest = pc.max(pc.binary_length(different.cast(pa.large_binary()))).as_py()
    if longest is not None and longest > _LONGEST:
        raise ValueError(f"a name of {longest:,} bytes; at most {_LONGEST:,} are taken")
    if different is not column:
        column = column.dictionary_decode()
    raw = column.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array(
            [None if x is None else x.decode("utf-8", "backslashreplace") for x in raw.to_pylist()],
            pa.string(),
        )


def find_columns(schema: pa.Schema, path: str) -> Columns:
    """Which columns hold what.

    Images are in the column "image", "img", "jpg", "jpeg", "png" or "webp", or else in the only one
    that holds binary data. Labels are integers or strings in "label", "labels", "class" or "cls";
    who it is may stand in "identity_id" or "identity" beside them, or alone.

    Raises:
        UserError: where there are no images or no labels; it names the columns that are there.
    """
    fields = {field.name: field.type for field in schema}
    there = ", ".join(f"{field.name} ({field.type})" for field in schema)[:500]
    if len(fields) != len(schema):
        raise UserError(f"{path}: two columns have one name: {there}")
    binary = [name for name, kind in fields.items() if _leaf(name, kind)]
    image = next((name for name in IMAGES if name in binary), None)
    if image is None and len(binary) == 1:
        image = binary[0]
    if image is None:
        if pathless := next((n for n in IMAGES if n in fields and not _leaf(n, fields[n])), None):
            raise UserError(
                f"{path}: the column {pathless!r} holds no image bytes but {fields[pathless]}; "
                "write the set with its images embedded"
            )
        raise UserError(
            f"{path}: which column holds the images? expected one of binary data, or one of that "
            f"kind named {', '.join(IMAGES)}; found {there}"
        )
    label = _named(fields, LABELS)
    identity = _named(fields, IDENTITIES)
    if label is None and identity is None:
        raise UserError(
            f"{path}: no column of labels; expected integers or strings in "
            f"{', '.join((*LABELS, *IDENTITIES))}; found {there}"
        )
    kind = fields[image]
    inner = pa.types.is_struct(kind)
    named = inner and kind.get_field_index("path") >= 0 and _is_text(kind.field("path").type)
    return Columns(
        image=image,
        bytes=f"{image}.bytes" if inner else image,
        path=f"{image}.path" if named else None,
        label=label,
        identity=identity,
        key=_named(fields, KEYS),
        classes=_classes(schema.metadata, label),
    )


def _leaf(name: str, kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return name not in (*KEYS, *LABELS, *IDENTITIES) and _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view())


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return kind in (pa.string(), pa.large_string(), pa.string_view(), pa.binary())


def _named(fields: dict[str, pa.DataType], names: tuple[str, ...]) -> str | None:
    usable = (n for n in names if n in fields)
    return next((n for n in usable if pa.types.is_integer(fields[n]) or _is_text(fields[n])), None)


def _classes(metadata: dict[bytes, bytes] | None, label: str | None) -> pa.Array:
    """Names of a ClassLabel, as `datasets` writes them into the schema."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):  # no such thing, or not understood
        names = []
    if isinstance(names, dict):  # {"0": "name", ...}: in the YAML of a card, and in old files
        names = list(names.values())
    sound = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return pa.array([_escaped(name) for name in names] if sound else [], pa.string())


def _escaped(name: str) -> str:
    """JSON can name half of a surrogate pair, which no file can."""
    return name.encode("utf-8", "backslashreplace").decode()


def _footer_length(stream: pa.NativeFile, size: int) -> int:
    tail = stream.read_at(min(size, 8), max(size - 8, 0))
    if len(tail) < 8 or size < 12 or tail[4:] != MAGIC:
        raise FooterError(size, "the file is cut off: it does not end with a footer")
    (length,) = struct.unpack("<I", tail[:4])
    if length > size - 12:
        raise FooterError(size - 8, f"a footer of {length:,} bytes in a file of {size:,}")
    return length


def _start(chunk: pq.ColumnChunkMetaData) -> int:
    if chunk.has_dictionary_page and chunk.dictionary_page_offset:
        return min(chunk.dictionary_page_offset, chunk.data_page_offset)
    return chunk.data_page_offset


def _fault(chunk: pq.ColumnChunkMetaData, size: int) -> str | None:
    """What is wrong with a column of a row group."""
    start, packed, unpacked = (
        _start(chunk),
        chunk.total_compressed_size,
        chunk.total_uncompressed_size,
    )
    if start < 4 or packed < 0 or start + packed > size:
        return f"it claims bytes {start:,} to {start + packed:,} of {size:,}"
    if unpacked < 0 or unpacked > _RATIO * packed + _SLACK:
        return f"{packed:,} bytes claim to unpack to {unpacked:,}"
    return None


def _batch(chunk: pq.ColumnChunkMetaData, rows: int) -> int:
    """Rows that hold some megabytes of images together."""
    packed = max(chunk.total_compressed_size, 1)
    unpacked = max(chunk.total_uncompressed_size, 1)
    most = _BATCH_BYTES * rows // unpacked
    if chunk.has_dictionary_page:  # any of the rows may be the largest of its pictures
        page = max(chunk.data_page_offset - _start(chunk), 1) * -(-unpacked // packed)
        most = min(most, 4 * _BATCH_BYTES // page)
    return max(1, min(most, _BATCH_ROWS))


def line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
