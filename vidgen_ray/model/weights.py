"""The safetensors files of a checkpoint that diffusers and transformers load, and their hashes."""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from vidgen_ray.addresses import one_line
from vidgen_ray.errors import ConfigError

if TYPE_CHECKING:
    import torch

PARTS = ("transformer", "vae", "text_encoder")
CARD_NAME = "vidgen.json"  # says whether the weights are trained
INITIALIZED_ON_LOAD = "initialized on load"

_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_VARIANTS = (None, "fp16", "bf16")
_TOKENIZER_SUFFIXES = {".json", ".model", ".txt"}
_ADVICE = "download or copy the folder again"


@dataclass(frozen=True)
class WeightFiles:
    """The files of one part that are loaded, and safetensors files beside them that are not."""

    files: tuple[Path, ...]
    index: Path | None
    variant: str | None
    unused: tuple[Path, ...]

    def num_parameters(self) -> int:
        """Elements of all tensors, read from the headers."""
        total = 0
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
            total += sum(math.prod(shape) for shape in shapes)
        return total

    def read(self, name: str) -> "torch.Tensor | None":
        """The tensor `name`; None where no file holds it."""
        for path in self.files:
            with safe_open(path, framework="pt") as file:
                if name in file.keys():  # noqa: SIM118 (not a mapping)
                    tensor: torch.Tensor = file.get_tensor(name)
                    return tensor
        return None


def find_weights(folder: Path, part: str) -> WeightFiles:
    """The weights of `part` in the checkpoint `folder`, each file there and whole.

    diffusers prefers an index over a single file, transformers the single file. A part whose only
    weights are a variant (fp16, bf16) is loaded from that. Raises ConfigError.
    """
    stem = _STEMS[part]
    for variant in _VARIANTS:
        dot = f".{variant}" if variant else ""
        single = folder / part / f"{stem}{dot}.safetensors"
        index = folder / part / f"{stem}.safetensors.index{dot}.json"
        single_first = part == "text_encoder"
        if index.is_file() and not (single_first and single.is_file()):
            shards = _shards(index)
            return _checked(WeightFiles(shards, index, variant, _beside(shards, stem)))
        if single.is_file():
            return _checked(WeightFiles((single,), None, variant, _beside((single,), stem)))
    raise ConfigError(
        f"model.checkpoint: {folder / part} holds neither {stem}.safetensors nor "
        f"{stem}.safetensors.index.json; {_ADVICE}"
    )


def has_weights(folder: Path, part: str) -> bool:
    """Whether there is any weight file of `part`, or an index of some."""
    return any((folder / part).glob("*.safetensors*"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint. Raises ConfigError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.checkpoint: {path} cannot be read: {one_line(error)}; a diffusers checkpoint "
            "folder holds model_index.json, transformer, vae, text_encoder, tokenizer and scheduler"
        ) from None
    if not isinstance(content, dict):
        raise ConfigError(f"model.checkpoint: {path} must hold a JSON object; {_ADVICE}")
    return content


def hash_part(folder: Path, part: str, weights: WeightFiles | None) -> str:
    """SHA-256 over the names and contents of the files of `part` that are loaded."""
    if part == "tokenizer":
        names: Iterable[Path] = (folder / part).iterdir()
        files = [path for path in names if _is_tokenizer_file(path)]
    elif part == "scheduler":
        files = [folder / part / "scheduler_config.json"]
    else:
        files = [folder / part / "config.json"]
        if weights is not None:
            files += [*weights.files, *([weights.index] if weights.index else [])]
    return _hash_files(folder / part, sorted(files))


def hash_strings(values: Sequence[str]) -> str:
    """SHA-256 over a list, in hex."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shards(index: Path) -> tuple[Path, ...]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ConfigError(f"model.checkpoint: {index} has no weight_map; {_ADVICE}")
    names = sorted({str(name) for name in weight_map.values()})
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ConfigError(
            f"model.checkpoint: {index} must name files of its own folder, got {outside[0]!r}"
        )
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ConfigError(
            f"model.checkpoint: {index.parent} lacks {', '.join(missing)}, which {index.name} "
            f"names; {_ADVICE}"
        )
    return tuple(index.parent / name for name in names)


def _beside(used: Sequence[Path], stem: str) -> tuple[Path, ...]:
    """Other safetensors files of the folder; variants (`model.fp16.safetensors`) are no mistake."""
    variant = re.compile(rf"{re.escape(stem)}\.[^.]+\.safetensors")
    others = sorted(set(used[0].parent.glob("*.safetensors")) - set(used))
    return tuple(path for path in others if not variant.fullmatch(path.name))


def _checked(weights: WeightFiles) -> WeightFiles:
    for path in weights.files:
        try:
            with safe_open(path, framework="pt"):  # compares the header with the file's size
                pass
        except Exception as error:  # OSError, SafetensorError
            raise ConfigError(
                f"model.checkpoint: {path} cannot be read: {one_line(error)}; {_ADVICE}"
            ) from None
    return weights


def _is_tokenizer_file(path: Path) -> bool:
    return (
        path.is_file()
        and not path.name.startswith(".")
        and path.suffix in _TOKENIZER_SUFFIXES
        and path.stem.upper() not in {"README", "LICENSE"}
    )


def _hash_files(folder: Path, files: Sequence[Path]) -> str:
    """The digest is cached on disk, keyed by names, sizes and times of change."""
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
