"""What can be measured in a tight crop of a face without a model of words: light and pose."""

import numpy as np
import torch

from raypipe import estimators

SIZE = 112  # pixels
# Rows and columns of a crop, as shares of its side: what they show of most faces.
_REGIONS = {
    "skin": [((0.45, 0.65), (0.38, 0.62))],  # cheeks and nose
    "hair": [((0.02, 0.12), (0.30, 0.70))],
    "background": [((0.0, 0.25), (0.0, 0.08)), ((0.0, 0.25), (0.92, 1.0))],
}


class Portraits:
    """Measures crops.

    Args:
        device: where the estimators of yaw and quality run.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self._device = device
        self._networks = {
            "yaw": estimators.face_yaw(None, device).eval(),
            "quality": estimators.face_quality(None, device).eval(),
        }

    def measure(self, name: str, crops: np.ndarray) -> np.ndarray:
        """One measure of each crop, float64 (N,).

        Args:
            name: "skin", "hair" or "background": median lightness L* of CIELAB, 0 to 100, of where
                most crops show it; "yaw": degrees, positive where the face looks to the right as
                the viewer sees it; "quality": how clearly a face is there.
            crops: uint8 (N, 112, 112, 3), RGB.
        """
        if name in _REGIONS:
            return np.array([_lightness(crop, name) for crop in crops])
        images = torch.from_numpy(crops).to(self._device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            return self._networks[name](images).double().cpu().numpy()


def _lightness(crop: np.ndarray, name: str) -> float:
    import cv2

    parts = [
        crop[_span(rows), _span(columns)].reshape(-1, 1, 3) for rows, columns in _REGIONS[name]
    ]
    pixels = np.concatenate(parts).astype(np.float32) / 255
    return float(np.median(cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)[..., 0]))


def _span(shares: tuple[float, float]) -> slice:
    return slice(round(shares[0] * SIZE), round(shares[1] * SIZE))
