"""The shipped DCGAN makes faces whose identity is in z."""

import numpy as np
import torch
import torch.nn.functional as F

from raypipe.config.embed import EmbedderConfig
from raypipe.embedders import open_embedder
from raypipe.models.dcgan import LATENT, SIZE, DCGANGenerator
from raypipe.models.loading import load_into, shipped


def test_noise_on_z_keeps_the_person() -> None:
    network = DCGANGenerator()
    load_into(network, shipped("dcgan_digiface.safetensors"))
    z = torch.randn(6, 1, LATENT, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(6, 2, LATENT, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        faces = network.eval()((z + 0.1 * noise).reshape(-1, LATENT))
    assert faces.shape == (12, 3, SIZE, SIZE)
    assert faces.min() >= -1
    assert faces.max() <= 1
    pixels = F.interpolate((faces + 1) * 127.5, size=112, mode="bicubic").clamp(0, 255).byte()
    embedder = open_embedder(EmbedderConfig(kind="dlib"), "cpu")
    vectors = embedder.embed(pixels.permute(0, 2, 3, 1).contiguous().numpy())
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1)
    assert similarity.argmax(1).tolist() == [k ^ 1 for k in range(12)]
