"""Scores recognizers of anyone's on verification sets: files in, a table and JSON out."""

import os
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import ray

from jobs import ijb
from jobs.cluster import join, preflight
from jobs.progress import console
from jobs.result_tables import blocks_of, show, show_published
from jobs.scoring import digests, read_sets, score
from raypipe import storage
from raypipe.config import RayConfig
from raypipe.config.base import Pool
from raypipe.config.evaluate import EvaluateConfig, VerificationSetConfig
from raypipe.errors import UserError
from raypipe.node_cache import local

WEIGHTS = (".onnx", ".safetensors", ".pt", ".pth", ".ckpt")


def run(paths: Sequence[str], out: str | None, gpu: bool) -> dict[str, Any]:
    """Scores every recognizer on every set and prints the tables.

    Args:
        paths: recognizers, which end in one of `WEIGHTS`, and verification sets, in any order.
        out: JSON file to write the results to.
        gpu: whether to embed on a GPU.

    Returns:
        What `out` holds: "recognizers", by path, with "weights" (SHA-256), "sets" and "ijb".

    Raises:
        UserError: where there is no recognizer or no set among the paths, one is missing or
            damaged, or two sets have one name.
    """
    recognizers = [path for path in paths if path.endswith(WEIGHTS)]
    sets = [path for path in paths if not path.endswith(WEIGHTS)]
    if not recognizers:
        raise UserError(
            f"evaluate: neither a configuration (.yaml) nor a recognizer ({', '.join(WEIGHTS)}) "
            f"in: {' '.join(paths)}"
        )
    if not sets:
        raise UserError("evaluate: no verification set to score on; name some after the recognizer")
    for path in recognizers:
        if not storage.exists(local(path)):
            raise UserError(f"{path}: no such file")
    named = [VerificationSetConfig(name=_name(path), path=path) for path in sets]
    names = [item.name for item in named]
    if len(set(names)) != len(names):
        raise UserError(f"evaluate: two verification sets have one name in {', '.join(names)}")
    digests(named)
    loaded = read_sets(named)
    threads = os.cpu_count() or 1
    # A stage reads and filters with two CPUs more (`preflight`); they are logical.
    join(RayConfig(num_cpus=threads + 2))
    largest = max(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["Alive"])
    pool = Pool(num_cpus=min(threads, largest), num_gpus=float(gpu))
    preflight("evaluate", [pool])
    options = EvaluateConfig(sets=named, pool=pool)
    found: dict[str, dict[str, Any]] = {}
    for path in recognizers:
        console.print(path, style="bold", markup=False, soft_wrap=True)
        # Workers may run in other folders.
        weights = storage.absolute(path)
        found[path] = {
            "weights": storage.sha256_file(local(path)),
            "sets": {item.name: score(item, weights, options, _say) for item in loaded.pairs},
            "ijb": {
                item.name: ijb.score(item, weights, options, _say) for item in loaded.templates
            },
        }
        show(blocks_of(found[path]))
    files = [PurePosixPath(path).name for path in found]
    shown = files if len(set(files)) == len(files) else list(found)
    show_published(
        {name: result["sets"] for name, result in zip(shown, found.values(), strict=True)}
    )
    results = {"recognizers": found}
    if out is not None:
        storage.write_json(out, results)
    return results


def _name(path: str) -> str:
    """What a set is called: its file's name without what tells the format."""
    name = PurePosixPath(path.rstrip("/")).name
    return name.rsplit(".", 1)[0] or name


def _say(name: str, seconds: float, rows: int = 0, images: int = 0) -> None:
    if images:
        console.print(f"{name}: {images:,} images in {seconds:.1f} s", style="dim")
