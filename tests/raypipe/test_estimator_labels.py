import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.nn import functional as F

from raypipe.estimator_labels import NO_FACE, Labeller
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels
from raypipe.pose import DLIB_HEAD, pose


@pytest.mark.parametrize(
    ("yaw", "pitch", "roll"), [(0, 0, 0), (20, 5, 3), (-40, -15, -30), (35, 20, 25)]
)
def test_pose_of_a_head_that_is_turned_and_photographed(yaw, pitch, roll):
    turned = Rotation.from_euler("YXZ", [yaw, pitch, roll], degrees=True).apply(DLIB_HEAD)
    photographed = turned[:, :2] * [4.2, -4.2] + [30, 70]
    assert pose(photographed) == pytest.approx((yaw, pitch), abs=1e-3)


def test_signs_of_pose():
    """The nose goes to the right and down beside eyes that stay."""
    frontal = DLIB_HEAD[:, :2] * [5, -5]
    right, down = frontal.copy(), frontal.copy()
    right[4, 0] += 3
    down[4, 1] += 3
    yaw, pitch = pose(frontal)
    assert abs(yaw) < 1e-6 and abs(pitch) < 1e-6
    assert pose(right)[0] > 5
    assert pose(down)[1] > 5


def test_a_face_and_none():
    dcgan = DCGANGenerator()
    load_into(dcgan, shipped("dcgan_digiface.safetensors"))
    rng = np.random.default_rng(0)
    latents = torch.from_numpy(rng.standard_normal((6, LATENT)).astype(np.float32))
    with torch.inference_mode():
        faces = to_pixels(F.interpolate(dcgan.eval()(latents), size=112, mode="bicubic"))
    labeller = Labeller()
    found = [labeller.label(face) for face in faces]
    best = max(range(6), key=lambda k: found[k].quality)
    assert found[best].quality > 0.5
    mirrored = labeller.label(np.ascontiguousarray(faces[best][:, ::-1]))
    assert mirrored.quality == pytest.approx(found[best].quality)
    assert mirrored.yaw == pytest.approx(-found[best].yaw, abs=1e-6)
    nothing = labeller.label(np.zeros((112, 112, 3), np.uint8))
    assert nothing.quality == NO_FACE
    assert np.isnan(nothing.yaw) and np.isnan(nothing.pitch)
