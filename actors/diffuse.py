"""The actors that draw pictures of people."""

from typing import Any

import numpy as np
import torch

from raypipe.config.diffusion import DiffusionConfig
from raypipe.diffusion import Diffusion, Drawn, SecondPass
from raypipe.errors import UserError
from raypipe.identities import Identity, Image
from raypipe.images import encode_png
from raypipe.prompts import Grammar, draw, load_grammar, say
from raypipe.prompts.schema import hint
from raypipe.seeding import torch_seed

GENERATOR = "diffusion"
_BLANKED = "seed:safety_checker"


class DiffuseActor:
    """Draws the next picture, "seed-NN", of every identity that has none which passed.

    Args:
        config: fields of a `DiffusionConfig`.
        weights: hex SHA-256 of the pipeline, as `raypipe.diffusion_files.digest` gives it.
        seed: of the run.
        threads: CPU threads of the process.
        device: where the pipeline runs; none: a GPU where this process sees one.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any],
        weights: str,
        seed: int,
        threads: int = 1,
        device: str | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self._diffusion = Diffusion(DiffusionConfig(**config), _place(device))
        self._weights = weights
        self._seed = seed

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        wanted = [
            (identity, identity.seed)
            for identity in identities
            if identity.rejected is None and identity.seed is not None and not identity.kept
        ]
        seeds = [
            torch_seed(self._seed, identity.identity_id, len(evidence.tries), GENERATOR)
            for identity, evidence in wanted
        ]
        prompts = [evidence.prompt for _, evidence in wanted]
        drawn = self._diffusion.draw(prompts, [found.negative for _, found in wanted], seeds)
        for (identity, evidence), seed, picture in zip(wanted, seeds, drawn, strict=True):
            name = f"seed-{len(evidence.tries):02d}"
            identity.images.append(_image(name, picture, self._weights, evidence.prompt, seed))
        return identities


class SecondPassActor:
    """Draws the newest reference of an identity again, "seed-NN-pose", at another pose.

    What is drawn anew of its prompt depends on seed, identity and try, and is balanced over
    identities as the grammar says.

    Args:
        config: fields of a `DiffusionConfig` with a second pass.
        grammar: path of the grammar that the prompts are of; none: the one that ships.
        weights: hex SHA-256 of pipeline and adapter.
        seed: of the run.
        threads: CPU threads of the process.
        device: where the pipeline runs; none: a GPU where this process sees one.

    Raises:
        UserError: where the grammar has no attribute that is to be drawn anew.
    """

    def __init__(
        self,
        *,
        config: dict[str, Any],
        grammar: str | None,
        weights: str,
        seed: int,
        threads: int = 1,
        device: str | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        settings = DiffusionConfig(**config)
        assert settings.second_pass is not None
        self._redraw = settings.second_pass.redraw
        self._grammar = load_grammar(grammar)
        _check(self._redraw, self._grammar)
        self._second = SecondPass(settings, _place(device))
        self._weights = weights
        self._seed = seed

    def __call__(self, identities: list[Identity]) -> list[Identity]:
        wanted = [
            (identity, identity.seed, identity.images[-1])
            for identity in identities
            if identity.rejected is None and identity.seed is not None and _passed(identity)
        ]
        if not wanted:
            return identities
        numbers = [int(first.image_id.removeprefix("seed-")) for _, _, first in wanted]
        seeds, prompts = [], []
        for (identity, evidence, _), number in zip(wanted, numbers, strict=True):
            seeds.append(torch_seed(self._seed, identity.identity_id, number, "second_pass"))
            prompts.append(self._prompt(identity.index, evidence.attributes, number))
        negatives = [evidence.negative for _, evidence, _ in wanted]
        faces = np.stack([np.asarray(first.embedding) for _, _, first in wanted])
        drawn = self._second.reposed(prompts, negatives, seeds, faces)
        for (identity, _, first), prompt, seed, picture in zip(
            wanted, prompts, seeds, drawn, strict=True
        ):
            made = _image(f"{first.image_id}-pose", picture, self._weights, prompt, seed)
            made.parent = first.image_id
            identity.images.append(made)
        return identities

    def _prompt(self, index: int, attributes: dict[str, str], number: int) -> str:
        seed = torch_seed(self._seed, "", number, "second_pass.prompts")
        new = draw(self._grammar, seed, index).attributes
        return say(self._grammar, {**attributes, **{name: new[name] for name in self._redraw}})


def _place(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _passed(identity: Identity) -> bool:
    """Whether the newest picture is a reference that was not drawn again."""
    newest = identity.images[-1] if identity.images else None
    return (
        newest is not None
        and newest.rejected is None
        and newest.embedding is not None
        and newest.parent is None
    )


def _check(redraw: list[str], grammar: Grammar) -> None:
    for name in redraw:
        if name not in grammar.attributes:
            raise UserError(
                f"seeds.diffusion.second_pass.redraw: {grammar.path} has no attribute {name!r}; "
                f"{hint(name, list(grammar.attributes))}"
            )


def _image(name: str, drawn: Drawn, weights: str, prompt: str, seed: int) -> Image:
    return Image(
        image_id=name,
        data=encode_png(drawn.rgb),
        source=GENERATOR,
        generator=GENERATOR,
        weights=weights,
        prompt=prompt,
        seed=seed,
        rejected=_BLANKED if drawn.blanked else None,
    )
