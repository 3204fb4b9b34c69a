"""Parquet as Hugging Face `datasets` reads it: images that its viewer shows, in small row groups.

The layout is that of `datasets.Image` (huggingface/datasets, src/datasets/features/image.py): a
struct of the encoded bytes and a file name, and the features as JSON in the schema's metadata.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raypipe.images import extension

# Rows read at once by whoever wants one: 8 MB of 112×112 JPEG.
ROW_GROUP = 1000
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def schema(about: Sequence[tuple[str, pa.DataType]]) -> pa.Schema:
    """A schema of an image and columns of numbers or strings."""
    values = {name: {"dtype": str(kind), "_type": "Value"} for name, kind in about}
    features = {"image": {"_type": "Image"}, **values}
    return pa.schema(
        [("image", IMAGE), *about],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def images(data: pa.Array, keys: Iterable[str]) -> pa.StructArray:
    """The column of images; each is named by its key, with the extension its bytes call for."""
    names = [
        f"{key}.{extension(head) or 'bin'}" for key, head in zip(keys, heads(data), strict=True)
    ]
    return pa.StructArray.from_arrays([data, pa.array(names, pa.string())], fields=list(IMAGE))


def heads(data: pa.Array) -> list[bytes]:
    """The first bytes of images, as many as tell what they are."""
    return pc.binary_slice(data, 0, 16).to_pylist()


def options(columns: pa.Schema, ranges: Sequence[str]) -> dict[str, Any]:
    """How `pyarrow.parquet` is to write such a table; row groups tell the range of some columns."""
    leaves = ["image.bytes", "image.path", *columns.names[1:]]
    return {
        # JPEG does not get smaller; a dictionary of it would hold every image once more.
        "compression": {name: "none" if name == "image.bytes" else "zstd" for name in leaves},
        "use_dictionary": [name for name in leaves if not name.startswith("image.")],
        "write_statistics": list(ranges),
        "store_schema": True,
    }
