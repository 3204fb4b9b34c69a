"""Which columns of a Parquet file hold images, labels, names and keys."""

import json
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raypipe.errors import UserError

# What a column of images, of labels, ... is called; the first name that is there counts.
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")
LABELS = ("label", "labels", "class", "cls")
IDENTITIES = ("identity_id", "identity")
KEYS = ("image_id", "key", "__key__")
_LONGEST = 4096  # bytes of a name or key


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


def as_texts(column: pa.Array) -> pa.Array:
    """Names or keys as strings: what is not UTF-8 becomes \\xNN, what is too long null."""
    if pa.types.is_integer(column.type):
        return column.cast(pa.string())
    if pa.types.is_dictionary(column.type):  # each of its values once, however many rows have it
        return as_texts(column.dictionary).take(column.indices)
    raw = column.cast(pa.large_binary())
    short = pc.less_equal(pc.binary_length(raw), _LONGEST)
    raw = pc.if_else(short, raw, pa.scalar(None, pa.large_binary()))
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
