"""What the small text-to-image model draws: are there faces, and do they show what was asked for.

    python benchmarks/diffusion.py [FOLDER] [--guidance 2 3 5] [--steps 20] [--grid grid.png]

200 prompts of the grammar portraits.yaml; beside them 200 faces of the DCGAN, which made the
pictures that the model was trained on. Printed are the share of the pictures in which dlib finds
one face (as it is, and with the margin that the seed job gives it), the share that passes all
gates, and for every attribute the share of the pictures that show the value asked for: a measure of
the picture (raypipe.portraits) falls between the borders that split the DCGAN's faces evenly.
"""

import argparse
import platform
import time

import numpy as np
import torch
from PIL import Image

from raypipe.aligners import Aligner, open_aligner
from raypipe.captions import cuts, value_of
from raypipe.config.align import AlignerConfig
from raypipe.config.diffusion import DiffusionConfig
from raypipe.config.diffusion_training import DiffusionTrainingConfig
from raypipe.config.gates import GatesConfig
from raypipe.diffusion import Diffusion
from raypipe.gates import measure, refused
from raypipe.images import resize
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels
from raypipe.portraits import SIZE, Portraits
from raypipe.prompts import PORTRAITS, Prompt, draw, load_grammar
from raypipe.seeding import generator, torch_seed

SEED, PICTURES, BORDERS = 40_000, 200, 3000
ATTRIBUTES = DiffusionTrainingConfig().attributes


@torch.inference_mode()
def dcgan_faces(count: int, stream: str) -> np.ndarray:
    """uint8 (N, 64, 64, 3)."""
    network = DCGANGenerator()
    load_into(network, shipped("dcgan_digiface.safetensors"))
    latents = generator(SEED, "diffusion", stream=stream).standard_normal((count, LATENT))
    parts = torch.from_numpy(latents.astype(np.float32)).split(250)
    return np.concatenate([to_pixels(network.eval()(part)) for part in parts])


def crops(pictures: np.ndarray) -> np.ndarray:
    return np.stack([resize(picture, (SIZE, SIZE)) for picture in pictures])


def shares(pictures: np.ndarray, plain: Aligner, padded: Aligner) -> tuple[float, float, float]:
    gates = GatesConfig()
    one = [len(plain.find(picture)) == 1 for picture in pictures]
    found = [padded.find(picture) for picture in pictures]
    passed = [
        refused(measure(picture, faces), gates) is None
        for picture, faces in zip(pictures, found, strict=True)
    ]
    return float(np.mean(one)), float(np.mean([len(f) == 1 for f in found])), float(np.mean(passed))


def agreement(
    pictures: np.ndarray, prompts: list[Prompt], borders: dict[str, list[float]], look: Portraits
) -> dict[str, float]:
    stack = crops(pictures)
    return {
        name: float(
            np.mean(
                [
                    value_of(value, attribute, borders[name]) == prompt.attributes[name]
                    for value, prompt in zip(
                        look.measure(attribute.measure, stack), prompts, strict=True
                    )
                ]
            )
        )
        for name, attribute in ATTRIBUTES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", help="a pipeline; none: the one that ships")
    parser.add_argument("--guidance", type=float, nargs="+", default=[2.0, 3.0, 5.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[20])
    parser.add_argument("--grid", help="PNG to write: the first 100 pictures of the last setting")
    given = parser.parse_args()
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    look = Portraits()
    plain = open_aligner(AlignerConfig(), None, 1)
    padded = open_aligner(AlignerConfig(margin=0.25), None, 1)
    known = crops(dcgan_faces(BORDERS, "borders"))
    known = known[look.measure("quality", known) >= 0]  # as the model was trained
    borders = {
        name: cuts(look.measure(attribute.measure, known), len(attribute.values))
        for name, attribute in ATTRIBUTES.items()
    }
    for name, found in borders.items():
        print(f"{name}: borders at {', '.join(f'{border:.1f}' for border in found)}")
    grammar = load_grammar(PORTRAITS)
    prompts = [draw(grammar, SEED, index) for index in range(PICTURES)]
    seeds = [torch_seed(SEED, f"picture {index}", 0, "diffusion") for index in range(PICTURES)]
    names = list(ATTRIBUTES)
    print(f"\n| | one face | with margin | passes | {' | '.join(names)} | pictures/s |")
    print("|---" * (len(names) + 5) + "|")
    own = shares(dcgan_faces(PICTURES, "faces"), plain, padded)
    print(f"| DCGAN | {' | '.join(f'{s:.1%}' for s in own)} |{' |' * (len(names) + 1)}")
    pictures = np.zeros(0)
    for steps in given.steps:
        for guidance in given.guidance:
            config = DiffusionConfig(model=given.folder, steps=steps, guidance=guidance)
            model = Diffusion(config, torch.device("cpu"))
            start = time.perf_counter()
            drawn = model.draw([p.prompt for p in prompts], [p.negative for p in prompts], seeds)
            rate = PICTURES / (time.perf_counter() - start)
            pictures = np.stack([one.rgb for one in drawn])
            found = shares(pictures, plain, padded)
            agreed = agreement(pictures, prompts, borders, look)
            cells = [f"{share:.1%}" for share in (*found, *agreed.values())]
            print(
                f"| {steps} steps, guidance {guidance:g} | {' | '.join(cells)} | {rate:.1f} |",
                flush=True,
            )
    if given.grid:
        rows = pictures[:100].reshape(5, 20, *pictures.shape[1:])
        Image.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows])).save(
            given.grid
        )


if __name__ == "__main__":
    main()
