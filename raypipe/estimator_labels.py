"""What dlib says of a face: how clearly one is there, and where it looks.

The detector's score is the quality. Yaw and pitch come from the five landmarks (`raypipe.pose`).
The more accurate 68 landmarks are not used: their predictor was trained on iBUG 300-W, whose
licence excludes commercial use (github.com/davisking/dlib-models, README), while that of the five
is in the public domain.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from raypipe.errors import UserError
from raypipe.pose import DLIB_HEAD, pose

NO_FACE = -1.0  # the detector looks for nothing that scores less
_MARGIN = 28  # pixels of a crop that are repeated around it: the detector wants room
# Landmarks move with the detector's box, so they are averaged over boxes that are shifted and
# grown by these shares of its width.
_SHIFTS = [
    (x, y, grow) for x in (-0.05, 0.05) for y in (-0.05, 0.05) for grow in (-0.05, 0.0, 0.05)
]


@dataclass(frozen=True, kw_only=True)
class Label:
    """What was found in a face, as the mean over it and its mirror image.

    Attributes:
        quality: score of dlib's HOG detector; −1 where it found no face.
        yaw: degrees, positive where the face looks to the right as the viewer sees it; NaN where no
            face was found.
        pitch: degrees, positive where the face looks down; likewise.
    """

    quality: float
    yaw: float
    pitch: float


class Labeller:
    """dlib's HOG face detector and 5-point shape predictor (package face_recognition_models)."""

    def __init__(self) -> None:
        spec = find_spec("face_recognition_models")
        try:
            import dlib
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                "labels of faces need dlib and face_recognition_models: install raypipe[demo]"
            )
        folder = os.path.join(spec.submodule_search_locations[0], "models")
        self._detector: Any = dlib.get_frontal_face_detector()
        self._landmarks: Any = dlib.shape_predictor(
            os.path.join(folder, "shape_predictor_5_face_landmarks.dat")
        )
        self._rectangle: Any = dlib.rectangle

    def label(self, rgb: np.ndarray) -> Label:
        """Looks at a crop, uint8 (112, 112, 3), RGB, and at its mirror image."""
        quality, yaw, pitch = self._look(rgb)
        mirrored, yaw_back, pitch_mirrored = self._look(np.ascontiguousarray(rgb[:, ::-1]))
        return Label(
            quality=(quality + mirrored) / 2,
            yaw=(yaw - yaw_back) / 2,
            pitch=(pitch + pitch_mirrored) / 2,
        )

    def _look(self, rgb: np.ndarray) -> tuple[float, float, float]:
        """Score, yaw and pitch of the face with the highest score."""
        import cv2

        rgb = np.pad(rgb, ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)), mode="edge")
        side = 2 * len(rgb)  # the detector sees faces of 80 pixels
        rgb = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_CUBIC)
        boxes, scores, _ = self._detector.run(rgb, 0, NO_FACE)
        if not boxes:
            return NO_FACE, np.nan, np.nan
        box = boxes[int(np.argmax(scores))]
        points = []
        for x, y, grow in _SHIFTS:
            moved = [
                box.left() + (x - grow) * box.width(),
                box.top() + (y - grow) * box.width(),
                box.right() + (x + grow) * box.width(),
                box.bottom() + (y + grow) * box.width(),
            ]
            shape = self._landmarks(rgb, self._rectangle(*map(round, moved)))
            points.append([[p.x, p.y] for p in shape.parts()])
        return max(scores), *pose(np.mean(points, axis=0), DLIB_HEAD)
