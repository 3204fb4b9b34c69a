"""Pictures of prompts, drawn with a pipeline of diffusers."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raypipe.config.diffusion import DiffusionConfig
from raypipe.diffusion_files import FIELD
from raypipe.diffusion_loading import load, load_second_pass
from raypipe.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture.

    Attributes:
        rgb: uint8 (height, width, 3).
        blanked: whether the pipeline's safety checker made it black.
    """

    rgb: np.ndarray
    blanked: bool


class _Painter:
    """Calls a pipeline with batches of one size.

    Every picture has a random generator of its own, on the CPU, so its noise depends on its seed
    alone. A batch always has `batch_size` slots, and the last prompt fills those that are left, so
    the kernels, and with them the rounding, are the same whatever else is drawn. Pipelines that pad
    prompts to the longest of a batch, unlike those of Stable Diffusion, round by their neighbours.
    """

    def __init__(
        self, pipeline: Any, *, steps: int, guidance: float, config: DiffusionConfig
    ) -> None:
        self._pipeline = pipeline
        self._batch_size = config.batch_size
        known = inspect.signature(pipeline.__call__).parameters
        options = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "width": config.width,
            "height": config.height,
            "output_type": "pil",
        }
        self._options = {name: value for name, value in options.items() if name in known}
        denoiser = getattr(pipeline, "unet", None)
        # Models that were distilled with guidance take it as an input.
        distilled = denoiser is not None and denoiser.config.get("time_cond_proj_dim") is not None
        self._guided = guidance > 1 and not distilled
        self._negated = self._guided and "negative_prompt" in known

    def paint(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        seeds: Sequence[int],
        faces: torch.Tensor | None = None,
    ) -> list[Drawn]:
        """One picture for each prompt; `faces`, float32 (N, D), for the adapter of a pipeline."""
        found: list[Drawn] = []
        for start in range(0, len(prompts), self._batch_size):
            slots = range(start, start + self._batch_size)
            picked = [min(slot, len(prompts) - 1) for slot in slots]
            options: dict[str, Any] = dict(self._options)
            if self._negated:
                options["negative_prompt"] = [negatives[k] for k in picked]
            if faces is not None:
                options["ip_adapter_image_embeds"] = [self._embeds(faces[picked])]
            with torch.inference_mode():
                made = self._pipeline(
                    prompt=[prompts[k] for k in picked],
                    generator=[torch.Generator().manual_seed(seeds[k]) for k in picked],
                    **options,
                )
            blanked = getattr(made, "nsfw_content_detected", None) or [False] * len(picked)
            found += [
                Drawn(rgb=np.array(image.convert("RGB")), blanked=bool(black))
                for image, black in zip(made.images, blanked, strict=True)
            ]
        return found[: len(prompts)]

    def _embeds(self, faces: torch.Tensor) -> torch.Tensor:
        """Embeddings as diffusers takes them, (n, 1, D), or (2 n, 1, D) with those of nobody."""
        embeds = faces[:, None].to(self._pipeline.unet.dtype)
        return torch.cat([torch.zeros_like(embeds), embeds]) if self._guided else embeds


class Diffusion:
    """Draws pictures of prompts. A picture depends on its prompts, its seed and the batch size.

    Raises:
        UserError: where the pipeline cannot be loaded.
    """

    def __init__(self, config: DiffusionConfig, device: torch.device) -> None:
        pipeline = load(config, device)
        self._painter = _Painter(
            pipeline, steps=config.steps, guidance=config.guidance, config=config
        )

    def draw(
        self, prompts: Sequence[str], negatives: Sequence[str], seeds: Sequence[int]
    ) -> list[Drawn]:
        """One picture for each prompt.

        Args:
            prompts: what they show.
            negatives: what they are not to show, in step; without guidance of no effect.
            seeds: in [0, 2⁶³), in step.
        """
        return self._painter.paint(prompts, negatives, seeds)


class SecondPass:
    """Draws faces again at other poses, with an IP-Adapter FaceID (Ye et al., "IP-Adapter", 2023).

    Attributes:
        dimension: numbers of an embedding.

    Raises:
        UserError: where the pipeline or the adapter cannot be loaded.
    """

    def __init__(self, config: DiffusionConfig, device: torch.device) -> None:
        settings = config.second_pass
        assert settings is not None
        pipeline, self.dimension = load_second_pass(config, device)
        self._painter = _Painter(
            pipeline, steps=settings.steps, guidance=settings.guidance, config=config
        )

    def reposed(
        self,
        prompts: Sequence[str],
        negatives: Sequence[str],
        seeds: Sequence[int],
        faces: np.ndarray,
    ) -> list[Drawn]:
        """One picture for each prompt, of the person of an embedding.

        Args:
            prompts: what they show.
            negatives: what they are not to show, in step; without guidance of no effect.
            seeds: in [0, 2⁶³), in step.
            faces: float32 (N, dimension), in step; raw: they are scaled to length 1, as the
                published adapters were trained.

        Raises:
            UserError: where the embeddings have another length.
        """
        if faces.shape[1] != self.dimension:
            raise UserError(
                f"{FIELD}.second_pass.adapter: the adapter takes embeddings of {self.dimension} "
                f"numbers and the embedder makes {faces.shape[1]}; name the embedder that the "
                "adapter was trained with"
            )
        lengths = np.linalg.norm(faces, axis=1, keepdims=True)
        return self._painter.paint(prompts, negatives, seeds, torch.from_numpy(faces / lengths))
