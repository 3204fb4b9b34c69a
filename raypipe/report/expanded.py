"""One pass over the evidence of the expansion job, keeping only what the report shows."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raypipe.faceset import FaceSet
from raypipe.identities import Identity, Image
from raypipe.impostors import Histogram

_MEASURED = ("image_id", "generator", "similarity", "nearest_similarity", "rejected")
_COLUMNS = ["identity_id", "expand", *(f"images.list.element.{name}" for name in _MEASURED)]
_ATTEMPT = r"\.(?P<attempt>[0-9]+)$"  # ends the image_id of an image that was drawn again


@dataclass(kw_only=True)
class Painted:
    """What one generator painted.

    Attributes:
        drawn, passed: images, and those of them that passed every check.
        similarity: sum over all of them of the similarity to the vector of their identity.
    """

    drawn: int = 0
    passed: int = 0
    similarity: float = 0.0


@dataclass(kw_only=True)
class Expanded:
    """What the expansion job made.

    Attributes:
        identities: that were expanded.
        full: of them, those that got every image they wanted.
        wanted: images of all of them.
        unreached: images that passed, but did not reach their attributes.
        draws: (attempt, from 0; None for an image that passed, else why not) → images.
        own: similarities of all images drawn to the vector of their identity.
        nearest: to whoever else they are most like.
        painters: by the generator's name.
        chosen: identities to show: one for every reason, one that came short, then others.
    """

    identities: int = 0
    full: int = 0
    wanted: int = 0
    unreached: int = 0
    draws: Counter[tuple[int, str | None]] = field(default_factory=Counter)
    own: Histogram = field(default_factory=Histogram)
    nearest: Histogram = field(default_factory=Histogram)
    painters: dict[str, Painted] = field(default_factory=dict)
    chosen: list[str] = field(default_factory=list)

    @property
    def drawn(self) -> int:
        """Images drawn, whether they passed or not."""
        return self.draws.total()

    @property
    def passed(self) -> int:
        """Images that passed every check."""
        return sum(number for (_, reason), number in self.draws.items() if reason is None)

    @property
    def refused(self) -> Counter[str]:
        """Images refused, by reason."""
        found: Counter[str] = Counter()
        for (_, reason), number in self.draws.items():
            if reason is not None:
                found[reason] += number
        return found


def made(identity: Identity) -> list[Image]:
    """The images that the expansion job drew: it adds them behind those that were there."""
    drawn = identity.expand.drawn if identity.expand else 0
    return identity.images[len(identity.images) - drawn :]


def scan(face_set: FaceSet, number: int) -> Expanded:
    """Reads what was measured on every image, and no picture.

    Args:
        number: identities to choose; one more where so many reasons need it.
    """
    found = Expanded()
    first: list[str] = []  # of those that come first in the set
    special: dict[str | None, str] = {}  # reason, or None for want of images → who shows it
    for table in face_set.tables(_COLUMNS):
        expanded = table.filter(table["expand"].is_valid()).combine_chunks()
        for batch in expanded.to_batches():
            names = batch.column("identity_id").to_pylist()
            _add(found, batch, names, special)
            first += names[: number - len(first)]
    ordered = dict.fromkeys([*special.values(), *first])
    found.chosen = list(ordered)[: max(number, len(set(special.values())))]
    return found


def _add(
    found: Expanded, batch: pa.RecordBatch, names: list[str], special: dict[str | None, str]
) -> None:
    """Counts identities of a batch, all of them expanded."""
    lists, evidence = batch.column("images"), batch.column("expand")
    wanted, drawn = (evidence.field(name).to_numpy() for name in ("wanted", "drawn"))
    lengths = lists.value_lengths().to_numpy()
    owner = np.repeat(np.arange(len(names)), lengths)
    is_made = np.arange(len(owner)) >= (lengths.cumsum() - drawn)[owner]
    images = lists.flatten().filter(pa.array(is_made))
    owner = owner[is_made]
    reasons = images.field("rejected")
    attempts = pc.struct_field(
        pc.extract_regex(images.field("image_id"), pattern=_ATTEMPT), "attempt"
    )
    pairs = pa.table({"attempt": attempts.cast(pa.int32()).fill_null(0), "reason": reasons})
    for row in pairs.group_by(["attempt", "reason"]).aggregate([([], "count_all")]).to_pylist():
        found.draws[row["attempt"], row["reason"]] += row["count_all"]
    for histogram, name in ((found.own, "similarity"), (found.nearest, "nearest_similarity")):
        histogram.add(images.field(name).to_numpy(zero_copy_only=False))
    passed = reasons.is_null().to_numpy(zero_copy_only=False)
    by = pa.table(
        {
            "generator": images.field("generator"),
            "passed": reasons.is_null(),
            "similarity": images.field("similarity"),
        }
    ).group_by("generator")
    sums = by.aggregate([([], "count_all"), ("passed", "sum"), ("similarity", "sum")])
    for row in sums.to_pylist():
        painted = found.painters.setdefault(row["generator"], Painted())
        painted.drawn += row["count_all"]
        painted.passed += row["passed_sum"]
        painted.similarity += row["similarity_sum"]
    full = np.bincount(owner[passed], minlength=len(names)) >= wanted
    found.identities += len(names)
    found.full += int(full.sum())
    found.wanted += int(wanted.sum())
    unreached = evidence.field("unreached")
    if len(unreached.flatten()):
        late = np.repeat(np.arange(len(names)), unreached.value_lengths().to_numpy())
        kept = _keys(owner, images.field("image_id")).filter(pa.array(passed))
        missed = pc.is_in(kept, value_set=_keys(late, unreached.flatten()))
        found.unreached += missed.true_count
    if not full.all():
        special.setdefault(None, names[int(np.argmin(full))])
    for reason in reasons.unique().drop_null().to_pylist():
        place = pc.index(reasons, reason).as_py()
        special.setdefault(reason, names[int(owner[place])])


def _keys(owner: np.ndarray, image_ids: pa.Array) -> pa.Array:
    """What tells images of several identities apart."""
    return pc.binary_join_element_wise(pa.array(owner).cast(pa.string()), image_ids, "/")
