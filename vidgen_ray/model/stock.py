"""Plain diffusers calls, as a user would write them: the baseline that profiles are compared to."""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXDPMScheduler, DiffusionPipeline
from PIL import Image

from vidgen_ray.addresses import one_line
from vidgen_ray.config import Dtype
from vidgen_ray.errors import ConfigError, EngineError
from vidgen_ray.model.checkpoint import Checkpoint, load_pipeline, quiet
from vidgen_ray.schema import GenerationRequest


@dataclass(frozen=True)
class StockClip:
    """Frames as uint8 [F, H, W, 3], and the final latents if the pipeline exposes them."""

    frames: np.ndarray
    latents: torch.Tensor | None


def load_stock(checkpoint: Checkpoint, dtype: Dtype, device: torch.device) -> DiffusionPipeline:
    """The checkpoint's pipeline on `device`, with the scheduler that its authors recommend."""
    pipeline = load_pipeline(checkpoint, dtype, device)
    pipeline.scheduler = CogVideoXDPMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    return pipeline.to(device)


def load_alternative(name: str, dtype: Dtype, device: torch.device) -> DiffusionPipeline:
    """Any video pipeline of diffusers, by folder or hub id, unchanged. Raises ConfigError."""
    quiet()
    try:
        pipeline = DiffusionPipeline.from_pretrained(name, dtype=getattr(torch, dtype))
    except Exception as error:  # loaders raise anything from KeyError to SafetensorError
        raise ConfigError(
            f"alternative: {name} cannot be loaded: {one_line(error)}; "
            "name a diffusers pipeline by its folder or hub id"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def call_stock(
    pipeline: DiffusionPipeline, request: GenerationRequest, pixels: np.ndarray
) -> StockClip:
    """Generate one clip. Noise comes from a CPU generator, as in the engine.

    `pixels` is the conditioning image, uint8 [H, W, 3]; text-to-video pipelines ignore it. Raises
    EngineError if the pipeline returns no frames.
    """
    accepted = inspect.signature(type(pipeline).__call__).parameters
    last_tensors: dict[str, torch.Tensor] = {}

    def after_step(_pipeline: Any, _step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        last_tensors.update(tensors)
        return tensors

    fields = {
        name: getattr(request, name)
        for name in ("prompt", "negative_prompt", "num_frames", "height", "width")
    }
    arguments = {
        **fields,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "image": Image.fromarray(pixels),
        "generator": torch.Generator().manual_seed(request.seed),
        "callback_on_step_end": after_step,
        "output_type": "pil",
    }
    result = pipeline(**{name: value for name, value in arguments.items() if name in accepted})
    if not hasattr(result, "frames"):
        raise EngineError(f"{type(pipeline).__name__} returns no frames; name a video pipeline")
    frames = np.stack([np.asarray(frame) for frame in result.frames[0]])
    return StockClip(frames, last_tensors.get("latents"))
