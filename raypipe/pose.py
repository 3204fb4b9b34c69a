"""Where a head looks, from five landmarks of its face.

Yaw and pitch are those of an average head whose landmarks lie nearest to the ones seen, under
scaled orthographic projection (Dementhon and Davis 1995). The head is MediaPipe's canonical face
model (Apache-2.0, github.com/google-ai-edge/mediapipe,
modules/face_geometry/data/canonical_face_model.obj) in cm: x to the right as the viewer sees it, y
up, z to the viewer.
"""

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

# Vertices 263, 362, 33, 133 and 2, in the order of dlib's five points: outer and inner corner of
# the right eye as the viewer sees it, of the left eye, base of the nose.
DLIB_HEAD = np.array(
    [
        [4.445859, 2.663991, 3.173422],
        [1.856432, 2.585245, 3.757904],
        [-4.445859, 2.663991, 3.173422],
        [-1.856432, 2.585245, 3.757904],
        [0.0, -2.089024, 6.058267],
    ]
)
# In the order of SCRFD's five points, left and right as the viewer sees them: the eyes (means of
# their corners), the tip of the nose (vertex 1), the corners of the mouth (vertices 61 and 291).
SCRFD_HEAD = np.array(
    [
        DLIB_HEAD[2:4].mean(axis=0),
        DLIB_HEAD[0:2].mean(axis=0),
        [0.0, -1.126865, 7.475604],
        [-2.456206, -4.342621, 4.283884],
        [2.456206, -4.342621, 4.283884],
    ]
)


def pose(points: np.ndarray, head: np.ndarray = DLIB_HEAD) -> tuple[float, float]:
    """Yaw and pitch in degrees of an average head that shows five landmarks.

    Args:
        points: (5, 2), x and y (downwards) in pixels.
        head: (5, 3), the same points on the average head.

    Returns:
        Yaw, positive where the face looks to the right as the viewer sees it, and pitch, positive
        where it looks down.
    """
    centred = head - head.mean(axis=0)
    seen = (points - points.mean(axis=0)) * [1, -1]
    seen = seen / np.linalg.norm(seen) * np.linalg.norm(centred[:, :2])

    def off(values: np.ndarray) -> np.ndarray:
        turned = Rotation.from_euler("YXZ", values[:3]).apply(centred)
        return (values[3] * turned[:, :2] - seen).ravel()

    # Frontal first, and rolled as the points are (Procrustes' rotation in the picture's plane).
    plane = np.array([1, 1j])
    roll = np.angle(np.vdot(centred[:, :2] @ plane, seen @ plane))
    start = [0.0, 0.0, roll, 1.0]
    yaw, pitch, _, _ = least_squares(off, start).x
    return float(np.degrees(yaw)), float(np.degrees(pitch))
