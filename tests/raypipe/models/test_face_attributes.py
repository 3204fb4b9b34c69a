import pytest
import torch

from raypipe.errors import UserError
from raypipe.models.face_attributes import ATTRIBUTES, FaceAttributes


def test_a_file_gives_the_network_back(tmp_path):
    torch.manual_seed(0)
    network = FaceAttributes()
    network.mean.copy_(torch.tensor([0.5, 0.0, 4.0]))
    network.scale.copy_(torch.tensor([0.75, 16.0, 8.0]))
    images = torch.rand(8, 3, 112, 112) * 2 - 1
    network(images)  # its batch norms count
    network.eval()
    path = tmp_path / "network.safetensors"
    path.write_bytes(network.to_safetensors())
    assert path.stat().st_size < 500_000
    other = FaceAttributes.from_checkpoint(str(path))
    assert other(images).shape == (8, len(ATTRIBUTES))
    assert torch.allclose(other(images), network(images), rtol=0.01, atol=0.05)
    wanted = network.mean + network.scale * network.standardised(images)
    assert torch.equal(network(images), wanted)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="not weights that can be loaded safely"):
        FaceAttributes.from_checkpoint(str(path))


def test_gradients_reach_the_whole_image():
    torch.manual_seed(1)
    network = FaceAttributes().eval()
    images = torch.zeros(1, 3, 112, 112, requires_grad=True)
    network(images).sum().backward()
    assert (images.grad != 0).float().mean() > 0.99
