"""The actors of the screening job."""

import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.faceset import FaceSet
from raypipe.identities import Identity
from raypipe.screening import Verdicts, search_galleries
from raypipe.templates import load_gallery


class SearchActor:
    """Holds the galleries, and searches the identities of a file in them.

    Args:
        galleries: name and root of the embedded face set of each.
    """

    def __init__(self, galleries: Sequence[tuple[str, str]]) -> None:
        self._galleries = [load_gallery(name, root) for name, root in galleries]

    def __call__(self, path: str) -> pa.Table:
        return search_galleries(FaceSet(path).iter_embeddings([path]), self._galleries)


class MarkActor:
    """Writes the decisions into the rows.

    Args:
        verdicts: path of the table.
    """

    def __init__(self, verdicts: str) -> None:
        self._verdicts = Verdicts(pq.read_table(io.BytesIO(storage.read_bytes(verdicts))))

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        return [self._verdicts.mark(identity) for identity in identities]
