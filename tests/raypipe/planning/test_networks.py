"""Operations of networks: by hand, as published, and as the table has them."""

import pytest
import yaml

from raypipe.config.align import AlignerConfig
from raypipe.config.attributes import AttributesConfig
from raypipe.config.diffusion import DiffusionConfig
from raypipe.config.embed import EmbedderConfig
from raypipe.config.expand import PainterConfig
from raypipe.config.train import TrainConfig
from raypipe.planning import networks


def test_a_small_network_has_the_operations_of_its_layers():
    # Transposed convolutions 4 × 4: each pixel of the input, times 16, times both channels, twice.
    layers = [(100, 512, 1), (512, 256, 4), (256, 128, 8), (128, 64, 16), (64, 3, 32)]
    by_hand = sum(2 * 16 * before * after * side**2 for before, after, side in layers)
    counted = networks.counted("dcgan")
    assert counted.operations == by_hand
    weights = sum(16 * before * after for before, after, _ in layers)
    norms = 2 * (512 + 256 + 128 + 64)
    assert counted.parameters == weights + norms


@pytest.mark.parametrize(
    # GMAC and parameters by the documentation of arcface_torch (insightface); a multiply-accumulate
    # is two operations.
    ("name", "gmac", "parameters"),
    [
        ("iresnet-18-64", 2.6, 24.0e6),
        ("iresnet-50-64", 6.3, 43.6e6),
        ("iresnet-100-64", 12.1, 65.2e6),
    ],
)
def test_iresnets_have_their_published_operations(name, gmac, parameters):
    size = networks.size(name)
    assert size.operations == pytest.approx(2e9 * gmac, rel=0.01)
    assert size.parameters == pytest.approx(parameters, rel=0.01)


def table():
    path = networks.__file__.replace(".py", ".yaml")
    return sorted(yaml.safe_load(open(path)))


@pytest.mark.slow  # imports diffusers, and counts networks of billions of numbers
@pytest.mark.parametrize("name", table())
def test_the_table_has_what_is_counted(name):
    counted, known = networks.counted(name), networks.size(name)
    assert known.operations == pytest.approx(counted.operations, rel=1e-5)
    assert known.parameters == counted.parameters


def test_what_ships_is_small_and_what_is_named_counts_as_published():
    embedder = networks.embedder(EmbedderConfig(kind="dlib"))
    assert embedder == networks.of("dlib")
    ships = networks.painter(PainterConfig(), embedder)
    named = networks.painter(PainterConfig(weights="hf://somebody/vec2face.pth"), embedder)
    assert ships == networks.of("vec2face-small") and named == networks.of("vec2face-base")
    many = networks.painter(PainterConfig(kind="cemiface", steps=30), embedder)
    assert many == 30 * networks.of("cemiface-small")


def test_attributes_cost_a_gradient_of_all_networks_at_every_step():
    goal = {
        "name": "quality", "estimator": "raypipe.estimators:face_quality", "goal": "at_least",
        "value": 1, "tolerance": 1,
    }  # fmt: skip
    config = PainterConfig(attributes=AttributesConfig(goals=[goal, goal | {"name": "b"}], steps=5))
    once, of_embedder = networks.of("vec2face-small"), 7.0
    step = 2 * (once + of_embedder + 2 * networks.of("face_attributes"))
    assert networks.painter(config, of_embedder) == once + 5 * step


def test_guidance_doubles_the_denoiser_and_the_area_scales_it():
    def pictures(**values):
        return networks.pictures(DiffusionConfig(steps=10, **values))

    unet, vae, text = (networks.of(f"face_diffusion:{part}") for part in ("unet", "vae", "text"))
    assert pictures(guidance=1) == 10 * unet + vae + text
    assert pictures(guidance=7.5) == 20 * unet + vae + 2 * text
    assert pictures(guidance=1, width=128, height=128) == 4 * (10 * unet + vae) + text
    second = DiffusionConfig(
        guidance=1, second_pass={"adapter": "a/b.bin", "steps": 3, "guidance": 1}
    )
    assert networks.pictures(second, second_pass=True) == 3 * unet + vae + text


def test_a_pipeline_is_taken_for_the_published_one_it_is_named_after():
    large = DiffusionConfig(model="stabilityai/stable-diffusion-xl-base-1.0")
    assert networks.pipeline_name(large) == "stable-diffusion-xl"
    assert networks.side(large) == 1024
    assert networks.pipeline_name(DiffusionConfig(model="a/b")) == "stable-diffusion-1.5"


def test_detectors_and_training():
    assert networks.aligner(AlignerConfig()) == 0
    scrfd = AlignerConfig(kind="insightface", weights="det_10g.onnx", input_size=640)
    # Named after 10 GFLOPs at 640 × 480, which are multiply-accumulates.
    assert networks.aligner(scrfd) == pytest.approx(2 * 10e9 * 640 / 480)
    config = TrainConfig(depth="50", class_share=0.1)
    forward = networks.of("iresnet-50-64")
    assert networks.training_step(config, 1000) == 3 * (forward + 2 * 512 * 1000 * 0.1)
