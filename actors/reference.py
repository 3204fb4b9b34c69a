"""The actor that makes references of drawn pictures, or says why they are none."""

from typing import Any

import numpy as np
import torch

from raypipe.aligners import open_aligner
from raypipe.config.align import AlignerConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.config.gates import GatesConfig
from raypipe.embedders import open_embedder
from raypipe.gates import measure, refused
from raypipe.identities import Identity, Image, SeedEvidence, Try
from raypipe.images import ImageError, decode, encode_png, resize

_BLANKED = "seed:safety_checker"
_LONGEST = 256  # pixels of a refused picture: enough to look at in the report


class ReferenceActor:
    """Measures the newest picture of every identity, and makes a reference of it or rejects it.

    A picture that passes the gates is replaced by its aligned crop (PNG) and embedded. Another one
    is rejected with its reason, and shrunk. Either way the identity's evidence has a `Try` for it.
    Pictures are embedded one at a time, so an embedding does not depend on what else is in a call.

    The picture of a second pass, "seed-NN-pose" with the parent "seed-NN", is of the same try: what
    was measured of it stands in the place of the first picture's. Where it passes, the first
    picture is "seed:replaced_by_second_pass"; where it does not, the first is rejected with it.

    Args:
        aligner: fields of an `AlignerConfig`; crops are always PNG.
        gates: fields of a `GatesConfig`.
        embedder: fields of an `EmbedderConfig`.
        threads: CPU threads of the process.
        device: where the networks run; none: a GPU where this process sees one.
    """

    def __init__(
        self,
        *,
        aligner: dict[str, Any],
        gates: dict[str, Any],
        embedder: dict[str, Any],
        threads: int = 1,
        device: str | None = None,
    ) -> None:
        import cv2

        cv2.setNumThreads(threads)
        torch.set_num_threads(threads)
        self._aligner = open_aligner(AlignerConfig(**aligner), device, threads)
        self._gates = GatesConfig(**gates)
        self._embedder = open_embedder(EmbedderConfig(**embedder), device)

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        for identity in identities:
            if identity.rejected is None and identity.seed is not None:
                self._follow(identity, identity.seed)
        return identities

    def _follow(self, identity: Identity, evidence: SeedEvidence) -> None:
        """Looks at what is not yet measured of the newest try."""
        newest = identity.images[-1]
        name = newest.parent or newest.image_id
        first = next(image for image in identity.images if image.image_id == name)
        number = int(name.removeprefix("seed-"))
        self._look(first, number, evidence)
        if newest is first or newest.embedding is not None:
            return
        if first.rejected is None:
            self._look(newest, number, evidence)
            first.rejected = newest.rejected or "seed:replaced_by_second_pass"
        else:
            newest.rejected = first.rejected

    def _look(self, image: Image, number: int, evidence: SeedEvidence) -> None:
        """Measures a picture of a try, unless that is done, and notes what it shows."""
        if image.embedding is None and image.rejected in (None, _BLANKED):
            measured = self._measure(image)
            image.rejected = measured.rejected
            evidence.tries[number:] = [measured]  # a second pass in the place of the first

    def _measure(self, image: Image) -> Try:
        """Puts the crop and its embedding, or a smaller picture, in the place of a picture."""
        if image.rejected is not None:  # the pipeline blanked it
            return Try(faces=0, rejected=image.rejected)
        try:
            rgb = decode(image.data, source=image.source)
        except ImageError as error:
            return Try(faces=0, rejected=f"seed:{error.reason}")
        faces = self._aligner.find(rgb)
        measured = measure(rgb, faces)
        measured.rejected = refused(measured, self._gates)
        if measured.rejected is None:
            crop = faces[0].crop
            image.data = encode_png(crop)
            image.embedding = self._embedder.embed(crop[None])[0]
        else:
            image.data = encode_png(_shrunk(rgb))
        return measured


def _shrunk(rgb: np.ndarray) -> np.ndarray:
    """A picture whose longer side has 256 pixels at most."""
    height, width = rgb.shape[:2]
    scale = min(1.0, _LONGEST / max(height, width))
    return resize(rgb, (max(1, round(width * scale)), max(1, round(height * scale))))
