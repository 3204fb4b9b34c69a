"""What a job is to a plan: the sets it reads and makes, and the work on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from raypipe.config.base import Pool, Workers
from raypipe.planning.sets import Group


@dataclass(frozen=True, kw_only=True)
class Step:
    """Work of one kind, done by a pool.

    Attributes:
        name: as rates.yaml calls it.
        images: how many there are; of a search, how many vectors.
        operations: of the networks, for an image.
        pool: who does it; None: one core of the machine the job runs on.
        field: where the configuration has the pool.
    """

    name: str
    images: float
    operations: float = 0.0
    pool: Pool | Workers | None = None
    field: str = ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Steps that go on at the same time, in a stream.

    Attributes:
        kind: what rates.yaml has an overhead for.
        times: how often it is begun anew.
        seconds: of waiting for others, such as a service.
    """

    kind: Literal["stage", "pass", "task", "fit", "local", "start"]
    steps: tuple[Step, ...] = ()
    times: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job of a build.

    Attributes:
        reads, makes: sets by source.
        bytes: that its folder holds at the end.
        parts: one after the other.
        basis: where its numbers of identities and images come from.
    """

    name: str
    reads: Mapping[str, Group]
    makes: Mapping[str, Group]
    bytes: float
    parts: tuple[Part, ...] = ()
    basis: str = "assumed"
    note: str = field(default="", compare=False)

    @property
    def images(self) -> float:
        """Images that it makes or passes on."""
        return sum(group.images for group in self.makes.values())

    @property
    def identities(self) -> float:
        """Identities that it makes or passes on."""
        return sum(group.identities for group in self.makes.values())

    @property
    def operations(self) -> float:
        """Of all networks."""
        return sum(step.images * step.operations for part in self.parts for step in part.steps)
