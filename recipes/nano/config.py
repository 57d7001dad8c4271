"""Load and validate `config.yaml`, the configuration of the recipe."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

DEFAULT = Path(__file__).with_name("config.yaml")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PhotoConfig(_Section):
    """Crops of photos, uint8 [3, height, width], that fill the first frame of a clip."""

    height: int = Field(gt=0)
    width: int = Field(gt=0)
    crops_per_photo: int = Field(ge=1)
    collages_per_crop: float = Field(ge=0)


class TextConfig(_Section):
    """The vocabulary size, and the number of prompts it is learned from."""

    vocab_size: int = Field(gt=200)
    num_prompts: int = Field(gt=0)


class VaeConfig(_Section):
    """Training of the VAE. Batch sizes are per rank."""

    architecture: dict[str, Any]
    kept_channels: int = Field(gt=0)
    still_steps: int = Field(ge=0)
    num_steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    muon_learning_rate: float = Field(ge=0)
    still_batch: int = Field(gt=0)
    clip_batch: int = Field(gt=0)
    long_clip_batch: int = Field(gt=0)
    warm_up_steps: int = Field(ge=0)
    whole_frames_from: float = Field(ge=0, le=1)
    texture_from: float = Field(ge=0, le=1)
    texture: float = Field(ge=0)
    first_frame_error: float = Field(ge=0)


class TransformerConfig(_Section):
    """Training of the transformer and the text encoder. Batch sizes are per rank."""

    architecture: dict[str, Any]
    text_encoder: dict[str, Any]
    num_steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    muon_learning_rate: float = Field(gt=0)
    warm_up_steps: int = Field(ge=0)
    constant_share: float = Field(ge=0, le=1)
    prompt_dropout: float = Field(ge=0, lt=1)
    first_frame_weight: float = Field(gt=0)
    guidance_scale: float = Field(ge=1)
    clips_at_start: int = Field(gt=0)
    clips_kept: int = Field(gt=0)
    steps_per_render: int = Field(gt=0)


class DecoderConfig(_Section):
    """Fitting the decoder to generated latents. Batch sizes are per rank."""

    clips: int = Field(gt=0)
    num_inference_steps: int = Field(gt=0)
    num_steps: int = Field(gt=0)
    batch: int = Field(gt=0)
    learning_rate: float = Field(gt=0)
    warm_up_steps: int = Field(ge=0)
    texture: float = Field(ge=0)
    share_of_way: float = Field(gt=0, le=1)


class RecipeConfig(_Section):
    """The whole recipe."""

    seed: int
    height: int = Field(gt=0, multiple_of=16)
    width: int = Field(gt=0, multiple_of=16)
    num_frames: int = Field(gt=1)
    photos: PhotoConfig
    text: TextConfig
    vae: VaeConfig
    transformer: TransformerConfig
    decoder: DecoderConfig


def load_recipe(path: Path = DEFAULT) -> RecipeConfig:
    """Read and validate `path`. Raises pydantic.ValidationError."""
    return RecipeConfig.model_validate(yaml.safe_load(path.read_text()))
