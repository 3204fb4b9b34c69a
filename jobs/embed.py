"""Embeds every image of the base set; `clean` and `screen` read the vectors from the rows."""

from actors.embed import EmbedActor
from jobs.stage import Step, run_stage
from raypipe import storage
from raypipe.config import Build
from raypipe.manifest import Manifest


def run(config: Build) -> Manifest:
    """Embeds the ingested set into `{workspace}/embed`."""
    return embed_set(config, job="embed", source=storage.join(config.workspace, "ingest"))


def embed_set(config: Build, *, job: str, source: str) -> Manifest:
    """Embeds a face set into `{workspace}/{job}`, with the embedder and the pool of the build.

    Args:
        job: output folder, such as "embed" or "screen/galleries/orl/embed".
        source: root of a complete face set.

    Raises:
        UserError: where the source is unfinished, or the weights are missing or of another network.
    """
    from raypipe.models.loading import shipped

    embedder = config.embedder
    weights = embedder.weights or shipped("dlib_resnet_v1.safetensors")
    step = Step(
        name="embed",
        actor=EmbedActor,
        arguments={
            "embedder": embedder.model_dump(),
            "images_per_batch": config.embed.images_per_batch,
            "threads": max(1, int(config.embed.pool.num_cpus)),
        },
        pool=config.embed.pool,
    )
    return run_stage(
        config,
        job=job,
        source=source,
        steps=[step],
        # Where the weights lie does not matter, what they are does: `models` has their digest.
        settings={
            **embedder.model_dump(exclude={"weights"}),
            "images_per_batch": config.embed.images_per_batch,
        },
        models=[weights],
    )


if __name__ == "__main__":
    from jobs.cli import main_for

    main_for("embed")
