"""The actor that embeds faces."""

from typing import Any

import numpy as np
import torch

from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import SIZE, open_embedder
from raypipe.identities import Identity, Image
from raypipe.images import ImageError, decode, resize


class EmbedActor:
    """Gives every kept image its embedding.

    A model batch holds images of one identity only, so an identity's embeddings are the same bytes
    whatever else is in the call. An image that cannot be decoded is marked "embed:" and the reason;
    one that is not 112×112 is resized to it.

    Args:
        embedder: fields of an `EmbedderConfig`.
        images_per_batch: images in a model batch at most.
        threads: CPU threads of the process.
        device: where the network runs; none: a GPU where this process sees one.
    """

    def __init__(
        self,
        embedder: dict[str, Any],
        images_per_batch: int = 64,
        threads: int = 1,
        device: str | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self._embedder = open_embedder(EmbedderConfig(**embedder), device)
        self._images_per_batch = images_per_batch

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        for identity in identities:
            if identity.rejected is None:
                self._embed(identity.kept)
        return identities

    def _embed(self, images: list[Image]) -> None:
        # Decoding is not overlapped with computing: on a CPU it is a twentieth of the time and
        # would take the network's core. Actors that share a GPU (a fraction as `num_gpus`) overlap
        # without it: one decodes while another computes.
        crops = [(image, crop) for image in images if (crop := _crop(image)) is not None]
        for start in range(0, len(crops), self._images_per_batch):
            batch = crops[start : start + self._images_per_batch]
            embeddings = self._embedder.embed(np.stack([crop for _, crop in batch]))
            for (image, _), embedding in zip(batch, embeddings, strict=True):
                image.embedding = embedding


def _crop(image: Image) -> np.ndarray | None:
    """The decoded face, uint8 (112, 112, 3) RGB; None, and the image marked, where it has none."""
    try:
        rgb = decode(image.data, source=image.source)
    except ImageError as error:
        image.rejected = f"embed:{error.reason}"
        return None
    return rgb if rgb.shape[:2] == (SIZE, SIZE) else resize(rgb, (SIZE, SIZE))
