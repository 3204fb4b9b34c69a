"""Faces to judge: people of the shipped DCGAN, one stranger in seven."""

import numpy as np
import pytest
import torch

from raypipe.config.judge import SheetConfig
from raypipe.judging import sheets
from raypipe.judging.sheets import Sheet
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels

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


@pytest.fixture
def pictures(faces: list[np.ndarray]) -> list[Sheet]:
    """One sheet of each person."""
    parts = range(0, len(faces), IMAGES)
    return [
        sheet
        for i in parts
        for sheet in sheets.draw(faces[i : i + IMAGES], SheetConfig(), range(IMAGES))
    ]
