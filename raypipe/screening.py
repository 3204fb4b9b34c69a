"""Is an identity a real person, and is it the same person as another identity?

An identity is searched by its template (the mean of the unit embeddings of its kept images) for the
nearest single face of a gallery, and for the nearest template of another identity. A leak was
missed in published sets where only centres were compared with centres (methods in HaiyuWu/Vec2Face,
issue 16). Similarity is the cosine of the embeddings as the network gives them: centring on a
gallery finds no more leaks and refuses no fewer clean identities (`python benchmarks/leakage.py`
prints both), so the simpler of the two is used.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe.faceset import Embedded
from raypipe.identities import SCREEN, Identity, ScreenEvidence
from raypipe.impostors import Calibration, Histogram, calibrate_set
from raypipe.search import nearest, pairs_above
from raypipe.templates import Gallery, halves, template

IN_GALLERY, NOT_UNIQUE = "screen:in_gallery", "screen:not_unique"

SEARCHED = pa.schema(
    [
        ("identity_id", pa.string()),
        ("index", pa.int64()),
        ("source", pa.string()),
        ("template", pa.list_(pa.float32())),
        ("halves", pa.float64()),
        ("people", pa.list_(pa.string())),
        ("images", pa.list_(pa.string())),
        ("similarities", pa.list_(pa.float32())),
    ]
)
VERDICTS = pa.schema([("identity_id", pa.string()), ("rejected", pa.string()), *SCREEN])


def search_galleries(identities: Iterable[Embedded], galleries: Sequence[Gallery]) -> pa.Table:
    """Templates of identities and their nearest face in every gallery.

    Returns:
        A row of `SEARCHED` for every identity that is not rejected and has a kept, embedded image
        or a vector; `people`, `images` and `similarities` have one item a gallery.
    """
    rows: list[dict[str, Any]] = []
    for item in identities:
        vectors = item.person
        if item.rejected is None and len(vectors):
            rows.append(
                {
                    "identity_id": item.identity_id,
                    "index": item.index,
                    "source": item.source,
                    "template": template(vectors),
                    "halves": halves(vectors),
                    "people": [],
                    "images": [],
                    "similarities": [],
                }
            )
    if rows:
        queries = np.stack([row["template"] for row in rows])
        for gallery in galleries:
            similarity, index = nearest(queries, gallery.faces, 1)
            for row, at, value in zip(rows, index[:, 0], similarity[:, 0], strict=True):
                row["people"].append(gallery.names[gallery.people[at]])
                row["images"].append(gallery.image_ids[at])
                row["similarities"].append(value)
    return pa.Table.from_pylist(rows, schema=SEARCHED)


def greedy(i: np.ndarray, j: np.ndarray, similarity: np.ndarray) -> dict[int, tuple[int, float]]:
    """Who goes: each that equals an earlier one that stays, taken in order.

    Args:
        i, j: int64 (P,), positions of pairs that are one person, i < j.
        similarity: float32 (P,).

    Returns:
        position → (the most similar earlier one that stays, its similarity).
    """
    gone: dict[int, tuple[int, float]] = {}
    for place in np.lexsort(
        (i, -similarity, j)
    ).tolist():  # all pairs of j after every pair of i < j
        earlier, later = int(i[place]), int(j[place])
        if earlier not in gone and later not in gone:
            gone[later] = (earlier, float(similarity[place]))
    return gone


def decide(
    searched: pa.Table, galleries: Mapping[str, Calibration], *, rate: float, first: str
) -> tuple[pa.Table, dict[str, Any]]:
    """Who is refused, in one pass over all identities.

    An identity is in a gallery where its nearest face there reaches the gallery's threshold. The
    others are compared with each other; of two that are one person, the earlier stays: those of the
    source `first` before all others, then by index.

    Args:
        searched: rows of `SEARCHED` in any order, one an identity.
        galleries: name → calibration, in the order of `people`.
        rate: chance that one comparison of two different identities reaches the threshold.
        first: source whose identities stay.

    Returns:
        A table of `VERDICTS` in the order of identity_id, and a summary as JSON: "galleries" (name
        → "refused", "nearest": histogram of the identities' similarities) and "unique".

    Raises:
        UserError: where there are too few identities for the rate.
    """
    heads = searched.select(["identity_id", "index", "source"]).to_pylist()
    order = sorted(
        range(len(heads)),
        key=lambda i: (heads[i]["source"] != first, heads[i]["index"], heads[i]["identity_id"]),
    )
    searched = searched.take(pa.array(order, pa.int64())).combine_chunks()
    names = searched["identity_id"].to_pylist()
    templates = _matrix(searched["template"], len(names))
    similarities = _matrix(searched["similarities"], len(names)).astype(np.float64)
    people, images = searched["people"].to_pylist(), searched["images"].to_pylist()
    thresholds = np.array([calibration.threshold for calibration in galleries.values()])

    verdicts: list[dict[str, Any]] = [{"identity_id": name} for name in names]
    if galleries:
        labels = list(galleries)
        for row, best in enumerate((similarities - thresholds).argmax(axis=1).tolist()):
            similarity, threshold = float(similarities[row, best]), float(thresholds[best])
            verdicts[row] |= {
                "rejected": IN_GALLERY if similarity >= threshold else None,
                "gallery": labels[best],
                "gallery_identity": people[row][best],
                "gallery_image": images[row][best],
                "gallery_similarity": similarity,
                "gallery_threshold": threshold,
            }
    stay = np.array([i for i, row in enumerate(verdicts) if row.get("rejected") is None], np.int64)
    unique: dict[str, Any] | None = None
    if len(stay) > 1:
        genuine = searched["halves"].to_numpy()[stay]
        calibration = calibrate_set(templates[stay], genuine, rate)
        gone = _unique(templates[stay], calibration.threshold, [verdicts[i] for i in stay])
        unique = {
            **calibration.to_json([names[i] for i in stay]),
            "compared": len(stay),
            "refused": gone,
        }
    verdicts.sort(key=lambda row: row["identity_id"])
    return pa.Table.from_pylist(verdicts, schema=VERDICTS), {
        "galleries": {
            name: {
                "compared": len(names),
                "refused": int((similarities[:, i] >= thresholds[i]).sum()),
                "nearest": Histogram().add(similarities[:, i]).to_json(),
            }
            for i, name in enumerate(galleries)
        },
        "unique": unique,
    }


def _matrix(column: pa.ChunkedArray, rows: int) -> np.ndarray:
    """A column of lists of equal length as float32 (rows, length)."""
    flat = column.combine_chunks().flatten().to_numpy()
    return flat.reshape(rows, len(flat) // max(rows, 1))


def _unique(templates: np.ndarray, threshold: float, verdicts: list[dict[str, Any]]) -> int:
    """Writes the nearest other identity into the verdicts, in step with (N, D) templates in the
    order of their priority, and refuses the later ones of one person. Returns how many."""
    similarity, index = nearest(templates, templates, 2)
    rows = np.arange(len(templates))
    other = (index[:, 0] == rows).astype(np.int64)  # the first is itself, or a copy of it
    similarity, index = similarity[rows, other], index[rows, other]
    for row, verdict in enumerate(verdicts):
        verdict["nearest"] = verdicts[index[row]]["identity_id"]
        verdict["nearest_similarity"] = float(similarity[row])
        verdict["nearest_threshold"] = threshold
    near = np.flatnonzero(similarity >= threshold)  # nobody else has a pair
    i, j, found = pairs_above(templates[near], threshold)
    gone = greedy(near[i], near[j], found)
    for later, (earlier, value) in gone.items():
        verdicts[later]["rejected"] = NOT_UNIQUE
        verdicts[later]["nearest"] = verdicts[earlier]["identity_id"]
        verdicts[later]["nearest_similarity"] = value
    return len(gone)


class Verdicts:
    """The decisions, looked up by identity.

    Args:
        table: of `VERDICTS`.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._rows = {name: row for row, name in enumerate(table["identity_id"].to_pylist())}

    def mark(self, identity: Identity) -> Identity:
        """The identity with its evidence and, where it is refused, its reason. One that was never
        compared, because it was rejected before, stays as it is."""
        row = self._rows.get(identity.identity_id)
        if row is not None:
            (verdict,) = self._table.slice(row, 1).to_pylist()
            del verdict["identity_id"]
            identity.rejected = verdict.pop("rejected")
            identity.screen = ScreenEvidence(**verdict)
        return identity
