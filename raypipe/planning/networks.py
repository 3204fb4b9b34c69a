"""Floating point operations of the networks, an image each: a multiplication and an addition are
two.

Counted by torch on networks without memory. What takes seconds to import or is common lies in
`networks.yaml`; a test counts it anew. Convolutions, products of matrices and attention are
counted, as in published figures (which often give half of it: multiply-accumulates).
"""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from raypipe.config.align import AlignerConfig
from raypipe.config.diffusion import DiffusionConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.config.expand import PainterConfig
from raypipe.config.train import TrainConfig

# A backward pass computes the gradients of inputs and of weights, each as much as forward; where
# the weights are frozen, those of inputs alone.
_TRAINING, _GRADIENT = 3, 2
_FEATURES = 512  # numbers of an embedding of anything but dlib's network
# Pixels of a side, where the configuration leaves it to the pipeline.
_SIDES = {"face_diffusion": 64, "stable-diffusion-1.5": 512, "stable-diffusion-xl": 1024}
# SCRFD's models are named after their GFLOPs at 640 × 480 (github.com/deepinsight/insightface,
# detection/scrfd); the 10 GFLOPs are multiply-accumulates.
_SCRFD = 2 * 10e9 / (640 * 480)


class Size(NamedTuple):
    """What a network is: operations of one call on one image, and numbers in its weights."""

    operations: float
    parameters: int


@cache
def _table() -> dict[str, Size]:
    path = Path(__file__).with_name("networks.yaml")
    table = yaml.safe_load(path.read_text())
    return {name: Size(float(row[0]), int(row[1])) for name, row in table.items()}


def size(name: str) -> Size:
    """The size of a network.

    Args:
        name: as in networks.yaml, or iresnet-DEPTH-WIDTH.
    """
    return _table().get(name) or counted(name)


def of(name: str) -> float:
    """Operations of one call of a network on one image; names as in `size`."""
    return size(name).operations


@cache
def counted(name: str) -> Size:
    """What `size` says, counted. No weights are read and none are made."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True):
        network, inputs = _build(name)
        with FlopCounterMode(display=False) as counter:
            network(**inputs)
        parameters = sum(value.numel() for value in network.parameters())
    return Size(float(counter.get_total_flops()), parameters)


def _build(name: str) -> tuple[Any, dict[str, Any]]:
    """A network, and what it is called with for one image."""
    import torch

    kind, _, rest = name.partition("-")
    if kind == "iresnet":
        from raypipe.models.iresnet import iresnet

        depth, width = rest.split("-")
        return iresnet(depth, width=int(width)).eval(), {"x": torch.empty(1, 3, 112, 112)}
    if kind == "mobilefacenet":
        from raypipe.models.mobilefacenet import MobileFaceNet

        return MobileFaceNet("MobileFaceNet").eval(), {"x": torch.empty(1, 3, 112, 112)}
    if kind == "dlib":
        from raypipe.models.dlib_resnet import DlibResNet

        return DlibResNet().eval(), {"chip": torch.empty(1, 3, 150, 150)}
    if kind == "face_attributes":
        from raypipe.models.face_attributes import FaceAttributes

        return FaceAttributes().eval(), {"images": torch.empty(1, 3, 112, 112)}
    if kind == "dcgan":
        from raypipe.models.dcgan import LATENT, DCGANGenerator

        return DCGANGenerator().eval(), {"z": torch.empty(1, LATENT)}
    if kind == "vec2face":
        from raypipe.models import vec2face_sizes
        from raypipe.models.vec2face import Vec2Face

        sizes = {"small": vec2face_sizes.SMALL, **vec2face_sizes.PUBLISHED}[rest]
        inputs = {
            "vectors": torch.empty(1, sizes.vector),
            "token_noise": torch.empty(1, sizes.side**2),
            "mask_rate": torch.empty(1),
        }
        return Vec2Face(sizes).eval(), inputs
    if kind == "cemiface":
        from raypipe.models import cemiface

        size = cemiface.small(128) if rest == "small" else cemiface.published(_FEATURES)
        inputs = {
            "noisy": torch.empty(1, 3, size.side, size.side),
            "times": torch.zeros(1, dtype=torch.int64),
            "vectors": torch.empty(1, size.vector),
            "similarity": torch.empty(1),
        }
        return cemiface.CemiFace(size).eval(), inputs
    from raypipe.planning.pipelines import build

    return build(name)


def embedder(config: EmbedderConfig) -> float:
    """Operations for the embedding of an image; of an ONNX file's network nothing is known, and it
    counts as an IResNet-100."""
    if config.kind == "iresnet":
        return of(f"iresnet-{config.depth}-{config.width}")
    return of("dlib" if config.kind == "dlib" else "iresnet-100-64")


def dimension(config: EmbedderConfig) -> int:
    """Numbers of an embedding."""
    return 128 if config.kind == "dlib" else _FEATURES


def painter(config: PainterConfig, of_embedder: float) -> float:
    """Operations for an image of a generator. Weights are not opened: those that do not ship count
    as the published network.

    Args:
        of_embedder: operations for an embedding, that attributes are optimised with.
    """
    ships = config.weights is None
    if config.kind == "cemiface":
        return config.steps * of("cemiface-small" if ships else "cemiface-published")
    once = of("vec2face-small" if ships else "vec2face-base")
    if config.attributes is None:
        return once
    estimators = len(config.attributes.goals) * of("face_attributes")
    step = _GRADIENT * (once + of_embedder + estimators)
    return once + config.attributes.steps * step


def pipeline_name(config: DiffusionConfig) -> str:
    """The pipeline of networks.yaml that a configured one is taken for: by its name, since nothing
    of it is opened."""
    if config.model is None:
        return "face_diffusion"
    large = any(word in config.model.lower() for word in ("xl", "sd3", "flux"))
    return "stable-diffusion-xl" if large else "stable-diffusion-1.5"


def side(config: DiffusionConfig) -> float:
    """Pixels of a square as large as a picture."""
    if config.width and config.height:
        return float((config.width * config.height) ** 0.5)
    return _SIDES[pipeline_name(config)]


def pictures(config: DiffusionConfig, *, second_pass: bool = False) -> float:
    """Operations for a picture: denoising, with and without the prompt where it is guided, the
    decoder, and the prompt. The denoiser and the decoder grow with the area."""
    name = pipeline_name(config)
    how = config.second_pass if second_pass and config.second_pass else config
    area = (side(config) / _SIDES[name]) ** 2
    guided = 2 if how.guidance > 1 else 1
    denoising = how.steps * guided * of(f"{name}:unet")
    return area * (denoising + of(f"{name}:vae")) + guided * of(f"{name}:text")


def aligner(config: AlignerConfig) -> float:
    """Operations for a photograph; dlib's detector is no network."""
    return _SCRFD * config.input_size**2 if config.kind == "insightface" else 0.0


def recognizer(config: TrainConfig) -> Size:
    """The size of the network that is trained, its head left out."""
    if config.network == "mobilefacenet":
        return size("mobilefacenet")
    return size(f"iresnet-{config.depth}-{config.width}")


def training_step(config: TrainConfig, classes: float) -> float:
    """Operations for an image of a training step: network and head."""
    head = 2 * _FEATURES * classes * config.class_share
    return _TRAINING * (recognizer(config).operations + head)
