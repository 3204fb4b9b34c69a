"""Embeds the photographs of verification pairs."""

import numpy as np
import pyarrow as pa

from raypipe.errors import UserError
from raypipe.images import ImageError, centre_square, decode


class FlipEmbed:
    """Embeds groups of images; a group is a model batch, whatever its neighbours are."""

    def __init__(self, weights: str, depth: str, width: int, gpu: bool, threads: int) -> None:
        """Loads the recognizer of a file; `gpu` puts it on the actor's GPU."""
        import torch

        from raypipe.recognizer import load_recognizer

        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if gpu else "cpu")
        self._network = load_recognizer(weights, depth=depth, width=width).to(self._device)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows group (int), images (list of bytes), sources (list of names) to their embeddings.

        An image of another size than 112×112 is scaled by its short side, as published code does
        (insightface, recognition/arcface_torch/eval/verification.py), and cut to its middle.

        Returns:
            Rows group, embeddings (float32 (512,) each, the sum of the face's and the mirrored
            face's), resized (how many images were of another size).

        Raises:
            UserError: where an image cannot be decoded, with its name.
        """
        import torch

        from raypipe.recognizer import SIDE, flip_sum

        embedded, resized = [], []
        for row in table.to_pylist():
            faces = np.empty((len(row["images"]), SIDE, SIDE, 3), np.uint8)
            others = 0
            for i, (data, source) in enumerate(zip(row["images"], row["sources"], strict=True)):
                try:
                    face = decode(data, source=source)
                except ImageError as error:
                    raise UserError(f"{error}; replace the image or remove the pair") from None
                if face.shape[:2] != (SIDE, SIDE):
                    face = centre_square(face, SIDE)
                    others += 1
                faces[i] = face
            values = flip_sum(self._network, torch.from_numpy(faces).to(self._device))
            embedded.append(list(values.cpu().numpy()))
            resized.append(others)
        kind = pa.list_(pa.list_(pa.float32()))
        return pa.table(
            {
                "group": table["group"],
                "embeddings": pa.array(embedded, kind),
                "resized": resized,
            }
        )
