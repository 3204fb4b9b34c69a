import pytest
import torch
from safetensors.torch import save_file

from raypipe.errors import UserError
from raypipe.models.iresnet import iresnet
from raypipe.recognizer import flip_sum, load_recognizer, normalised


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = str(tmp_path / "recognizer.safetensors")
    network = iresnet("10", width=2)
    torch.nn.init.zeros_(network.fc.bias)  # or it would outweigh the face, untrained
    save_file(network.state_dict(), path)
    return path


def test_normalised_is_the_published_scaling():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    values = normalised(pixels)
    assert values.shape == (1, 3, 1, 1)
    assert values.flatten().tolist() == pytest.approx([-1.0, (51 / 255 - 0.5) / 0.5, 1.0])


def test_mirrored_faces_embed_alike_and_other_faces_do_not(weights):
    network = load_recognizer(weights, depth="10", width=2)
    faces = torch.randint(0, 256, (2, 112, 112, 3), dtype=torch.uint8)
    embedded = flip_sum(network, faces)
    assert embedded.shape == (2, 512)
    assert torch.allclose(embedded, flip_sum(network, faces.flip(2)), atol=1e-5)
    assert (embedded[0] - embedded[1]).norm() > 0.1 * embedded[0].norm()
    values = normalised(faces)
    with torch.no_grad():
        assert torch.allclose(embedded, network(values) + network(values.flip(3)), atol=1e-5)


def test_weights_of_another_network_are_refused(weights):
    with pytest.raises(UserError, match="weights of another network"):
        load_recognizer(weights, depth="10", width=4)
