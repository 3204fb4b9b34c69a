"""What the gates of references let pass, with the default configuration.

    python benchmarks/gates.py --grid gates.png

Faces of the DCGAN (64×64 as it paints them, and enlarged to 112×112), ORL photographs, both blurred
by a Gaussian (σ in pixels of a face of 80), and drawings: those that OpenCV makes of both at 4
times their size (mean shift to 4 levels; 5 levels; smoothed, 6 levels and outlines; `stylization`;
`pencilSketch`; lines alone), and cartoons of flat shapes. Printed are the shares in per cent that
each gate refuses; a picture is counted at the first gate that refuses it. `too flat` is the share
of pictures with one face whose flatness is beyond the limit, whatever else they are refused for,
and then come the medians of what was measured. Before that: how many of the DCGAN's faces dlib
finds, by `upsample` and `margin` of the aligner.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

from raypipe import orl
from raypipe.aligners import open_aligner
from raypipe.config.align import AlignerConfig
from raypipe.config.gates import GatesConfig
from raypipe.gates import measure, refused
from raypipe.images import decode, encode_png, resize
from raypipe.models.dcgan import LATENT, DCGANGenerator
from raypipe.models.loading import load_into, shipped
from raypipe.models.vec2face import to_pixels
from raypipe.seeding import generator

SEED = 30_000
FACES, DRAWN = 200, 40
REASONS = ("no_face", "several_faces", "small", "blurred", "turned", "drawing")
Picture = np.ndarray  # uint8 (height, width, 3), RGB


@torch.inference_mode()
def dcgan_faces() -> list[Picture]:
    network = DCGANGenerator()
    load_into(network, shipped("dcgan_digiface.safetensors"))
    latents = generator(SEED, "gates", stream="benchmark").standard_normal((FACES, LATENT))
    return list(to_pixels(network.eval()(torch.from_numpy(latents.astype(np.float32)))))


def photographs() -> list[Picture]:
    found = orl.photographs()[:: 400 // FACES]
    return [decode(open(photo.path, "rb").read(), source=photo.path) for photo in found]


def levels(rgb: Picture, count: int) -> Picture:
    step = 256 // count
    return (np.minimum(rgb // step, count - 1) * step + step // 2).astype(np.uint8)


def mean_shift(rgb: Picture) -> Picture:
    return levels(cv2.pyrMeanShiftFiltering(rgb, 8, 20), 4)


def lines(rgb: Picture, smooth: float = 1.0) -> Picture:
    grey = cv2.GaussianBlur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (0, 0), smooth)
    drawn = cv2.adaptiveThreshold(
        grey, 255, cv2.ADAPTIVE_THRESH_MEAN_C, cv2.THRESH_BINARY, blockSize=9, C=4
    )
    return np.repeat(drawn[..., None], 3, axis=2)


def outlined(rgb: Picture) -> Picture:
    smooth = rgb
    for _ in range(3):
        smooth = cv2.bilateralFilter(smooth, 7, 40, 7)
    return np.minimum(levels(smooth, 6), lines(rgb))


def pencil(rgb: Picture) -> Picture:
    return cv2.pencilSketch(rgb, sigma_s=60, sigma_r=0.07, shade_factor=0.05)[1]


DRAWINGS: dict[str, Callable[[Picture], Picture]] = {
    "mean shift": mean_shift,
    "5 levels": lambda rgb: levels(rgb, 5),
    "outlined": outlined,
    "stylization": lambda rgb: cv2.stylization(rgb, sigma_s=60, sigma_r=0.45),
    "pencil": pencil,
    "lines": lines,
}


def cartoon(number: int, side: int = 256) -> Picture:
    """A face of flat shapes in drawn colours."""
    rng = generator(SEED, f"cartoon-{number}", stream="benchmark")
    whole = 4 * side  # drawn large and shrunk, for smooth edges
    ground, skin, dark = (
        tuple(int(level) for level in colour)
        for colour in (
            rng.integers(100, 256, 3),
            np.array([224, 172, 140]) * rng.uniform(0.5, 1.1),
            rng.integers(0, 70, 3),
        )
    )
    image = Image.new("RGB", (whole, whole), ground)
    draw = ImageDraw.Draw(image)

    def box(x: float, y: float, wide: float, high: float) -> list[float]:
        return [whole * value for value in (x - wide, y - high, x + wide, y + high)]

    draw.ellipse(box(0.5, 0.42, 0.33, 0.36), fill=dark)
    draw.ellipse(box(0.5, 0.52, 0.27, 0.36), fill=skin, outline=dark, width=whole // 120)
    for x in (0.38, 0.62):
        draw.ellipse(box(x, 0.46, 0.06, 0.032), fill="white", outline=dark, width=whole // 120)
        draw.ellipse(box(x, 0.46, 0.027, 0.03), fill=dark)
        draw.rectangle(box(x, 0.4, 0.06, 0.01), fill=dark)
    shade = tuple(int(0.8 * level) for level in skin)
    draw.polygon([whole * value for value in (0.5, 0.48, 0.46, 0.62, 0.54, 0.62)], fill=shade)
    draw.chord(box(0.5, 0.715, 0.1, 0.045), 10, 170, fill=(170, 60, 60))
    return resize(np.asarray(image), (side, side))


def blurred(pictures: Iterable[Picture], sigma: float, face: float) -> list[Picture]:
    """Pictures whose faces are `face` pixels large, blurred by sigma pixels of one of 80."""
    return [cv2.GaussianBlur(rgb, (0, 0), sigma * face / 80) for rgb in pictures]


def enlarged(pictures: Iterable[Picture], times: float) -> list[Picture]:
    return [
        cv2.resize(rgb, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC) for rgb in pictures
    ]


def row(name: str, pictures: list[Picture]) -> None:
    aligner, gates = open_aligner(AlignerConfig(margin=0.25)), GatesConfig()
    tries = [measure(rgb, aligner.find(rgb)) for rgb in pictures]
    counts = Counter((refused(found, gates) or "seed:passed")[5:] for found in tries)
    single = [found for found in tries if found.faces == 1]
    flat = np.mean([found.flatness > gates.max_flatness for found in single]) if single else np.nan
    medians = [
        np.median([getattr(found, what) for found in single]) if single else np.nan
        for what in ("size", "sharpness", "flatness")
    ]
    print(
        f"{name:22}{len(pictures):5}",
        *(f"{100 * counts[reason] / len(pictures):10.1f}" for reason in (*REASONS, "passed")),
        f"{100 * flat:10.1f}{medians[0]:8.0f}{medians[1]:8.2f}{medians[2]:8.2f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--grid", help="PNG to write: a face and a photograph in all drawings")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    faces, people = dcgan_faces(), photographs()
    print("dlib finds a face in % of the DCGAN's, 64×64 / enlarged to 112×112, by margin")
    for upsample in (1, 2):
        shares = []
        for margin in (0.0, 0.125, 0.25, 0.5):
            aligner = open_aligner(AlignerConfig(upsample=upsample, margin=margin))
            found = [
                100 * np.mean([bool(aligner.find(rgb)) for rgb in pictures])
                for pictures in (faces, enlarged(faces, 1.75))
            ]
            shares.append(f"{margin}: {found[0]:.1f} / {found[1]:.1f}")
        print(f"upsample {upsample}   ", "   ".join(shares), flush=True)
    print(
        f"\n{'':22}{'n':>5}",
        *(f"{reason[:10]:>10}" for reason in (*REASONS, "passed")),
        f"{'too flat':>10}{'size':>8}{'sharp':>8}{'flat':>8}",
    )
    row("DCGAN, 64×64", faces)
    row("DCGAN, 112×112", enlarged(faces, 1.75))
    row("ORL", people)
    for sigma in (1, 2, 3):
        row(f"DCGAN, blurred by {sigma}", blurred(faces, sigma, 50))
        row(f"ORL, blurred by {sigma}", blurred(people, sigma, 75))
    some = {"DCGAN": enlarged(faces[:DRAWN], 4), "ORL": enlarged(people[::5], 4)}
    for name, draw in DRAWINGS.items():
        for whose, pictures in some.items():
            row(f"{whose}, {name}", [draw(rgb) for rgb in pictures])
    cartoons = [cartoon(number) for number in range(DRAWN)]
    row("cartoons", cartoons)
    if arguments.grid:
        drawn = [
            [rgb, *(draw(rgb) for draw in DRAWINGS.values())]
            for rgb in (some["DCGAN"][0], some["ORL"][0])
        ]
        drawn.append(cartoons[: len(drawn[0])])
        rows = [np.concatenate([resize(image, (192, 192)) for image in line], 1) for line in drawn]
        with open(arguments.grid, "wb") as file:
            file.write(encode_png(np.concatenate(rows)))


if __name__ == "__main__":
    main()
