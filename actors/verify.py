"""Embeds the photographs of verification sets."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from raypipe import storage
from raypipe.aligners import ARCFACE_TEMPLATE, warp_to_template
from raypipe.errors import UserError
from raypipe.images import ImageError, centre_square, decode


class FlipEmbed:
    """Embeds groups of images; a group is a model batch, whatever its neighbours are."""

    def __init__(self, weights: str, gpu: bool, threads: int) -> None:
        """Opens the recognizer of a file; `gpu` puts it on the actor's GPU."""
        import torch

        from raypipe.recognizer import Recognizer, open_recognizer

        torch.set_num_threads(threads)
        self._recognizer: Recognizer | UserError
        try:
            self._recognizer = open_recognizer(weights, "cuda" if gpu else "cpu")
        except UserError as error:
            # Raised in a constructor it would reach the driver only as text of a dead actor.
            self._recognizer = error

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows images (list of bytes), sources (list of names) to their embeddings, a row a group.

        An image of another size than 112×112 is scaled by its short side, as published code does
        (insightface, recognition/arcface_torch/eval/verification.py), and cut to its middle.

        Returns:
            Rows embeddings (float32 (D,) each, the sum of the face's and the mirrored face's),
            resized (how many images were of another size).

        Raises:
            UserError: where an image cannot be decoded, with its name; where the file holds no
                recognizer that can be opened.
        """
        remedy = "replace the image or remove the pair"
        faces = (
            [_face(*image, remedy) for image in zip(row["images"], row["sources"], strict=True)]
            for row in table.to_pylist()
        )
        return self._embedded(faces)

    def _embedded(self, faces: Iterable[list[np.ndarray]]) -> pa.Table:
        """Groups of uint8 (height, width, 3) to what `__call__` returns."""
        import torch

        from raypipe.recognizer import SIDE, flip_sum

        if isinstance(self._recognizer, UserError):
            raise self._recognizer
        embedded, resized = [], []
        for images in faces:
            others = [i for i, face in enumerate(images) if face.shape[:2] != (SIDE, SIDE)]
            for i in others:
                images[i] = centre_square(images[i], SIDE)
            values = flip_sum(self._recognizer, torch.from_numpy(np.stack(images)))
            embedded.append(list(values.cpu().numpy()))
            resized.append(len(others))
        kind = pa.list_(pa.list_(pa.float32()))
        return pa.table({"embeddings": pa.array(embedded, kind), "resized": resized})


class FileEmbed(FlipEmbed):
    """Embeds groups of images that it reads itself; for sets that do not fit in memory."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows files (list of paths), points to what `FlipEmbed` makes.

        points is a list of ten float32 a loose crop, x and y of eyes, nose tip and corners of the
        mouth, by which it is warped onto the ArcFace template; null for images that are aligned.

        Raises:
            UserError: where an image cannot be read or decoded, with its path.
        """
        return self._embedded(map(_read, table.to_pylist()))


def _face(data: bytes, source: str, remedy: str) -> np.ndarray:
    try:
        return decode(data, source=source)
    except ImageError as error:
        raise UserError(f"{error}; {remedy}") from None


def _read(row: dict[str, Any]) -> list[np.ndarray]:
    """The images of a group of files, warped where they have points."""
    files, points = row["files"], row["points"]
    images = [_face(storage.read_bytes(file), file, "replace the image") for file in files]
    if points is None:
        return images
    # float32 as in published code: from float64, some pixels are rounded otherwise.
    return [
        warp_to_template(image, np.array(of_face, np.float32).reshape(5, 2), ARCFACE_TEMPLATE)
        for image, of_face in zip(images, points, strict=True)
    ]
