"""Aligners: a photograph to the 112×112 crop that recognition networks expect."""

import fnmatch
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from raypipe import storage
from raypipe.config.align import AlignerConfig
from raypipe.errors import UserError
from raypipe.node_cache import local
from raypipe.pose import DLIB_HEAD, SCRFD_HEAD

SIZE = 112  # side of a crop in pixels

# Left eye, right eye, nose tip, left and right corner of the mouth as the viewer sees them, in
# pixels of the 112×112 crop (insightface, python-package/insightface/utils/face_align.py).
ARCFACE_TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ],
    dtype=np.float32,
)

# dlib marks the base of the nose, not its tip; that lies lower on the template (measured on ORL).
_DLIB_TEMPLATE = np.array([*ARCFACE_TEMPLATE[:2], [56.0, 74.5]], dtype=np.float32)
# Longer photographs are shrunk to this many pixels before dlib looks at them: time and memory of
# its image pyramid grow with the area, and a face worth cropping still has 80 pixels in it.
_DLIB_LONGEST = 1024
_DETECTORS = ("det_*.onnx", "scrfd_*.onnx")  # what model packs call them


@dataclass(frozen=True, kw_only=True)
class AlignedFace:
    """A face of a photograph.

    Attributes:
        crop: uint8 (112, 112, 3), RGB, warped onto the ArcFace template; black where the photograph
            and the margin around it end.
        box: float32 (4,): left, top, right, bottom in pixels of the photograph.
        points: float32 (5, 2): x, y in pixels of the photograph. SCRFD: eyes, nose tip, corners of
            the mouth; dlib: two corners of the right and of the left eye as the viewer sees them,
            nose base.
        head: float64 (5, 3): the same points on an average head, for `raypipe.pose`.
        score: the detector's own score; dlib from 0, SCRFD in [0, 1].
    """

    crop: np.ndarray
    box: np.ndarray
    points: np.ndarray
    head: np.ndarray
    score: float


class Aligner(Protocol):
    """Finds and crops faces."""

    def find(self, rgb: np.ndarray) -> list[AlignedFace]:
        """All faces of a photograph, uint8 (height, width, 3) RGB, the largest box first."""
        ...

    def align(self, rgb: np.ndarray) -> AlignedFace | None:
        """The largest face of a photograph, uint8 (height, width, 3) RGB, or None."""
        return next(iter(self.find(rgb)), None)


def warp_to_template(rgb: np.ndarray, points: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Crop of a photograph by the similarity transform that takes points nearest to a template.

    Least squares over rotation, scale and shift (Umeyama 1991), bilinear, black outside, as in
    insightface's `norm_crop`.

    Args:
        rgb: uint8 (height, width, 3).
        points: (K, 2), x and y in pixels of the photograph, K at least 2 and not all equal.
        template: (K, 2), where they are to go, in pixels of the crop.

    Returns:
        uint8 (112, 112, 3).
    """
    import cv2
    from skimage.transform import SimilarityTransform

    matrix = SimilarityTransform.from_estimate(points, template).params[:2]
    return cv2.warpAffine(rgb, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR)


def _largest_first(boxes: np.ndarray) -> list[int]:
    """Indices of boxes (left, top, right, bottom) by their area."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return np.argsort(-areas, kind="stable").tolist()


class DlibAligner(Aligner):
    """dlib's HOG face detector and 5-point shape predictor (package face_recognition_models)."""

    def __init__(self, upsample: int, margin: float, min_score: float) -> None:
        try:
            import dlib
        except ImportError as error:
            raise UserError("aligner kind 'dlib' needs dlib: install raypipe[demo]") from error
        # Importing the package would need pkg_resources, which newer setuptools no longer brings.
        spec = find_spec("face_recognition_models")
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                "aligner kind 'dlib' needs face_recognition_models: install raypipe[demo]"
            )
        folder = spec.submodule_search_locations[0]
        predictor = os.path.join(folder, "models", "shape_predictor_5_face_landmarks.dat")
        self._detector: Any = dlib.get_frontal_face_detector()
        self._landmarks: Any = dlib.shape_predictor(predictor)
        self._upsample = upsample
        self._margin = margin
        self._min_score = min_score

    def find(self, rgb: np.ndarray) -> list[AlignedFace]:
        """All faces of a photograph, uint8 (height, width, 3) RGB, the largest box first."""
        import cv2

        margin = round(self._margin * max(rgb.shape[:2]))
        padded = np.pad(rgb, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
        height, width = padded.shape[:2]
        scale = min(1.0, _DLIB_LONGEST / max(height, width)) * 2**self._upsample
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        scaled = cv2.resize(padded, size, interpolation=method)
        rectangles, scores, _ = self._detector.run(scaled, 0, self._min_score)
        if not rectangles:
            return []
        per_axis = np.array([width / size[0], height / size[1]])
        boxes = np.array([[r.left(), r.top(), r.right() + 1, r.bottom() + 1] for r in rectangles])
        boxes = boxes * np.tile(per_axis, 2) - margin
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centres >= 0) & (centres <= rgb.shape[1::-1])).all(axis=1)
        faces = []
        for k in _largest_first(boxes):
            if not inside[k]:  # a face in what was repeated
                continue
            shape = self._landmarks(scaled, rectangles[k])
            points = np.array([[p.x, p.y] for p in shape.parts()], dtype=np.float64)
            # resize keeps pixel areas, not pixel centres
            points = (points + 0.5) * per_axis - 0.5 - margin
            eyes_and_nose = np.stack([points[2:4].mean(0), points[0:2].mean(0), points[4]])
            faces.append(
                AlignedFace(
                    crop=warp_to_template(padded, eyes_and_nose + margin, _DLIB_TEMPLATE),
                    box=boxes[k].astype(np.float32),
                    points=points.astype(np.float32),
                    head=DLIB_HEAD,
                    score=float(scores[k]),
                )
            )
        return faces


def weights_files(config: AlignerConfig) -> list[str]:
    """Weight files of an aligner: one, every network of a model pack's folder, or none of dlib's,
    which come with a package."""
    if config.weights is None:
        return []
    if config.weights.endswith(".onnx"):
        return [config.weights]
    return [e.path for e in storage.listdir(config.weights) if e.name.endswith(".onnx")]


def _detector_file(path: str) -> str:
    """The detector of a model pack, on this node: the file itself, or the one a folder holds."""
    if path.endswith(".onnx"):
        return local(path)
    names = [entry.name for entry in storage.listdir(path)]
    found = [name for pattern in _DETECTORS for name in fnmatch.filter(names, pattern)]
    if len(found) != 1:
        raise UserError(
            f"{path}: expected a detector .onnx file or a folder with one {' or '.join(_DETECTORS)}"
            f", found {len(found)}"
        )
    return local(storage.join(path, found[0]))


class ScrfdAligner(Aligner):
    """SCRFD (Guo et al. 2021) from an insightface model pack, through insightface's own class."""

    def __init__(
        self, weights: str, input_size: int, min_score: float, device: str | None, threads: int
    ) -> None:
        import onnxruntime
        from insightface.model_zoo import get_model
        from insightface.model_zoo.onnxruntime_utils import get_default_providers
        from insightface.model_zoo.scrfd import SCRFD

        path = _detector_file(weights)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        providers = ["CPUExecutionProvider"] if device == "cpu" else get_default_providers()
        try:
            detector = get_model(path, providers=providers, sess_options=options)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise UserError(
                f"{path}: not an ONNX model that can be run ({str(error)[:200]!r})"
            ) from error
        if not isinstance(detector, SCRFD) or not detector.use_kps:
            raise UserError(f"{path}: not an SCRFD detector with key points (9 or 15 outputs)")
        self._detector = detector
        self._input_size = (input_size, input_size)
        self._min_score = min_score

    def find(self, rgb: np.ndarray) -> list[AlignedFace]:
        """All faces of a photograph, uint8 (height, width, 3) RGB, the largest box first."""
        bgr = np.ascontiguousarray(rgb[..., ::-1])
        found, points = self._detector.detect(
            bgr, input_size=self._input_size, det_thresh=self._min_score
        )
        return [
            AlignedFace(
                crop=warp_to_template(rgb, points[k], ARCFACE_TEMPLATE),
                box=found[k, :4],
                points=points[k],
                head=SCRFD_HEAD,
                score=float(found[k, 4]),
            )
            for k in _largest_first(found)
        ]


def open_aligner(config: AlignerConfig, device: str | None = None, threads: int = 1) -> Aligner:
    """Loads the aligner a configuration asks for.

    Args:
        config: kind and its settings.
        device: "cpu" keeps SCRFD off the GPU; none: a GPU where onnxruntime has one.
        threads: CPU threads of SCRFD; dlib has one.

    Raises:
        UserError: where a package or the weights are missing, or the weights are no such detector.
    """
    if config.kind == "dlib":
        min_score = 0.0 if config.min_score is None else config.min_score
        return DlibAligner(config.upsample, config.margin, min_score)
    assert config.weights is not None  # the configuration checks it
    min_score = 0.5 if config.min_score is None else config.min_score
    return ScrfdAligner(config.weights, config.input_size, min_score, device, threads)
