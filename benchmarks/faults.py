"""What one poisoned row among 10,000 costs.

    python benchmarks/faults.py [ROWS]

A stage with a stand-in for a model runs three times: undisturbed, with a row that raises in the
actor, and with a row that kills the actor's process, as a crash in a decoder does. Exit status 1
where any other row differs, or the poisoned one is not rejected with what went wrong.
"""

import os
import signal
import sys
import tempfile
import time

from jobs.cluster import connect
from jobs.stage import Step, run_stage, totals
from raypipe import storage
from raypipe.config import parse
from raypipe.config.base import Pool
from raypipe.faceset import FaceSet, write_files
from raypipe.identities import Identity, Image
from raypipe.manifest import Manifest, Origin, summarise, write_manifest


class StandIn:
    """Marks every image, and breaks on one identity."""

    def __init__(self, poison: str | None, way: str) -> None:
        self._poison = poison
        self._way = way

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        for identity in identities:
            if identity.identity_id == self._poison:
                if self._way == "raises":
                    raise ValueError("cannot be digested")
                os.kill(os.getpid(), signal.SIGKILL)
            for image in identity.images:
                image.similarity = 0.5
        return identities


def make(root: str, rows: int) -> None:
    """A face set of `rows` identities with one image each."""
    people = (
        Identity(
            identity_id=f"base/{number:06d}",
            index=number,
            source="base",
            images=[Image(image_id="0", data=number.to_bytes(4, "big") * 75, source="made")],
        )
        for number in range(rows)
    )
    write_files(root, people, "part")
    counts, digest = summarise(root)
    origin = Origin(job="source", settings={}, inputs={}, models={})
    counted = totals(counts, images_made=0)
    write_manifest(root, Manifest(origin=origin, counts=counted, content_digest=digest))


def digests(root: str) -> dict[str, bytes]:
    """Of every row."""
    return {
        row["identity_id"]: row["digest"]
        for table in FaceSet(root).tables(["identity_id", "digest"])
        for row in table.to_pylist()
    }


def main(rows: int) -> int:
    """Runs all three and prints a table; the exit status."""
    poison = f"base/{rows // 3:06d}"
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        make(f"{folder}/source", rows)
        print("| row | rejected | other rows that differ | what `failures/` says | seconds |")
        print("|---|---|---|---|---|")
        expected: dict[str, bytes] = {}
        for way in ("none", "raises", "kills"):
            config = parse(
                {
                    "workspace": f"{folder}/{way}",
                    "embedder": {"kind": "dlib"},
                    "ray": {"num_cpus": 8, "object_store_memory": 400 * 2**20},
                },
                "here",
            )
            connect(config)
            arguments = {"poison": None if way == "none" else poison, "way": way}
            step = Step(
                name="stand-in",
                actor=StandIn,
                arguments=arguments,
                pool=Pool(min=2, max=2, batch_size=64),
            )
            began = time.monotonic()
            made = run_stage(
                config, job="embed", source=f"{folder}/source", steps=[step], settings={}
            )
            seconds = time.monotonic() - began
            root = f"{folder}/{way}/embed"
            found = digests(root)
            expected = expected or found
            differ = {key for key in expected if expected[key] != found.get(key)}
            told = [storage.read_json(e.path)["error"] for e in storage.listdir(f"{root}/failures")]
            rejected = made.counts["identities"]["rejected"]
            said = told[0].splitlines()[-1] if told else ""
            print(f"| {way} | {rejected} | {len(differ - {poison})} | {said} | {seconds:.0f} |")
            wrong += bool(differ - {poison}) or (way != "none" and sum(rejected.values()) != 1)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000))
