"""References of the seed job: whose picture is drawn, what came of it, and who is needed."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raypipe.faceset import FaceSet
from raypipe.identities import Identity, SeedEvidence
from raypipe.prompts import Grammar, draw
from raypipe.waves import Drawn

SOURCE = "seed"
TRIES_USED_UP, SURPLUS = "seed:tries_used_up", "seed:surplus"


def identity_id(position: int) -> str:
    """Name of the identity that is drawn as the `position`-th."""
    return f"{SOURCE}/{position:07d}"


def new_identity(grammar: Grammar, seed: int, position: int, before: int) -> Identity:
    """A person without a picture.

    Args:
        seed: of the run.
        position: from 0, in the order in which people are drawn.
        before: identities of the sets that are screened along with them; their indexes come first.
    """
    prompt = draw(grammar, seed, position)
    return Identity(
        identity_id=identity_id(position),
        index=before + position,
        source=SOURCE,
        images=[],
        seed=SeedEvidence(
            prompt=prompt.prompt, negative=prompt.negative, attributes=prompt.attributes
        ),
    )


def newest(waves: Sequence[FaceSet]) -> Iterator[Identity]:
    """The newest row of every identity: it has the pictures of the earlier ones.

    Args:
        waves: the earliest first.
    """
    seen: set[str] = set()
    for wave in reversed(waves):
        for identity in wave.iter_identities():
            if identity.identity_id not in seen:
                seen.add(identity.identity_id)
                yield identity


def outcome(waves: Sequence[FaceSet], admitted: Mapping[str, Any]) -> Drawn:
    """Reads what was measured on every picture, and no picture.

    Args:
        waves: the earliest first.
        admitted: as `raypipe.admission.admission` returns it.
    """
    found: dict[int, dict[str, Any]] = {}
    for wave in waves:
        for table in wave.tables(["index", "rejected", "seed.tries.list.element.rejected"]):
            found |= {row["index"]: row for row in table.to_pylist()}
    rows = [found[index] for index in sorted(found)]
    tries = [[one["rejected"] for one in row["seed"]["tries"]] for row in rows]
    failed = [row["rejected"] for row in rows]
    reasons = Counter(reason for some in [failed, *tries] for reason in some if reason)
    return Drawn(
        tries=np.array([len(one) for one in tries]),
        passed=np.array([one[-1:] == [None] for one in tries]) & ~np.array(failed, bool),
        failed=np.array(failed, bool),
        admitted=admitted["admitted"],
        reasons=reasons + Counter(admitted["refused"]),
    )


def settle(identities: Iterable[Identity], *, last: int, tries: int) -> Iterator[Identity]:
    """Rejects who has no reference, and who is not needed; a row that the program failed on stays
    as it is.

    Args:
        last: index of the last reference needed.
        tries: pictures of an identity at most.
    """
    for identity in identities:
        assert identity.seed is not None
        if identity.rejected is not None:
            pass
        elif not identity.kept and len(identity.seed.tries) >= tries:
            identity.rejected = TRIES_USED_UP
        elif not identity.kept or identity.index > last:
            identity.rejected = SURPLUS
        yield identity
