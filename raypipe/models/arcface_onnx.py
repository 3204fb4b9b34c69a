"""Recognition models in ONNX, through insightface's own class."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raypipe.errors import UserError, first_line
from raypipe.node_cache import local

SIDE = 112


class ArcFaceModel:
    """An ONNX model that insightface can use, of 112×112 faces.

    Attributes:
        dimensions: length of an embedding.
        name: of the file.
    """

    def __init__(self, path: str, providers: list[Any]) -> None:
        """Loads a file; `providers` are onnxruntime's, the first that works is taken.

        Args:
            path: path or URI, which is fetched once a node.

        Raises:
            UserError: where the file is missing or broken, or is no recognition model.
        """
        import onnxruntime
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX

        file = local(path)
        if not os.path.exists(file):
            raise UserError(f"{path}: no such file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            session = onnxruntime.InferenceSession(file, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise UserError(
                f"{path}: not an ONNX model that can be run ({first_line(error)})"
            ) from error
        inputs = [list(entry.shape) for entry in session.get_inputs()]
        outputs = [list(entry.shape) for entry in session.get_outputs()]
        faces = len(inputs) == 1 and inputs[0][1:] == [3, SIDE, SIDE]
        batches = faces and (inputs[0][0] == 1 or not isinstance(inputs[0][0], int))
        vectors = len(outputs) == 1 and len(outputs[0]) == 2 and isinstance(outputs[0][1], int)
        if not (batches and vectors):
            raise UserError(
                f"{path}: not a recognition model: inputs {inputs}, outputs {outputs}; "
                f"expected [N, 3, {SIDE}, {SIDE}] and [N, dimension], N free or 1"
            )
        self.dimensions: int = outputs[0][1]
        self.name = Path(path).name
        self._one_by_one = inputs[0][0] == 1
        # Which numbers the model wants, 0 to 255 or -1 to 1, is for insightface to say.
        self._model: Any = ArcFaceONNX(model_file=file, session=session)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, 112, 112, 3) RGB, N at least 1, to float32 (N, dimensions), not normalised."""
        faces = images.transpose(0, 3, 1, 2).astype(np.float32)
        if self._one_by_one:
            parts = [self._model.forward(faces[i : i + 1]) for i in range(len(faces))]
            return np.concatenate(parts)
        return self._model.forward(faces)
