"""A LoRA file or folder read into one scaled low-rank update for each layer that it changes."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vidgen_ray.errors import RequestError
from vidgen_ray.model.lora_names import LayerNames, LoraProblem, Role
from vidgen_ray.model.lora_settings import PeftSettings, read_settings

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"  # what diffusers and `vidgen train` write
FINAL_NAME = "adapter_final"  # in the folder of a training run, its result
_PEFT_WEIGHTS_NAME = "adapter_model.safetensors"
_PEFT_CONFIG_NAME = "adapter_config.json"

_PART = 2**15
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


@dataclass(frozen=True)
class LoraDelta:
    """The update of one layer: `scale` * B @ A, with A [rank, in] and B [out, rank] by their keys.

    `alpha` already holds rsLoRA's square root, so that `scale` is always alpha / rank.
    """

    a_key: str
    b_key: str
    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def find_lora(path: Path) -> Path:
    """The weights that a path to a LoRA means: a file, or the one that a folder holds.

    A folder may be written by diffusers, by PEFT, or by `vidgen train` (its final adapter counts),
    or hold a single safetensors file. Raises RequestError.
    """
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if not path.is_dir():
        raise RequestError(
            f"lora: must be a folder or a .safetensors file that exists, got {path}; check the path"
        )
    for name in (WEIGHTS_NAME, _PEFT_WEIGHTS_NAME):
        if (path / name).is_file():
            return path / name
    files = sorted(path.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if not files and (path / FINAL_NAME / WEIGHTS_NAME).is_file():
        return path / FINAL_NAME / WEIGHTS_NAME
    epochs = sorted(path.glob("adapter_epoch_*"))
    fix = "name the file itself"
    if epochs:
        fix = f"the training has not ended; let it end, or name an epoch such as {epochs[-1]}"
    elif any(path.glob("*.bin")) or any(path.glob("*.pt")):
        fix = "pickles can run code and are not read; save the adapter as safetensors"
    raise RequestError(
        f"lora: {path} must hold {WEIGHTS_NAME}, {_PEFT_WEIGHTS_NAME}, a single .safetensors file "
        f"or {FINAL_NAME}/, got {[file.name for file in files] or 'none'}; {fix}"
    )


def is_lora_folder(path: Path) -> bool:
    """Whether a folder holds an adapter that its name can stand for."""
    return any(path.glob("*.safetensors")) or (path / FINAL_NAME / WEIGHTS_NAME).is_file()


def find_config(file: Path) -> Path | None:
    """PEFT's adapter_config.json that belongs to the weights `file`, if there is one."""
    config = file.with_name(_PEFT_CONFIG_NAME)
    if not config.is_file():
        return None
    if file.name == _PEFT_WEIGHTS_NAME or len(list(file.parent.glob("*.safetensors"))) == 1:
        return config
    with open_tensors(file) as tensors:  # an export for another program has its own strength
        is_peft = all(key.startswith("base_model.") for key in tensors.keys())  # noqa: SIM118
    return config if is_peft else None


def read_deltas(
    file: Path, config: Path | None, layers: Mapping[str, tuple[int, int]], model: str
) -> dict[str, LoraDelta]:
    """The update of every layer that the LoRA in `file` changes.

    `config` is its adapter_config.json; `layers` are in and out features by name of the linear
    layers of `model`. Raises RequestError unless every tensor has its place in one of the updates.
    """
    problems: list[LoraProblem] = []

    def attempt(read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except LoraProblem as problem:
            problems.append(problem)

    with open_tensors(file) as tensors:
        settings = attempt(read_settings, config, tensors.metadata() or {})
        names = LayerNames(layers)
        parts: dict[str, dict[Role, str]] = {}
        for key in tensors.keys():  # noqa: SIM118 (not a mapping)
            attempt(_place, key, names, parts)
        deltas = {
            layer: attempt(_read_delta, layer, roles, layers[layer], tensors, settings)
            for layer, roles in parts.items()
        }
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RequestError(
            f"lora: {file} cannot be applied to {model}: {problems[0]}{more}; {problems[0].fix}"
        )
    if not deltas:
        raise RequestError(f"lora: {file} holds no tensors; export the adapter again")
    return deltas


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """The file as safetensors opens it, for names, shapes and tensors. Raises RequestError."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        raise RequestError(
            f"lora: {file} cannot be read as safetensors: {error}; copy or export the adapter again"
        ) from None


def _place(key: str, names: LayerNames, parts: dict[str, dict[Role, str]]) -> None:
    layer, role = names.resolve(key)
    roles = parts.setdefault(layer, {})
    if role in roles:
        raise LoraProblem(
            f"{roles[role]} and {key} are both {role} of {layer}",
            "save one adapter a file, under one name",
        )
    roles[role] = key


def _read_delta(
    layer: str,
    roles: dict[Role, str],
    size: tuple[int, int],
    tensors: Any,
    settings: PeftSettings | None,
) -> LoraDelta:
    if "A" not in roles or "B" not in roles:
        have = ", ".join(roles.values())
        missing = " and ".join(sorted({"A", "B"} - set(roles)))
        raise LoraProblem(
            f"{have} lacks its partner, {missing} of {layer}", "export the whole adapter again"
        )
    in_features, out_features = size
    a_key, b_key = roles["A"], roles["B"]
    rank = _check_shape(tensors, a_key, 1, in_features)
    if _check_shape(tensors, b_key, 0, out_features) != rank:
        raise LoraProblem(
            f"{a_key} and {b_key} have different ranks", "export the whole adapter again"
        )
    for key in (a_key, b_key):
        _check_values(tensors, key)
    alpha = _read_alpha(tensors, roles["alpha"]) if "alpha" in roles else None
    return LoraDelta(a_key, b_key, rank, _effective_alpha(layer, rank, alpha, settings))


def _check_shape(tensors: Any, key: str, axis: int, size: int) -> int:
    """The rank of A (`axis` 1 is the layer's) or B (`axis` 0 is the layer's)."""
    shape = tensors.get_slice(key).get_shape()
    if len(shape) != 2 or shape[axis] != size:
        raise LoraProblem(
            f"{key} has shape {shape} where the model needs {size} on axis {axis}",
            "use an adapter trained on this checkpoint or on one of the same size",
        )
    rank: int = shape[1 - axis]
    if rank == 0:
        raise LoraProblem(f"{key} has rank 0", "export the adapter again, with its weights")
    return rank


def _check_values(tensors: Any, key: str) -> None:
    import torch

    dtype = tensors.get_slice(key).get_dtype()
    if dtype not in _FLOATS:
        raise LoraProblem(
            f"{key} is {dtype}, not a floating-point tensor",
            "export the adapter in bfloat16 or float32",
        )
    tensor = tensors.get_tensor(key)
    numbers = tensor.float() if dtype.startswith("F8") else tensor
    # Extremes show NaN too. Torch spreads longer parts over threads, which on a busy machine takes
    # twenty times as long as one thread does.
    extremes = [torch.aminmax(part) for part in numbers.flatten().split(_PART)]
    if not all(math.isfinite(end) for pair in extremes for end in pair):
        raise LoraProblem(f"{key} holds NaN or infinity", "use an earlier state of the training")


def _read_alpha(tensors: Any, key: str) -> float:
    tensor = tensors.get_tensor(key)
    if tensor.numel() != 1 or not 0 < float(tensor) < math.inf:
        raise LoraProblem(
            f"{key} must be one positive number, got {tensor.tolist()}",
            "export the adapter again, or leave alpha out for a scale of 1",
        )
    return float(tensor)


def _effective_alpha(
    layer: str, rank: int, alpha: float | None, settings: PeftSettings | None
) -> float:
    """Alpha so that alpha / rank is the layer's scale; without any, a file means a scale of 1."""
    if settings is None:
        return alpha or rank
    configured_rank, configured_alpha = settings.of_layer(layer)
    if configured_rank != rank:
        raise LoraProblem(
            f"the adapter's settings give {layer} rank {configured_rank}, its tensors have {rank}",
            "export weights and settings together",
        )
    if alpha is not None and not math.isclose(alpha, configured_alpha, rel_tol=5e-3):
        raise LoraProblem(
            f"{layer}.alpha is {alpha:g}, the adapter's settings say {configured_alpha:g}",
            "export weights and settings together",
        )
    alpha = configured_alpha if alpha is None else alpha
    return alpha * math.sqrt(rank) if settings.use_rslora else alpha
