"""What is measured in a crop of a face."""

import cv2
import numpy as np
import pytest
import torch

from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels
from raypipe.portraits import SIZE, Portraits


@pytest.fixture(scope="module")
def look() -> Portraits:
    return Portraits()


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    network = DCGANGenerator()
    load_into(network, shipped("dcgan_digiface.safetensors"))
    latents = torch.randn(24, LATENT, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        made = to_pixels(network.eval()(latents))
    return np.stack([cv2.resize(face, (SIZE, SIZE)) for face in made])


@pytest.mark.parametrize(("name", "rows"), [("hair", slice(0, 15)), ("skin", slice(50, 75))])
def test_lightness_is_that_of_the_part_named(look: Portraits, name: str, rows: slice) -> None:
    crops = np.full((3, SIZE, SIZE, 3), 120, np.uint8)
    crops[1, rows] = 255
    crops[2, rows] = 0
    middle, light, dark = look.measure(name, crops)
    assert (round(light), round(dark)) == (100, 0)
    assert 45 < middle < 55  # L* of sRGB 120 is 50


def test_the_background_is_what_stands_beside_the_head(look: Portraits) -> None:
    crops = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    crops[:, :28, :9] = crops[:, :28, -9:] = 255
    assert look.measure("background", crops).round().tolist() == [100]
    assert look.measure("hair", crops).tolist() == [0]


def test_a_mirrored_face_looks_the_other_way(look: Portraits, faces: np.ndarray) -> None:
    yaw = look.measure("yaw", faces)
    mirrored = look.measure("yaw", np.ascontiguousarray(faces[:, :, ::-1]))
    assert np.corrcoef(yaw, mirrored)[0, 1] < -0.9
    assert yaw.std() > 5


def test_noise_is_no_face(look: Portraits, faces: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, faces.shape, np.uint8)
    assert look.measure("quality", noise).max() < np.median(look.measure("quality", faces))
