"""Training the small network for quality, yaw and pitch on labels of dlib's detector."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from raypipe.config.estimator import EstimatorConfig
from raypipe.errors import UserError
from raypipe.estimator_labels import Labeller
from raypipe.identities import Identity
from raypipe.images import ImageError, decode, resize
from raypipe.models.face_attributes import ATTRIBUTES, FaceAttributes
from raypipe.seeding import generator, torch_seed

_SIDE = 112
# In training every image gets its own contrast, brightness and noise, uniform up to these, for
# images in [-1, 1]: what is optimised must not hang on single pixels.
_CONTRAST, _BRIGHTNESS, _NOISE = 0.2, 0.1, 0.1
_BATCH = 256  # images measured at once
Row = dict[str, Any]


@dataclass(kw_only=True)
class Examples:
    """Faces and what they show.

    Attributes:
        images: uint8 (n, 112, 112, 3), RGB.
        values: float32 (n, 3), in the order of `ATTRIBUTES`; NaN where it is not known.
        held_out: bool (n,), of a person that the network is measured on.
    """

    images: np.ndarray
    values: np.ndarray
    held_out: np.ndarray


def pixels(identity: Identity) -> dict[str, np.ndarray]:
    """The kept images of an identity by `image_id`, uint8 (112, 112, 3).

    Raises:
        UserError: where an image cannot be decoded, naming it.
    """
    found = {}
    for image in identity.kept:
        name = f"{identity.identity_id}/{image.image_id}"
        try:
            face = decode(image.data, source=name)
        except ImageError as error:
            raise UserError(f"{error}; run `raypipe embed` on the set, which marks it") from None
        found[image.image_id] = (
            face if face.shape[:2] == (_SIDE, _SIDE) else resize(face, (_SIDE, _SIDE))
        )
    return found


def label(identity: Identity, labeller: Labeller) -> list[Row]:
    """A row, as JSON, for every kept image: identity_id, image_id and `ATTRIBUTES`.

    Raises:
        UserError: where an image cannot be decoded, naming it.
    """
    rows = []
    for image_id, face in pixels(identity).items():
        seen = labeller.label(face)
        values = {name: getattr(seen, name) for name in ATTRIBUTES}
        known = {name: None if np.isnan(value) else value for name, value in values.items()}
        rows.append({"identity_id": identity.identity_id, "image_id": image_id, **known})
    return rows


def gather(
    identities: Iterable[Identity], labels: Iterable[Row], *, held_out: float, seed: int
) -> Examples:
    """The labelled faces of a set, by the order of the identities in their source.

    Args:
        labels: as `label` makes them; images without one are left out.
        held_out: share of the people to measure on; who, is drawn from the seed.

    Raises:
        UserError: where there is nobody to train on, or to measure on.
    """
    known = {
        (row["identity_id"], row["image_id"]): [
            np.nan if row[name] is None else row[name] for name in ATTRIBUTES
        ]
        for row in labels
    }
    rows = []
    for identity in identities:
        draw = generator(seed, identity.identity_id, stream="train_estimator").random()
        for place, (image_id, face) in enumerate(pixels(identity).items()):
            values = known.get((identity.identity_id, image_id))
            if values is not None:
                rows.append((identity.index, place, face, values, draw < held_out))
    rows.sort(key=lambda row: row[:2])
    if len({row[4] for row in rows}) != 2:
        raise UserError(
            f"train_estimator: of {len(rows)} faces, none is left to train on or to measure on; "
            "take a set of more people"
        )
    return Examples(
        images=np.stack([row[2] for row in rows]),
        values=np.array([row[3] for row in rows], np.float32),
        held_out=np.array([row[4] for row in rows]),
    )


def _to_network(images: np.ndarray) -> Tensor:
    """uint8 (N, 112, 112, 3) to float32 (N, 3, 112, 112) in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _vary(images: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mirrors half of the images, and gives each its own contrast, brightness and noise."""
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    values = torch.where(
        mirrored[:, None],
        values * torch.tensor([-1 if n == "yaw" else 1 for n in ATTRIBUTES]),
        values,
    )
    one, spread = (len(images), 1, 1, 1), 2 * torch.rand(3, len(images), 1, 1, 1) - 1
    images = images * (1 + _CONTRAST * spread[0]) + _BRIGHTNESS * spread[1]
    noise = _NOISE * torch.rand(one) * torch.randn_like(images)
    return (images + noise).clamp(-1, 1), values


def train(
    examples: Examples,
    config: EstimatorConfig,
    seed: int,
    on_step: Callable[[int, list[float]], None],
) -> tuple[FaceAttributes, list[float]]:
    """Trains on the people who are not held out.

    Args:
        on_step: called with the images done and the losses of the epochs done.

    Returns:
        The network in inference mode, and the mean loss of every epoch (smooth L1 of standardised
        attributes, those that are known).
    """
    torch.manual_seed(torch_seed(seed, "train_estimator"))
    network = FaceAttributes()
    images, values = (x[~examples.held_out] for x in (examples.images, examples.values))
    mirror = np.array([name != "yaw" for name in ATTRIBUTES])
    network.mean.copy_(torch.from_numpy(np.nanmean(values, axis=0) * mirror))
    network.scale.copy_(torch.from_numpy(np.nanstd(values, axis=0)))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=config.lr, weight_decay=config.weight_decay
    )
    steps = config.epochs * -(-len(images) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[float] = []
    done = 0
    for _ in range(config.epochs):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(config.batch_size):
            faces, wanted = _vary(
                _to_network(images[chosen.numpy()]), torch.from_numpy(values[chosen.numpy()])
            )
            known = ~wanted.isnan()
            made = network.standardised(faces)
            loss = F.smooth_l1_loss(made[known], ((wanted - network.mean) / network.scale)[known])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
            done += len(chosen)
            on_step(done, losses)
        losses.append(total / len(images))
    return network.eval(), losses


@torch.inference_mode()
def measure(network: FaceAttributes, examples: Examples) -> dict[str, dict[str, float]]:
    """How well the attributes of people who were held out are told.

    Returns:
        For each attribute: images, correlation, mean_absolute_error, deviation (mean absolute
        deviation of the labels from their mean, for comparison).
    """
    images, values = (x[examples.held_out] for x in (examples.images, examples.values))
    made = np.concatenate(
        [
            network(_to_network(images[first : first + _BATCH])).numpy()
            for first in range(0, len(images), _BATCH)
        ]
    )
    result = {}
    for k, name in enumerate(ATTRIBUTES):
        known = ~np.isnan(values[:, k])
        told, true = made[known, k].astype(np.float64), values[known, k].astype(np.float64)
        result[name] = {
            "images": int(known.sum()),
            "correlation": float(np.corrcoef(told, true)[0, 1]),
            "mean_absolute_error": float(np.abs(told - true).mean()),
            "deviation": float(np.abs(true - true.mean()).mean()),
        }
    return result
