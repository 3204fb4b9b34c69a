"""Whether a picture that was drawn for a reference shows one usable face.

Sharpness and flatness are measured on the grey picture inside the face's box, sharpness after that
was scaled to the size that a face has in a 112×112 crop. Neither depends on contrast.
"""

from collections.abc import Sequence

import numpy as np

from raypipe.aligners import AlignedFace
from raypipe.config.gates import GatesConfig
from raypipe.identities import Try
from raypipe.pose import pose

_SIDE = 80  # shorter side in pixels that dlib's box of a face has in the aligned crop


def measure(rgb: np.ndarray, faces: Sequence[AlignedFace]) -> Try:
    """What the gates look at.

    Args:
        rgb: the picture, uint8 (height, width, 3), RGB.
        faces: all that the aligner found in it. Only a single one is measured.
    """
    import cv2

    if len(faces) != 1:
        return Try(faces=len(faces))
    (face,) = faces
    left, top, right, bottom = face.box
    inside = rgb[max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)]
    grey = cv2.cvtColor(np.ascontiguousarray(inside), cv2.COLOR_RGB2GRAY)
    size = float(min(right - left, bottom - top))
    scale = _SIDE / size
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    in_crop = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=method)
    yaw, pitch = pose(face.points, face.head)
    return Try(
        faces=1,
        size=size,
        sharpness=sharpness(in_crop),
        yaw=yaw,
        pitch=pitch,
        flatness=flatness(grey),
    )


def refused(measured: Try, config: GatesConfig) -> str | None:
    """The first gate that a picture does not pass, "seed:reason"; None where it passes all.

    Every face that the detector reports counts. What it sees in a background by mistake costs one
    more picture; a second person in a reference would cost more.
    """
    if measured.faces != 1:
        return "seed:several_faces" if measured.faces else "seed:no_face"
    if _below(measured.size, config.min_size):
        return "seed:small"
    if _below(measured.sharpness, config.min_sharpness):
        return "seed:blurred"
    if _beyond(measured.yaw, config.max_yaw) or _beyond(measured.pitch, config.max_pitch):
        return "seed:turned"
    if _beyond(measured.flatness, config.max_flatness):
        return "seed:drawing"
    return None


def sharpness(grey: np.ndarray) -> float:
    """1 − the blur effect of a grey picture, uint8 (height, width): from 0, blurred, to 1, sharp.

    Crete et al., "The blur effect: perception and estimation with a new no-reference perceptual
    blur metric", 2007: the less a picture changes when it is blurred once more, the more blurred it
    was. 97 % of the DCGAN's faces and all ORL photographs are above 0.4; blurred by a Gaussian of
    σ = 2 pixels of a face of 80, more than 90 % and 80 % are below (benchmarks/gates.py).
    """
    from skimage.measure import blur_effect

    return float(1 - blur_effect(grey))


def flatness(grey: np.ndarray) -> float:
    """How much a grey picture, uint8 (height, width), is made of flat areas: in [0, 1).

    The Gini coefficient (Hurley and Rickard, "Comparing measures of sparsity", 2009) of the steps
    between neighbouring pixels. In a drawing most are next to nothing and a few, the lines and the
    edges of areas, are large; skin in a photograph, and noise, have steps of all sizes everywhere.
    Beyond 0.65 are fewer than 1 % of the DCGAN's faces and no ORL photograph, but at least 95 % of
    each kind of drawing in benchmarks/gates.py: flat areas, outlines, pencil, lines, cartoons. What
    it does not see: three in four smooth paintings without lines or areas (OpenCV's
    `edgePreservingFilter`), and hatching whose lines are a pixel apart.
    (Athitsos et al., "Distinguishing photographs and graphics on the World Wide Web", 1997, use the
    same steps, by a threshold.)
    """
    values = grey.astype(np.float64)
    across, down = np.diff(values, axis=1)[:-1], np.diff(values, axis=0)[:, :-1]
    steps = np.sort(np.hypot(across, down), axis=None)
    ranks = np.arange(1, steps.size + 1)
    return float(((2 * ranks - steps.size - 1) * steps).sum() / (steps.size * steps.sum()))


def _below(value: float | None, least: float | None) -> bool:
    return value is not None and least is not None and value < least


def _beyond(value: float | None, most: float | None) -> bool:
    return value is not None and most is not None and abs(value) > most
