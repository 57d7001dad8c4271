"""Checkpoints: find a diffusers folder or hub id, read its facts, load it as a pipeline.

Torch, diffusers and transformers take seconds to import, so they are imported where weights load;
checking requests does without them.
"""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tokenizers import Tokenizer

from vidgen_ray.addresses import one_line
from vidgen_ray.config import Dtype, ModelConfig
from vidgen_ray.errors import ConfigError, RequestError
from vidgen_ray.model.hub import find_snapshot
from vidgen_ray.model.part_configs import PartConfigs, read_part_configs
from vidgen_ray.model.weights import (
    CARD_NAME,
    INITIALIZED_ON_LOAD,
    PARTS,
    WeightFiles,
    find_weights,
    has_weights,
    hash_part,
    hash_strings,
    read_json,
)
from vidgen_ray.schema import GenerationRequest

if TYPE_CHECKING:
    import torch
    from diffusers import CogVideoXImageToVideoPipeline

    Pipeline: TypeAlias = CogVideoXImageToVideoPipeline

logger = logging.getLogger(__name__)

EMBEDDED_FOLDER = Path(__file__).parent / "nano"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SPATIAL_STRIDE = 8
# The VAE packs four frames into one latent and decodes latents in pairs after the first.
_FRAME_STEP = 8


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on this machine, and what its small files say.

    `folder` may lack the weights when it was opened without them. With `initialized_on_load` it
    has none: they are drawn from a seed.
    """

    source: str
    folder: Path
    configs: PartConfigs
    trained: bool
    hub_commit: str | None
    initialized_on_load: bool = False

    @property
    def num_frames(self) -> int:
        """Frames of the clips that the model was trained for."""
        return self.configs.transformer.sample_frames

    @property
    def height(self) -> int:
        """Height in pixels of the clips that the model was trained for."""
        return self.configs.transformer.sample_height * _SPATIAL_STRIDE

    @property
    def width(self) -> int:
        """Width in pixels of the clips that the model was trained for."""
        return self.configs.transformer.sample_width * _SPATIAL_STRIDE

    @property
    def has_fixed_shape(self) -> bool:
        """Whether positions were learned for one shape; else `num_frames`, `height` and `width`
        are the size of a table that is cut, as for CogVideoX 1.5."""
        return self.configs.transformer.use_learned_positional_embeddings

    @property
    def max_text_tokens(self) -> int:
        """The most tokens of a prompt that the model reads."""
        return self.configs.transformer.max_text_seq_length

    @cached_property
    def fingerprint(self) -> str:
        """`repo@commit` for a hub id; for a folder, SHA-256 over every file that is loaded."""
        if self.hub_commit:
            return f"{self.source}@{self.hub_commit}"
        names = (*PARTS, "scheduler", "tokenizer")
        digests = [self.part_fingerprint(name) for name in names]
        if self.initialized_on_load:  # the card holds the seed
            digests.append((self.folder / CARD_NAME).read_text())
        return f"sha256:{hash_strings(digests)}"

    def part_fingerprint(self, part: str) -> str:
        """The same for one folder of the checkpoint, such as `vae`."""
        if self.hub_commit:
            return f"{self.source}@{self.hub_commit}/{part}"
        weights = self.weights.get(part)
        return f"sha256:{hash_part(self.folder, part, weights)}"

    @cached_property
    def weights(self) -> Mapping[str, WeightFiles]:
        """The weight files of each part, all there and whole. Raises ConfigError."""
        if self.initialized_on_load:
            return {}
        return {part: find_weights(self.folder, part) for part in PARTS}

    @cached_property
    def num_parameters(self) -> dict[str, int]:
        """Parameters of each part, read from the headers of its safetensors files."""
        if self.initialized_on_load:
            from vidgen_ray.model.untrained import count_parameters

            return count_parameters(self.folder)
        return {part: files.num_parameters() for part, files in self.weights.items()}

    def read_weight(self, part: str, name: str) -> "torch.Tensor":
        """One tensor of the files that are loaded for a part. Raises ConfigError."""
        files = self.weights.get(part)
        tensor = files.read(name) if files else None
        if tensor is None:
            raise ConfigError(
                f"model.checkpoint: {self.folder / part} holds no {name}; "
                "name a checkpoint with weights"
            )
        return tensor

    @cached_property
    def _count_tokens(self) -> Callable[[str], int]:
        """How many tokens a text has, with the one that ends it. Raises ConfigError."""
        folder = self.folder / "tokenizer"
        file = folder / "tokenizer.json"
        if not file.is_file():
            converted = load_tokenizer(self)
            return lambda text: len(converted(text).input_ids)
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the bindings raise plain Exception
            raise _cannot_load(folder, error) from error
        tokenizer.no_truncation()  # a file may ask for it
        tokenizer.no_padding()
        _check_vocabulary(self, tokenizer.get_vocab_size())
        return lambda text: len(tokenizer.encode(text).ids)

    def check_request(self, request: GenerationRequest) -> None:
        """Refuse what this checkpoint was not trained for. Raises RequestError."""
        self._check_shape(request)
        for field in ("prompt", "negative_prompt"):
            num_tokens = self._count_tokens(getattr(request, field))
            if num_tokens > self.max_text_tokens:
                raise RequestError(
                    f"{field}: must be at most {self.max_text_tokens} tokens, got {num_tokens}; "
                    "shorten it, since the model would not read the rest"
                )

    def _check_shape(self, request: GenerationRequest) -> None:
        trained = {"num_frames": self.num_frames, "height": self.height, "width": self.width}
        for field, value in trained.items() if self.has_fixed_shape else ():
            if getattr(request, field) != value and not request.allow_untrained_shape:
                raise RequestError(
                    f"{field}: must be {value} for {self.source}, got {getattr(request, field)}; "
                    "use that, or set allow_untrained_shape: true and expect a poorer clip"
                )
        if (request.num_frames - 1) % _FRAME_STEP:
            raise RequestError(
                f"num_frames: must be one more than a multiple of {_FRAME_STEP}, got "
                f"{request.num_frames}; the nearest is {_nearest_frames(request.num_frames)}"
            )
        for field in ("height", "width"):
            if getattr(request, field) % (2 * _SPATIAL_STRIDE):
                raise RequestError(
                    f"{field}: must be a multiple of {2 * _SPATIAL_STRIDE}, "
                    f"got {getattr(request, field)}"
                )


def open_checkpoint(
    model: ModelConfig, *, weights: bool = True, local_files_only: bool = False
) -> Checkpoint:
    """Find the checkpoint of `model`, read its facts, and see that every file is there.

    A hub id is downloaded into the hub's cache; `weights=False` takes its small files alone, enough
    to check requests on a machine that will not run the model. Raises ConfigError.
    """
    if model.checkpoint == "embedded":
        return _open(model.checkpoint, EMBEDDED_FOLDER, None, weights)
    folder = Path(model.checkpoint).expanduser()
    if folder.is_dir():
        return _open(model.checkpoint, folder.resolve(), None, weights)
    if not _HUB_ID.fullmatch(model.checkpoint):
        raise ConfigError(
            f"model.checkpoint: must be `embedded`, an existing folder or a hub id such as "
            f"zai-org/CogVideoX-5b-I2V, got {model.checkpoint!r}"
        )

    def is_complete(snapshot: Path) -> bool:
        try:
            _open(model.checkpoint, snapshot, snapshot.name, weights)
        except ConfigError:
            return False
        return True

    snapshot = find_snapshot(
        model, weights=weights, local_files_only=local_files_only, is_complete=is_complete
    )
    return _open(model.checkpoint, snapshot, snapshot.name, weights)


def load_pipeline(
    checkpoint: Checkpoint, dtype: Dtype, device: "torch.device | None" = None
) -> "Pipeline":
    """The checkpoint as a diffusers pipeline on the CPU, in `dtype`. Raises ConfigError.

    Weights that are initialized on load (`make_checkpoint(weights=False)`) are made on `device`.
    """
    import torch

    quiet()
    if checkpoint.initialized_on_load:
        from vidgen_ray.model.untrained import make_weights

        pipeline = make_weights(
            checkpoint.folder, dtype=getattr(torch, dtype), device=str(device or "cpu")
        )
    else:
        parts = {part: load_part(checkpoint, part, dtype) for part in PARTS}
        pipeline = assemble_pipeline(checkpoint, **parts, tokenizer=load_tokenizer(checkpoint))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_part(checkpoint: Checkpoint, part: str, dtype: Dtype) -> Any:
    """One of `PARTS` with its weights on the CPU, in `dtype`. Raises ConfigError.

    Every tensor of the model must come from the files and every tensor of the files go into the
    model: the libraries would fill the former with random numbers and drop the latter silently.
    """
    import torch
    from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
    from transformers import T5EncoderModel

    quiet()
    classes = {
        "transformer": CogVideoXTransformer3DModel,
        "vae": AutoencoderKLCogVideoX,
        "text_encoder": T5EncoderModel,
    }
    folder = checkpoint.folder / part
    files = find_weights(checkpoint.folder, part)
    try:
        module, info = classes[part].from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            variant=files.variant,
            local_files_only=True,
            use_safetensors=True,  # a pickle would run whatever is in it
            output_loading_info=True,
        )
    except Exception as error:  # the loaders raise anything from KeyError to SafetensorError
        raise _cannot_load(folder, error) from error
    for kind in ("missing", "unexpected", "mismatched"):
        if names := info[f"{kind}_keys"]:
            raise ConfigError(
                f"model.checkpoint: {folder}: {len(names)} {kind} tensors, such as "
                f"{sorted(map(str, names))[0]}: the weights do not fit config.json; download or "
                "copy the folder again"
            )
    return module


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer of the text encoder. Raises ConfigError."""
    from transformers import T5Tokenizer

    quiet()
    folder = checkpoint.folder / "tokenizer"
    try:
        tokenizer = T5Tokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise _cannot_load(folder, error) from error
    if tokenizer.pad_token is None:
        raise ConfigError(f"model.checkpoint: {folder} has no pad token; take that of the model")
    _check_vocabulary(checkpoint, len(tokenizer))
    return tokenizer


def assemble_pipeline(checkpoint: Checkpoint, **parts: Any) -> "Pipeline":
    """The pipeline of `parts`, some of which may be None, with the checkpoint's scheduler.

    Raises ConfigError.
    """
    from diffusers import CogVideoXImageToVideoPipeline

    try:
        return CogVideoXImageToVideoPipeline.from_pretrained(
            checkpoint.folder, **parts, local_files_only=True
        )
    except Exception as error:
        raise _cannot_load(checkpoint.folder, error) from error


def is_local(model: ModelConfig) -> bool:
    """Whether the checkpoint is a folder or ships with the package, and not a hub id."""
    return model.checkpoint == "embedded" or Path(model.checkpoint).expanduser().is_dir()


def why_not_cached(model: ModelConfig) -> str | None:
    """What is missing of the checkpoint on this machine; None where it is complete."""
    try:
        open_checkpoint(model, local_files_only=True)
    except ConfigError as error:
        return str(error)
    return None


def quiet() -> None:
    """Keep the libraries' progress bars and notices off the terminal; errors still appear."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _open(source: str, folder: Path, commit: str | None, weights: bool) -> Checkpoint:
    card = read_json(folder / CARD_NAME) if (folder / CARD_NAME).is_file() else {}
    checkpoint = Checkpoint(
        source=source,
        folder=folder,
        configs=read_part_configs(folder),
        trained=card.get("trained", True),
        hub_commit=commit,
        initialized_on_load=card.get("weights") == INITIALIZED_ON_LOAD,
    )
    # A folder without any weights may lie on a head that loads none; a broken one is refused there.
    partial = commit is None and any(has_weights(folder, part) for part in PARTS)
    if weights or partial:
        for files in checkpoint.weights.values():
            if files.unused:
                _warn_of_unused(files.unused)
    return checkpoint


@cache  # once a process: a checkpoint is opened several times
def _warn_of_unused(files: tuple[Path, ...]) -> None:
    names = ", ".join(path.name for path in files)
    logger.warning(
        "model.checkpoint: %s also holds %s, not loaded; delete the stale files",
        *(files[0].parent, names),
    )


def _check_vocabulary(checkpoint: Checkpoint, num_tokens: int) -> None:
    size = checkpoint.configs.text_encoder.vocab_size
    if num_tokens > size:
        raise ConfigError(
            f"model.checkpoint: {checkpoint.folder / 'tokenizer'} has {num_tokens} tokens, over "
            f"the text encoder's vocab_size of {size}; take both from one checkpoint"
        )


def _cannot_load(folder: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"model.checkpoint: {folder} cannot be loaded: {one_line(error)[:500]}; download or copy "
        "the folder again"
    )


def _nearest_frames(num_frames: int) -> int:
    return round((num_frames - 1) / _FRAME_STEP) * _FRAME_STEP + 1
