"""Faces to judge: people of the shipped DCGAN, one stranger in seven."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels

sys.path.append(str(Path(__file__).parents[2]))  # the local judge
PEOPLE, IMAGES = 10, 12


@pytest.fixture(scope="session")
def faces() -> list[np.ndarray]:
    network = DCGANGenerator()
    load_into(network, shipped("dcgan_digiface.safetensors"))
    torch.manual_seed(0)
    with torch.inference_mode():
        return list(to_pixels(network.eval()(torch.randn(PEOPLE * IMAGES, LATENT))))


@pytest.fixture(scope="session")
def strangers() -> list[bool]:
    return [k % 7 == 0 for k in range(PEOPLE * IMAGES)]
