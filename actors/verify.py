"""Embeds the photographs of verification pairs."""

import numpy as np
import pyarrow as pa

from raypipe.errors import UserError
from raypipe.images import ImageError, decode, resize


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
        """Rows group (int), images (list of bytes), sources (list of names) to group, embeddings.

        An embedding is float32 (512,), the sum of the face's and the mirrored face's.

        Raises:
            UserError: where an image cannot be decoded, with its name.
        """
        import torch

        from raypipe.recognizer import SIDE, flip_sum

        embedded = []
        for row in table.to_pylist():
            faces = np.empty((len(row["images"]), SIDE, SIDE, 3), np.uint8)
            for i, (data, source) in enumerate(zip(row["images"], row["sources"], strict=True)):
                try:
                    face = decode(data, source=source)
                except ImageError as error:
                    raise UserError(f"{error}; replace the image or remove the pair") from None
                faces[i] = face if face.shape[:2] == (SIDE, SIDE) else resize(face, (SIDE, SIDE))
            values = flip_sum(self._network, torch.from_numpy(faces).to(self._device))
            embedded.append(list(values.cpu().numpy()))
        kind = pa.list_(pa.list_(pa.float32()))
        return pa.table({"group": table["group"], "embeddings": pa.array(embedded, kind)})
