"""A stage on a cluster of its own, and what a monitor would read of it; prints it as JSON.

python tests/jobs/seen_stage.py WORKSPACE
"""

import json
import sys
import time
import urllib.request

import ray

from jobs.cluster import connect
from jobs.stage import Step, run_stage, totals
from jobs.training_log import Log
from raypipe.config import parse
from raypipe.config.base import Pool
from raypipe.faceset import write_files
from raypipe.identities import Identity, Image
from raypipe.manifest import Manifest, Origin, summarise, write_manifest

# One of each sender: actors of a stage, a training, Ray Data.
AWAITED = ("ray_raypipe_rejected_total", "ray_raypipe_train_loss", "ray_data_num_alive_actors")


class Adds:
    """Adds an image to every identity, rejects one of each, and fails on one identity."""

    def __call__(self, identities):
        for identity in identities:
            if identity.identity_id == "base/007":
                raise ValueError("no good")
            identity.images[0].rejected = "clean:other_person"
            identity.images.append(Image(image_id="new", data=b"y", source="made"))
        return identities


def logged():
    log = Log([], "", {})
    log.write({"loss": 1.5, "images_per_second": 10.0, "data_wait": 0.01}, 100)
    time.sleep(20)  # metrics are sent every ten seconds, and not any more by a process that ended


def main(workspace):
    source = f"{workspace}/source"
    people = (
        Identity(
            identity_id=f"base/{number:03d}",
            index=number,
            source="base",
            images=[Image(image_id="0", data=b"x", source="made")],
        )
        for number in range(20)
    )
    write_files(source, people, "part", 5)
    counts, digest = summarise(source)
    origin = Origin(job="source", settings={}, inputs={}, models={})
    counted = totals(counts, images_made=0)
    write_manifest(source, Manifest(origin=origin, counts=counted, content_digest=digest))
    config = parse(
        {
            "workspace": workspace,
            "embedder": {"kind": "dlib"},
            "ray": {"num_cpus": 6, "object_store_memory": 200 * 2**20, "rows_per_block": 5},
        },
        "here",
    )
    connect(config)
    training = ray.remote(num_cpus=0)(logged).remote()
    step = Step(name="adds", actor=Adds, arguments={}, pool=Pool(batch_size=2))
    manifest = run_stage(config, job="embed", source=source, steps=[step], settings={})
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    until = time.monotonic() + 60
    while True:
        text = urllib.request.urlopen(address, timeout=5).read().decode()
        if all(f"\n{name}{{" in text for name in AWAITED):
            break
        assert time.monotonic() < until, "no metrics came"
        time.sleep(1)
    ray.get(training)
    print(json.dumps({"counts": manifest.counts, "metrics": text}))


if __name__ == "__main__":
    main(sys.argv[1])
