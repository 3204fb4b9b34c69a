"""Scores the trained recognizer on verification sets, and what it was after each kept epoch."""

import re
import time
from typing import Any

from jobs import ijb
from jobs.cluster import connect, preflight
from jobs.progress import console
from jobs.result_tables import blocks_of, markdown, show, show_published
from jobs.scoring import Sets, digests, read_sets, score
from jobs.train import EPOCHS, WEIGHTS
from jobs.work import begin
from raypipe import storage
from raypipe.config import Build
from raypipe.errors import UserError
from raypipe.manifest import Manifest, digest_of, read_manifest
from raypipe.node_cache import local
from raypipe.report.words import count

RESULTS, TABLE = "results.json", "results.md"
_KEPT = re.compile(r"epoch-(\d+)\.safetensors")
_OF_EPOCH = ("accuracy", "std", "tar_at_far", "auc")
_LOOK_SECONDS, _SAY_SECONDS = 2.0, 60.0


def run(config: Build) -> Manifest:
    """Embeds every photograph once, runs the protocol on each set; writes `results.json` and
    `results.md`."""
    trained = storage.join(config.workspace, "train")
    recognizer = read_manifest(trained)
    if recognizer is None:
        raise UserError(f"evaluate: {trained} holds no trained recognizer; run `raypipe train`")
    options = config.evaluate
    content = digests(options.sets)
    epochs = _epochs(trained) if options.epochs else {}
    work = begin(
        config,
        job="evaluate",
        settings={
            "sets": [item.name for item in options.sets],
            "fars": options.fars,
            "images_per_batch": options.images_per_batch,
        },
        inputs={
            "train": recognizer.content_digest,
            **content,
            **({"epochs": ", ".join(map(str, epochs))} if epochs else {}),
        },
    )
    if work.manifest:
        return work.manifest
    sets = read_sets(options.sets)
    connect(config)
    preflight("evaluate", [options.pool])
    weights = storage.join(trained, WEIGHTS)
    results = {item.name: score(item, weights, options, work.timing) for item in sets.pairs}
    templates = {
        item.name: ijb.score(item, weights, options, work.timing) for item in sets.templates
    }
    kept = []
    if sets.pairs:
        with work.timed("epochs"):
            kept = [
                _shortened(_score_epoch(config, sets, content, epoch, path))
                for epoch, path in epochs.items()
            ]
    found = {"sets": results, "ijb": templates, "epochs": kept}
    own = {"this recognizer": results}
    show(blocks_of(found))
    show_published(own)
    storage.write_json(work.path(RESULTS), found)
    storage.write_bytes(work.path(TABLE), markdown(blocks_of(found), own).encode())
    counts = {name: result["pairs"] for name, result in {**results, **templates}.items()}
    return work.finish({"pairs": counts}, digest_of([results, templates, kept]))


def follow(config: Build) -> Manifest:
    """Scores the weights of every epoch as soon as train keeps them, until train is done; then all
    that `run` does.

    Raises:
        UserError: where no epoch will ever be kept, and as `run`.
    """
    if not config.train.keep_every:
        raise UserError("evaluate: train.keep_every is 0, so train keeps no epochs to follow")
    trained = storage.join(config.workspace, "train")
    content = digests(config.evaluate.sets)
    sets = read_sets(config.evaluate.sets)
    if not sets.pairs:
        raise UserError("evaluate: no set of pairs to follow the epochs on, which IJB is not")
    connect(config)
    preflight("evaluate", [config.evaluate.pool])
    done: set[int] = set()
    said = float("-inf")
    while True:
        # Asked before the folder is listed, so that the last epoch is not missed.
        finished = read_manifest(trained) is not None
        for epoch, path in _epochs(trained).items():
            if epoch not in done:
                _score_epoch(config, sets, content, epoch, path)
                done.add(epoch)
                said = float("-inf")
        if finished:
            return run(config)
        if time.monotonic() - said >= _SAY_SECONDS:
            said = time.monotonic()
            console.print(
                f"evaluate: {count(len(done), 'epoch')} scored; waiting for more in "
                f"{storage.join(trained, EPOCHS)}, or for train to finish (Ctrl-C stops waiting)",
                style="dim",
                soft_wrap=True,
            )
        time.sleep(_LOOK_SECONDS)


def _epochs(trained: str) -> dict[int, str]:
    """Epoch, from 1 → file of its weights, in order, of those that train has kept so far."""
    entries = storage.listdir(storage.join(trained, EPOCHS))
    matches = ((_KEPT.fullmatch(entry.name), entry.path) for entry in entries)
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def _score_epoch(
    config: Build, sets: Sets, content: dict[str, str], epoch: int, path: str
) -> dict[str, Any]:
    """The results on pairs of an epoch's weights, kept in a file, so that nothing is scored twice.

    Args:
        content: name → digest of all sets.
        path: of the weights.
    """
    options = config.evaluate
    # All that the result depends on.
    key = digest_of(
        {
            "weights": storage.sha256_file(local(path)),
            "sets": {item.name: content[item.name] for item in sets.pairs},
            "fars": options.fars,
            "images_per_batch": options.images_per_batch,
        }
    )
    kept = storage.join(config.workspace, "evaluate", EPOCHS, f"epoch-{epoch:03d}.json")
    if storage.exists(kept):
        earlier = storage.read_json(kept)
        if earlier["key"] == key:
            return earlier
    found: dict[str, Any] = {
        "epoch": epoch,
        "key": key,
        "sets": {item.name: score(item, path, options, _unnoted) for item in sets.pairs},
    }
    storage.write_json(kept, found)
    reached = ", ".join(
        f"{name} {100 * result['accuracy']:.2f} ± {100 * result['std']:.2f} %"
        for name, result in found["sets"].items()
    )
    console.print(f"evaluate: epoch {epoch}: {reached}", soft_wrap=True)
    return found


def _shortened(found: dict[str, Any]) -> dict[str, Any]:
    """What `results.json` has of an epoch; the rest stands in the epoch's own file."""
    sets = {name: {key: result[key] for key in _OF_EPOCH} for name, result in found["sets"].items()}
    return {"epoch": found["epoch"], "sets": sets}


def _unnoted(*_: Any) -> None:
    """Timings of single epochs are not kept."""


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("evaluate")
