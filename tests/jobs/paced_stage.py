"""A stage that takes its time and notes where it runs, as a driver of its own:

    python tests/jobs/paced_stage.py CONFIG

CONFIG is JSON: workspace, source, notes (a folder) and pools: by name, what `Paced` is built with
and fields of a `Pool`.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray

from jobs.stage import Step, run_stage
from raypipe.config import parse
from raypipe.config.base import Pool
from raypipe.identities import Identity


def number_images(identities: list[Identity]) -> None:
    """The work itself."""
    for identity in identities:
        for number, image in enumerate(identity.images):
            image.similarity = (identity.index + number) / 1000


class Paced:
    """Numbers the images of an identity, slowly, and leaves a note of every call.

    Args:
        step: name of the step.
        start: seconds until it can be called.
        pace: seconds that a call takes.
        gather: actors of the step that must have been built before any of them is called, so that
            each gets something to do however slow the machine is.
        notes: folder of the notes.
    """

    def __init__(self, step: str, start: float, pace: float, gather: int, notes: str) -> None:
        self._note = {
            "step": step,
            "actor": uuid4().hex,
            "node": _ip(),
            "born": time.time(),
        }
        self._pace = pace
        self._notes = Path(notes)
        time.sleep(start)
        (self._notes / f"{self._note['actor']}.{step}").touch()
        while len(list(self._notes.glob(f"*.{step}"))) < gather:
            time.sleep(0.1)

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        begun = time.time()
        time.sleep(self._pace)
        number_images(identities)
        path = self._notes / f"{uuid4().hex}.json"
        names = [identity.identity_id for identity in identities]
        path.with_suffix(".part").write_text(
            json.dumps({**self._note, "begun": begun, "ended": time.time(), "rows": names})
        )
        os.replace(path.with_suffix(".part"), path)
        return identities


def _ip() -> str:
    """Address of the node that this process runs on."""
    here = ray.get_runtime_context().get_node_id()
    return next(n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == here)


def main(given: dict[str, Any]) -> None:
    config = parse(
        {
            "workspace": given["workspace"],
            "ray": {"rows_per_block": 2, "no_progress_seconds": 300},
            "embedder": {"kind": "dlib"},
        },
        "paced",
    )
    steps = [
        Step(
            name=name,
            actor=Paced,
            arguments={"step": name, "notes": given["notes"], **pace},
            pool=Pool(batch_size=2, **pool),
        )
        for name, (pace, pool) in given["pools"].items()
    ]
    run_stage(config, job="embed", source=given["source"], steps=steps, settings={})


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
