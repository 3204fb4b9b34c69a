"""Who makes the training set, under which label, and in which order the images come.

One deterministic pass over small rows (no image byte): numpy and Arrow columns, no Python object
per image, so 300,000 identities of 50 images are planned in seconds.

The curriculum is the one of HGF (arXiv 2508.10672; Ferry-Li/datacv_fr, `merge_dataset.py`): a lost
identity is replaced by one synthetic identity, drawn at random, and synthetic identities come
first. There it is only the order of a list, which the official trainer sorts away; here it is the
order of the rows of the set. Inside a phase images are shuffled, all of them or those of a level of
similarity, so that a batch holds many identities.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raypipe import storage
from raypipe.errors import UserError
from raypipe.faceset import FaceSet
from raypipe.seeding import generator
from raypipe.similarity import MEASURED, reject_outside

TOO_FEW = "assemble:too_few"
SURPLUS = "assemble:surplus"
SPARE = "assemble:spare"

# Files that are read at the same time, for the sake of an object store that answers slowly.
_READERS = 8

PLAN = pa.schema(
    [
        ("identity_id", pa.string()),
        ("index", pa.int64()),
        ("source", pa.string()),
        ("rejected", pa.string()),  # by an earlier job or by the plan; None: in the set
        ("kept", pa.int32()),  # images not rejected so far
        ("phase", pa.int32()),  # None: not in the set
        ("label", pa.int64()),  # 0..K-1, None: not in the set
    ]
)


def small_rows(face_set: FaceSet, band: tuple[float, float] | None = None) -> pa.Table:
    """What the plan is made from: identity_id, index, source, rejected, and images kept (int32).

    Args:
        band: lowest and highest similarity of an image to its identity's centre; those outside
            are not counted. With a band embeddings are read, still no image byte.

    Raises:
        UserError: where an image that must be measured has no embedding.
    """

    def read(path: str) -> pa.Table:
        return _small_rows(face_set, path) if band is None else _in_band(face_set, path, band)

    with ThreadPoolExecutor(_READERS) as readers:
        return pa.concat_tables(readers.map(read, face_set.files()))


def _small_rows(face_set: FaceSet, path: str) -> pa.Table:
    heads = ["identity_id", "index", "source", "rejected"]
    table = pa.concat_tables(face_set.tables([*heads, "images.list.element.rejected"], [path]))
    images = table["images"].combine_chunks()
    kept_before = np.concatenate([[0], images.flatten().field("rejected").is_null()]).cumsum()
    ends = np.cumsum(pc.fill_null(images.value_lengths(), 0).to_numpy())
    starts = np.concatenate([[0], ends[:-1]])
    kept = (kept_before[ends] - kept_before[starts]).astype(np.int32)
    return table.select(heads).append_column("kept", pa.array(kept))


def _in_band(face_set: FaceSet, path: str, band: tuple[float, float]) -> pa.Table:
    rows = []
    for identity in face_set.iter_without_bytes(MEASURED, [path]):
        if identity.rejected is None:
            reject_outside(identity, band)
        heads = (identity.identity_id, identity.index, identity.source, identity.rejected)
        rows.append((*heads, len(identity.kept)))
    names = ["identity_id", "index", "source", "rejected", "kept"]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return pa.table(columns, schema=pa.schema([PLAN.field(name) for name in names]))


def make_plan(
    rows: pa.Table,
    *,
    min_images: int,
    phases: Sequence[str],
    replacement: str | None,
    seed: int,
) -> pa.Table:
    """Decides who is in the set, and gives the labels.

    An identity is lost when an earlier job rejected it or fewer than `min_images` of its images are
    kept; those that `seed` let go are not, for it drew others until it had enough. With a
    replacement source, as many of its identities as others were lost are drawn, the rest are spare.
    Labels are dense, in the order of the phases and then of the index.

    Args:
        rows: as `small_rows` returns them, in any order.
        min_images: kept images that an identity needs.
        phases: sources in the order of training.
        replacement: source whose identities only replace lost ones; None: all sources in full.
        seed: of the draw.

    Returns:
        A table of `PLAN`, in the order of the index.

    Raises:
        UserError: where a source has no phase, or nobody is left.
    """
    rows = rows.sort_by("index")
    source = np.asarray(rows["source"].to_pylist(), dtype=object)
    admitted = rows["rejected"].is_null().to_numpy()
    for name in np.unique(source[admitted].astype(str)):
        if name not in phases:
            raise UserError(
                f"assemble.phases: there are identities of source {name!r}, which is in none of "
                f"the phases {list(phases)}; add it"
            )
    enough = admitted & (rows["kept"].to_numpy() >= min_images)
    stands_in = source == replacement
    let_go = pc.fill_null(pc.starts_with(rows["rejected"], "seed:"), False).to_numpy()
    lost = int(np.count_nonzero(~stands_in & ~enough & ~let_go))
    rng = generator(seed, replacement or "", stream="assemble:replacement")
    spare = rng.permutation(np.flatnonzero(stands_in & enough))[lost:]
    in_set = enough.copy()
    in_set[spare] = False
    chosen = np.flatnonzero(in_set)
    if not len(chosen):
        raise UserError(
            f"assemble.min_images: none of the {len(rows)} identities has {min_images} kept images"
        )
    reasons = np.asarray(rows["rejected"].to_pylist(), dtype=object)
    reasons[admitted & ~enough] = TOO_FEW
    reasons[spare] = SPARE
    of_source = {name: number for number, name in enumerate(phases)}
    phase = np.array([of_source[name] for name in source[chosen]], dtype=np.int32)
    in_order = chosen[np.argsort(phase, kind="stable")]
    return (
        rows.select(["identity_id", "index", "source"])
        .append_column("rejected", pa.array(reasons, pa.string()))
        .append_column("kept", rows["kept"])
        .append_column("phase", _column(len(rows), chosen, phase, pa.int32()))
        .append_column("label", _column(len(rows), in_order, np.arange(len(chosen)), pa.int64()))
        .cast(PLAN)
    )


def _column(length: int, places: np.ndarray, values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Values at their places, null elsewhere."""
    full = np.zeros(length, dtype=np.int64)
    full[places] = values
    absent = np.ones(length, dtype=bool)
    absent[places] = False
    return pa.array(full, kind, mask=absent)


def write_plan(path: str, plan: pa.Table) -> None:
    """Stores a plan as Parquet."""
    buffer = pa.BufferOutputStream()
    pq.write_table(plan, buffer)
    storage.write_bytes(path, buffer.getvalue())


def read_plan(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a stored plan, or some of its columns in the order asked for."""
    table = pq.read_table(pa.BufferReader(storage.read_bytes(path)))
    return table.select(columns) if columns else table


def summarise(plan: pa.Table, images_per_identity: int, replacement: str | None) -> dict[str, Any]:
    """Counts of the set a plan makes, in total and by source in the order of the phases.

    Returns:
        identities, images, kept (images as they came), augmented, surplus (kept images of these
        identities that are not taken); `sources`: the same for each source; `replaced`: identities
        that stand in for lost ones.
    """
    chosen = plan.filter(pc.is_valid(plan["label"])).sort_by("phase")
    taken = pc.min_element_wise(chosen["kept"], images_per_identity)
    columns = {
        "identities": pa.array(np.ones(len(chosen), dtype=np.int64)),
        "images": pa.array(np.full(len(chosen), images_per_identity)),
        "kept": taken,
        "augmented": pc.subtract(images_per_identity, taken),
        "surplus": pc.subtract(chosen["kept"], taken),
    }
    table = pa.table({"source": chosen["source"], **columns})
    sums = table.group_by("source", use_threads=False).aggregate(
        [(name, "sum") for name in columns]
    )
    by_source = {
        row["source"]: {name: row[f"{name}_sum"] for name in columns} for row in sums.to_pylist()
    }
    total = {name: sum(counts[name] for counts in by_source.values()) for name in columns}
    replaced = by_source.get(replacement, {}).get("identities", 0)
    return {**total, "sources": by_source, "replaced": replaced}


def image_positions(
    plan: pa.Table,
    images_per_identity: int,
    seed: int,
    *,
    ranked_by: np.ndarray | None = None,
    levels: int = 1,
) -> np.ndarray:
    """Where every image of the set stands: phase after phase, shuffled inside a phase.

    With `ranked_by` the images of a phase are cut by their ranks into levels of equal size, which
    come one after another and are shuffled inside. Of equal images the lower label ranks first.

    Args:
        ranked_by: float32, a number of every image, in step with what is returned; the lowest
            come first.
        levels: of a phase.

    Returns:
        int64 (identities × images_per_identity,): the position of image `i` of label `l` is at
        `l * images_per_identity + i`; a permutation of 0..N-1.
    """
    phase = plan["phase"].drop_null().to_numpy()
    parts, start = [], 0
    for number in range(int(phase.max()) + 1):
        count = int(np.count_nonzero(phase == number)) * images_per_identity
        rng = generator(seed, "", number, stream="assemble:order")
        if ranked_by is None:
            places = rng.permutation(count)
        else:
            ranks = np.argsort(ranked_by[start : start + count], kind="stable")
            for level in np.array_split(ranks, levels):
                rng.shuffle(level)  # a view: the ranks themselves
            places = np.empty(count, dtype=np.int64)
            places[ranks] = np.arange(count)
        parts.append(start + places)
        start += count
    return np.concatenate(parts)


def write_array(path: str, values: np.ndarray) -> None:
    """Stores numbers of images or identities as a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    storage.write_bytes(path, buffer.getvalue())


def read_array(path: str) -> np.ndarray:
    """Reads what `write_array` wrote."""
    return np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False)


def evenly(similarity: np.ndarray, count: int) -> np.ndarray:
    """Images spread over the range of their similarity, at evenly spaced ranks, ends included.

    Rank k of `count` is that of image floor(k (n - 1) / (count - 1)) in ascending order; one image
    alone is the median. Of equal ones the first counts as the lower.

    Args:
        similarity: (n,), n at least `count`.

    Returns:
        int64 (count,): indices, ascending.
    """
    last = len(similarity) - 1
    ranks = np.arange(count) * last // (count - 1) if count > 1 else np.array([last // 2])
    return np.sort(np.argsort(similarity, kind="stable")[ranks])


def choose_images(
    kept: int,
    images_per_identity: int,
    seed: int,
    identity_id: str,
    similarity: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which kept images of an identity stay, and which are augmented to fill it up.

    Args:
        similarity: of the kept images; where too many are kept, those that stay are spread evenly
            over it. None: they are drawn.

    Returns:
        Two int64 arrays of indices into the kept images: those that stay, ascending, and one
        parent, drawn with replacement, for every image to add. Together images_per_identity.
    """
    rng = generator(seed, identity_id, stream="assemble:choose")
    stay = np.sort(rng.permutation(kept)[:images_per_identity])
    if similarity is not None and kept > images_per_identity:
        stay = evenly(similarity, images_per_identity)
    parents = rng.integers(0, kept, images_per_identity - len(stay))
    return stay, parents
