"""Checkpoints: find a diffusers folder or hub id, read its facts, load it as a pipeline.

Torch, diffusers and transformers take seconds to import, so that they wait until weights load:
whoever only checks requests does without them.
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from tokenizers import Tokenizer

from vidgen_ray.config import Dtype, ModelConfig
from vidgen_ray.errors import ConfigError, RequestError
from vidgen_ray.schema import GenerationRequest

if TYPE_CHECKING:
    import torch
    from diffusers import CogVideoXImageToVideoPipeline

    Pipeline: TypeAlias = CogVideoXImageToVideoPipeline

EMBEDDED_FOLDER = Path(__file__).parent / "nano"
CARD_NAME = "vidgen.json"
MADE_ON_LOAD = "made on load"
PARTS = ("transformer", "vae", "text_encoder")

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SPATIAL_STRIDE = 8
# The VAE packs four frames into one latent and decodes latents in pairs after the first.
_FRAME_STEP = 8


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on this machine, and what its small files say.

    `num_frames`, `height` and `width` are the one shape that its learned positions were made for.
    `folder` may lack the weights when it was opened without them.
    """

    source: str
    folder: Path
    num_frames: int
    height: int
    width: int
    trained: bool
    hub_commit: str | None
    made_on_load: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """`repo@commit` for a hub id; for a folder, SHA-256 over every file (cached on disk)."""
        if self.hub_commit:
            return f"{self.source}@{self.hub_commit}"
        return f"sha256:{_hash_folder(self.folder)}"

    def part_fingerprint(self, part: str) -> str:
        """The same for one folder of the checkpoint, such as `vae`."""
        if self.hub_commit:
            return f"{self.source}@{self.hub_commit}/{part}"
        return f"sha256:{_hash_folder(self.folder / part)}"

    @cached_property
    def num_parameters(self) -> dict[str, int]:
        """Parameters of each part, read from the headers of its safetensors files."""
        if self.made_on_load:
            from vidgen_ray.model.untrained import count_parameters

            return count_parameters(self.folder)
        return {part: _count_parameters(self.folder / part) for part in PARTS}

    def read_weight(self, part: str, name: str) -> "torch.Tensor":
        """One tensor of a part's safetensors files. Raises ConfigError."""
        for path in sorted((self.folder / part).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 (not a mapping)
                    tensor: torch.Tensor = file.get_tensor(name)
                    return tensor
        raise ConfigError(
            f"model.checkpoint: {self.folder / part} holds no {name}; "
            "name a checkpoint with weights"
        )

    @cached_property
    def _count_tokens(self) -> Callable[[str], int]:
        """How many tokens a text has, with the one that ends it."""
        file = self.folder / "tokenizer" / "tokenizer.json"
        if file.is_file():
            tokenizer = Tokenizer.from_file(str(file))
            tokenizer.no_truncation()  # a file may ask for it
            tokenizer.no_padding()
            return lambda text: len(tokenizer.encode(text).ids)
        from transformers import AutoTokenizer

        quiet()
        converted = AutoTokenizer.from_pretrained(self.folder / "tokenizer")
        return lambda text: len(converted(text).input_ids)

    @cached_property
    def _max_text_tokens(self) -> int:
        config = _read_json(self.folder / "transformer" / "config.json")
        return int(config.get("max_text_seq_length", 226))

    def check_request(self, request: GenerationRequest) -> None:
        """Refuse what this checkpoint was not trained for. Raises RequestError."""
        self._check_shape(request)
        for field in ("prompt", "negative_prompt"):
            num_tokens = self._count_tokens(getattr(request, field))
            if num_tokens > self._max_text_tokens:
                raise RequestError(
                    f"{field}: must be at most {self._max_text_tokens} tokens, got {num_tokens}; "
                    "shorten it, since the model would not read the rest"
                )

    def _check_shape(self, request: GenerationRequest) -> None:
        trained = {"num_frames": self.num_frames, "height": self.height, "width": self.width}
        for field, value in trained.items():
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


def open_checkpoint(model: ModelConfig, *, weights: bool = True) -> Checkpoint:
    """Find the checkpoint of `model` and read its facts.

    A hub id is downloaded into the hub's cache; `weights=False` takes its small files alone, enough
    to check requests on a machine that will not run the model. Raises ConfigError.
    """
    folder, commit = _locate(model, weights)
    index = _read_json(folder / "model_index.json")
    wanted = "CogVideoXImageToVideoPipeline"
    if index.get("_class_name") != wanted:
        raise ConfigError(
            f"model.checkpoint: {folder} must hold a {wanted}, got {index.get('_class_name')}; "
            "name an image-to-video CogVideoX checkpoint"
        )
    transformer = _read_json(folder / "transformer" / "config.json")
    card = _read_json(folder / CARD_NAME) if (folder / CARD_NAME).is_file() else {}
    return Checkpoint(
        source=model.checkpoint,
        folder=folder,
        num_frames=transformer["sample_frames"],
        height=transformer["sample_height"] * _SPATIAL_STRIDE,
        width=transformer["sample_width"] * _SPATIAL_STRIDE,
        trained=card.get("trained", True),
        hub_commit=commit,
        made_on_load=card.get("weights") == MADE_ON_LOAD,
    )


def load_pipeline(
    checkpoint: Checkpoint, dtype: Dtype, device: "torch.device | None" = None
) -> "Pipeline":
    """The checkpoint as a diffusers pipeline on the CPU, in `dtype`. Raises ConfigError.

    One whose weights are made on loading (`make_checkpoint(weights=False)`) is made on `device`.
    """
    import torch
    from diffusers import CogVideoXImageToVideoPipeline

    quiet()
    if checkpoint.made_on_load:
        from vidgen_ray.model.untrained import make_weights

        pipeline = make_weights(
            checkpoint.folder, dtype=getattr(torch, dtype), device=str(device or "cpu")
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline
    try:
        pipeline = CogVideoXImageToVideoPipeline.from_pretrained(
            checkpoint.folder,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,  # a pickle would run whatever is in it
        )
    except Exception as error:  # the loaders raise anything from KeyError to SafetensorError
        raise ConfigError(
            f"model.checkpoint: {checkpoint.folder} cannot be loaded: {error}; "
            "download or copy the folder again"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def is_cached(model: ModelConfig) -> bool:
    """Whether the checkpoint's weights lie on this machine already."""
    try:
        folder, _ = _locate(model, weights=True, local_files_only=True)
        made_on_load = open_checkpoint(model, weights=False).made_on_load
    except ConfigError:
        return False
    return made_on_load or all(any((folder / part).glob("*.safetensors")) for part in PARTS)


def quiet() -> None:
    """Keep the libraries' bars and notices off the terminal; errors still come."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _locate(
    model: ModelConfig, weights: bool, local_files_only: bool = False
) -> tuple[Path, str | None]:
    if model.checkpoint == "embedded":
        return EMBEDDED_FOLDER, None
    folder = Path(model.checkpoint).expanduser()
    if folder.is_dir():
        return folder.resolve(), None
    if not _HUB_ID.fullmatch(model.checkpoint):
        raise ConfigError(
            f"model.checkpoint: must be `embedded`, an existing folder or a hub id such as "
            f"zai-org/CogVideoX-5b-I2V, got {model.checkpoint!r}"
        )
    patterns = ["*.json", "tokenizer/*"] + [f"{part}/*.safetensors" for part in PARTS] * weights
    try:
        snapshot = snapshot_download(
            model.checkpoint,
            revision=model.revision,
            allow_patterns=patterns,
            local_files_only=local_files_only,
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model.checkpoint: {model.checkpoint} is not in the local cache and the hub did not "
            f"give it: {first_line}; check the name and the network, or name a folder"
        ) from None
    return Path(snapshot), Path(snapshot).name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.checkpoint: {path} cannot be read: {error}; a diffusers checkpoint folder "
            "holds model_index.json, transformer, vae, text_encoder, tokenizer and scheduler"
        ) from None
    return content


def _nearest_frames(num_frames: int) -> int:
    return round((num_frames - 1) / _FRAME_STEP) * _FRAME_STEP + 1


def _count_parameters(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        total += sum(math.prod(tensor["shape"]) for tensor in header.values())
    return total


def _hash_folder(folder: Path) -> str:
    """SHA-256 over names and contents of all files. Kept in a cache, keyed by size and mtime."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    stats = [
        (path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns)
        for path in files
        for stat in [path.stat()]
    ]
    key = hashlib.sha256(json.dumps([str(folder), stats]).encode()).hexdigest()
    cached = Path.home() / ".cache" / "vidgen_ray" / "fingerprints" / key
    if cached.is_file() and len(text := cached.read_text()) == 64:
        return text
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(hash_file, files))
    names = [name for name, _, _ in stats]
    result = hashlib.sha256(json.dumps(list(zip(names, digests, strict=True))).encode()).hexdigest()
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(result)
    except OSError:
        pass  # a read-only home costs the hashing again, nothing else
    return result


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
