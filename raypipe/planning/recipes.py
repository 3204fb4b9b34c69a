"""What the speed of a step depends on; a measurement of something else does not count."""

from typing import Any

from raypipe.config import Build
from raypipe.config.base import Pool
from raypipe.manifest import digest_of


def _size(pool: Pool) -> dict[str, Any]:
    return pool.model_dump(include={"num_cpus", "num_gpus", "accelerator_type", "max"})


def recipes(config: Build) -> dict[str, str]:
    """Step → hex digest of what its seconds for an image depend on."""
    embedder = config.embedder.model_dump(exclude={"licence"})
    found: dict[str, Any] = {
        "photographs": {},
        "generate": {},
        "read": _size(config.ingest.pool),
        "embed": [embedder, config.embed.images_per_batch, _size(config.embed.pool)],
        "clean": [config.clean.rule, _size(config.clean.pool)],
        "mark": _size(config.screen.pool),
        "refill": [config.assemble.images_per_identity, _size(config.assemble.pool)],
        "train": config.train.model_dump(
            include={
                *("network", "depth", "width", "se", "batch_size", "micro_batch", "head"),
                *("augment", "precision", "ema", "class_share", "num_workers", "use_gpu"),
                *("cpus_per_worker", "accelerator_type"),
            }
        ),
    }
    found["evaluate"] = [found["train"], _size(config.evaluate.pool)]
    if config.ingest.aligner is not None:
        found["align"] = [_size(config.ingest.pool), config.ingest.aligner.model_dump()]
    if config.judge is not None:
        experts = [name for name in config.judge.experts if name != "vision"]
        second = config.judge.second.model_dump() if config.judge.second else None
        found["judge"] = [experts, second, config.judge.quality.model_dump()]
        found["judge"].append(_size(config.judge.pool))
    if config.seeds is not None:
        diffusion = config.seeds.diffusion.model_dump(exclude={"licence"})
        found["diffuse"] = [diffusion, _size(config.seeds.pool)]
        checked = [config.seeds.aligner.model_dump(), config.seeds.gates.model_dump()]
        found["check"] = [checked, embedder, _size(config.seeds.reference_pool)]
    if config.expand is not None:
        painters = config.expand.model_dump(mode="json", exclude={"pool", "sources", "attempts"})
        found["expand"] = [painters, embedder, _size(config.expand.pool)]
    return {step: digest_of(value) for step, value in found.items()}
