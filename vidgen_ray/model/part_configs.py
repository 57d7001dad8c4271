"""What the JSON files of a checkpoint folder say, and whether its parts belong together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field, PositiveInt, ValidationError

from vidgen_ray.config import describe
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.weights import read_json

_CLASSES = {
    "transformer": {"CogVideoXTransformer3DModel"},
    "vae": {"AutoencoderKLCogVideoX"},
    "text_encoder": {"T5EncoderModel"},
    "scheduler": {"CogVideoXDPMScheduler", "CogVideoXDDIMScheduler"},
    "tokenizer": {"T5Tokenizer", "T5TokenizerFast"},
}
_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")

_T = TypeVar("_T", bound=BaseModel)


class TransformerConfig(BaseModel):
    """Fields of `transformer/config.json`, with the defaults of diffusers.

    `sample_height` and `sample_width` are in latent pixels.
    """

    in_channels: PositiveInt = 16
    out_channels: PositiveInt | None = 16
    sample_frames: PositiveInt = 49
    sample_height: PositiveInt = 60
    sample_width: PositiveInt = 90
    text_embed_dim: PositiveInt = 4096
    max_text_seq_length: PositiveInt = 226
    use_learned_positional_embeddings: bool = False


class VaeConfig(BaseModel):
    """Fields of `vae/config.json`, with the defaults of diffusers."""

    latent_channels: PositiveInt = 16
    scaling_factor: float = Field(1.15258426, gt=0, allow_inf_nan=False)
    invert_scale_latents: bool = False


class TextEncoderConfig(BaseModel):
    """Fields of `text_encoder/config.json`, with the defaults of transformers."""

    d_model: PositiveInt = 512
    vocab_size: PositiveInt = 32128


@dataclass(frozen=True)
class PartConfigs:
    """The configurations of the parts that have weights."""

    transformer: TransformerConfig
    vae: VaeConfig
    text_encoder: TextEncoderConfig


def read_part_configs(folder: Path) -> PartConfigs:
    """The configurations in a checkpoint folder.

    Raises ConfigError where a file is missing or broken, or of another model.
    """
    index = read_json(folder / "model_index.json")
    wanted = "CogVideoXImageToVideoPipeline"
    if index.get("_class_name") != wanted:
        raise ConfigError(
            f"model.checkpoint: {folder} must hold a {wanted}, got {index.get('_class_name')}; "
            "name an image-to-video CogVideoX checkpoint"
        )
    for part, names in _CLASSES.items():
        named = index.get(part)
        found = named[1] if isinstance(named, list) and len(named) == 2 else named
        if found not in names:
            raise _wrong(folder / "model_index.json", part, names, found)
    configs = PartConfigs(
        _read(folder, "transformer", TransformerConfig),
        _read(folder, "vae", VaeConfig),
        _read(folder, "text_encoder", TextEncoderConfig),
    )
    _read_class(folder / "scheduler" / "scheduler_config.json", "scheduler")
    _check_tokenizer_files(folder / "tokenizer")
    _check_fit(folder, configs)
    return configs


def _read(folder: Path, part: str, schema: type[_T]) -> _T:
    path = folder / part / "config.json"
    content = _read_class(path, part)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"model.checkpoint: {path}: {'; '.join(describe(error))}") from None


def _read_class(path: Path, part: str) -> dict[str, Any]:
    content = read_json(path)
    architectures = content.get("architectures") or [None]
    name = content.get("_class_name") or architectures[0]
    if name is not None and name not in _CLASSES[part]:
        raise _wrong(path, part, _CLASSES[part], name)
    return content


def _wrong(path: Path, part: str, names: set[str], found: Any) -> ConfigError:
    return ConfigError(
        f"model.checkpoint: {path}: the {part} must be a {' or '.join(sorted(names))}, got "
        f"{found!r}; take the {part} of a CogVideoX image-to-video checkpoint"
    )


def _check_tokenizer_files(folder: Path) -> None:
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(
            f"model.checkpoint: {folder} holds neither {' nor '.join(_TOKENIZER_FILES)}; "
            "download or copy the folder again"
        )
    for path in sorted(folder.glob("*.json")):
        if path.name != "tokenizer.json":  # large; the tokenizer itself reads it
            read_json(path)


def _check_fit(folder: Path, configs: PartConfigs) -> None:
    """Each part's sizes must be those that the others feed it or expect of it."""
    transformer, channels = configs.transformer, configs.vae.latent_channels
    rules = {
        "in_channels": (
            transformer.in_channels,
            2 * channels,
            "twice the VAE's latent_channels for image-to-video",
        ),
        "out_channels": (
            transformer.out_channels or transformer.in_channels,
            channels,
            "the VAE's latent_channels",
        ),
        "text_embed_dim": (
            transformer.text_embed_dim,
            configs.text_encoder.d_model,
            "the text encoder's d_model",
        ),
    }
    for field, (value, wanted, meaning) in rules.items():
        if value != wanted:
            raise ConfigError(
                f"model.checkpoint: {folder / 'transformer' / 'config.json'}: {field} must be "
                f"{wanted}, {meaning}, got {value}; take all parts from one checkpoint"
            )
