"""How fast each step goes: measured here where that was done, else assumed from peaks."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from raypipe import storage

RATES = "rates.json"  # in the workspace, by `raypipe plan --calibrate`
CORE = "core"
_GENERIC = "L4"  # what a GPU of no stated type counts as


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Seconds of work.

    Attributes:
        assumed: the content of rates.yaml.
        measured: "KIND STEP" → seconds an actor takes for an image; KIND is cpu or gpu.
        overheads: job → seconds beside that work, and `primitives` of the parts that had them.
        factors: what the measured jobs counted, as `raypipe.planning.counted` names it.
        settings: step → digest of what it depends on; a measurement of others does not count.
        where: on what, and when, in words; empty where nothing was measured.
    """

    assumed: dict[str, Any]
    measured: dict[str, float] = field(default_factory=dict)
    overheads: dict[str, dict[str, float]] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    where: str = ""

    def seconds(
        self, step: str, operations: float, *, accelerator: str | None, cores: float
    ) -> tuple[float, bool]:
        """Seconds that an actor takes for an image, and whether that was measured.

        Args:
            operations: of the networks, for the image.
            accelerator: its type, "GPU" for one of no stated type; None: it computes on cores.
            cores: that it reserves.
        """
        known = self.measured.get(f"{'gpu' if accelerator else 'cpu'} {step}")
        if known is not None:
            return known, True
        host = self.assumed["host"].get(step, 0.0)
        if not operations:
            return host, False
        share = self.assumed["utilisation"][step]
        if accelerator is None:
            speed = self.assumed["peak"][CORE] * max(cores, 1) * share[CORE]
        else:
            peaks = self.assumed["peak"]
            speed = peaks.get(accelerator, peaks[_GENERIC]) * share["gpu"]
        return operations / speed + host, False

    def overhead(self, kind: str) -> float:
        """Seconds that a part of a kind takes beside its work."""
        return float(self.assumed["overhead"][kind])


def shipped() -> Rates:
    """What is assumed."""
    text = Path(__file__).with_name("rates.yaml").read_text()
    return Rates(assumed=yaml.safe_load(text))


def load(workspace: str | None, settings: dict[str, str]) -> Rates:
    """The rates that hold for a workspace.

    Args:
        workspace: None where it cannot be reached.
        settings: as `Rates.settings`, of the configuration that is planned.

    Raises:
        UserError: where the file of measurements is damaged.
    """
    plain = shipped()
    if workspace is None or not storage.exists(path := storage.join(workspace, RATES)):
        return plain
    found = storage.read_json(path)
    current = {step for step, digest in found["settings"].items() if settings.get(step) == digest}
    return Rates(
        assumed=plain.assumed,
        measured={
            name: value
            for name, value in found["measured"].items()
            if name.partition(" ")[2] in current
        },
        overheads=found["overheads"],
        factors=found["factors"],
        settings=found["settings"],
        where=found["where"],
    )
