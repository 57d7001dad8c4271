"""LoRA adapters: checked against the model before any step runs, put on or folded in, and off."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
from diffusers.utils import convert_unet_state_dict_to_peft
from peft.tuners.lora import LoraLayer

from vidgen_ray.config import LoRA
from vidgen_ray.errors import RequestError
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.model.quantization import EightBitLinear
from vidgen_ray.model.weights import hash_file

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"

_PREFIX = "transformer."
_ADAPTER_NAME = "adapter"


@dataclass(frozen=True)
class Adapter:
    """A checked adapter: its file and the SHA-256 of that file."""

    file: Path
    sha256: str


def open_adapter(lora: LoRA, checkpoint: Checkpoint) -> Adapter:
    """Find the adapter of `lora` and check that every tensor fits `checkpoint`'s transformer.

    Reads headers only; no weights are loaded. Raises RequestError.
    """
    file = _find(Path(lora.path).expanduser())
    shapes = _read_shapes(file)
    modules = dict(skeleton(checkpoint).named_modules())
    problems = [
        problem for key, shape in shapes.items() if (problem := _mismatch(key, shape, modules))
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise RequestError(
            f"lora: {file} must fit {checkpoint.source}, but {problems[0]}{more}; "
            "use an adapter trained on this checkpoint"
        )
    return Adapter(file, hash_file(file))


def put_on(pipeline: CogVideoXImageToVideoPipeline, adapter: Adapter, scale: float) -> None:
    """Add the adapter to a pipeline that has none, at `scale`."""
    pipeline.load_lora_weights(
        str(adapter.file.parent), weight_name=adapter.file.name, adapter_name=_ADAPTER_NAME
    )
    pipeline.set_adapters([_ADAPTER_NAME], [scale])


def take_off(pipeline: CogVideoXImageToVideoPipeline) -> None:
    """Remove every adapter; the weights are then the checkpoint's own, bit for bit."""
    pipeline.unload_lora_weights()


def fold_in(
    pipeline: CogVideoXImageToVideoPipeline, adapter: Adapter, scale: float, checkpoint: Checkpoint
) -> None:
    """Add the adapter to the weights themselves, which must be the checkpoint's own.

    Modules stay what they are, so that nothing is compiled again; 8-bit layers are rounded once,
    after the sum. Peft says what the adapter adds.
    """
    bare = skeleton(checkpoint)
    tensors, metadata = CogVideoXImageToVideoPipeline.lora_state_dict(
        str(adapter.file.parent), weight_name=adapter.file.name, return_lora_metadata=True
    )
    if not any(".lora_A." in key for key in tensors):
        tensors = convert_unet_state_dict_to_peft(tensors)
    # Peft reads ranks and alphas onto a skeleton without storage; the tensors are these.
    bare.load_lora_adapter(
        tensors, metadata=metadata or None, adapter_name=_ADAPTER_NAME, low_cpu_mem_usage=True
    )
    for name, layer in bare.named_modules():
        if isinstance(layer, LoraLayer):
            device = pipeline.transformer.get_submodule(name).weight.device
            down, up = (
                tensors[f"{_PREFIX}{name}.lora_{side}.weight"].to(device, torch.float32)
                for side in "AB"
            )
            delta = scale * layer.scaling[_ADAPTER_NAME] * (up @ down)
            _set_weight(pipeline, checkpoint, name, delta)


def fold_out(
    pipeline: CogVideoXImageToVideoPipeline, adapter: Adapter, checkpoint: Checkpoint
) -> None:
    """Put the checkpoint's own weights back where `fold_in` added; they are then the same bits."""
    for name in sorted({key.split(".lora_")[0] for key in _read_shapes(adapter.file)}):
        if not name.endswith(".alpha"):
            _set_weight(pipeline, checkpoint, name.removeprefix(_PREFIX), None)


def _set_weight(
    pipeline: CogVideoXImageToVideoPipeline,
    checkpoint: Checkpoint,
    name: str,
    delta: torch.Tensor | None,
) -> None:
    module = pipeline.transformer.get_submodule(name)
    eight_bits = isinstance(module, EightBitLinear)
    dtype = pipeline.transformer.dtype if eight_bits else module.weight.dtype
    weight = checkpoint.read_weight("transformer", f"{name}.weight").to(module.weight.device, dtype)
    if delta is not None:
        weight = (weight.float() + delta).to(dtype)
    if eight_bits:
        module.set_weight(weight)
    else:
        module.weight.data.copy_(weight)


def _find(path: Path) -> Path:
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if path.is_dir():
        named = path / WEIGHTS_NAME
        others = sorted(path.glob("*.safetensors"))
        if named.is_file() or len(others) == 1:
            return named if named.is_file() else others[0]
        raise RequestError(
            f"lora: {path} must hold {WEIGHTS_NAME} or a single .safetensors file, "
            f"got {[other.name for other in others] or 'none'}; name the file itself"
        )
    raise RequestError(
        f"lora: must be a folder or a .safetensors file that exists, got {path}; check the path"
    )


def _read_shapes(file: Path) -> dict[str, list[int]]:
    """Shapes by tensor name, from the file's header; tensors that hold no LoRA are refused."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 100_000_000)))
        header.pop("__metadata__", None)
        shapes = {key: list(tensor["shape"]) for key, tensor in header.items()}
        end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
    except (OSError, struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"lora: {file} is not a safetensors file: {error}; export the adapter again"
        ) from None
    if file.stat().st_size < 8 + length + end:
        raise RequestError(f"lora: {file} is cut short; copy the adapter again")
    if not shapes:
        raise RequestError(f"lora: {file} holds no tensors; export the adapter again")
    return shapes


def skeleton(checkpoint: Checkpoint) -> CogVideoXTransformer3DModel:
    """The transformer of a checkpoint without its weights."""
    config = CogVideoXTransformer3DModel.load_config(checkpoint.folder / "transformer")
    with torch.device("meta"):
        return CogVideoXTransformer3DModel.from_config(config)


def _mismatch(key: str, shape: list[int], modules: dict[str, torch.nn.Module]) -> str | None:
    if key.endswith(".alpha"):
        return None
    name, separator, side = key.removeprefix(_PREFIX).partition(".lora_")
    side = side.split(".")[0]
    if not key.startswith(_PREFIX) or not separator or side not in {"A", "B", "down", "up"}:
        return f"{key} is not a LoRA tensor of the transformer (`transformer.….lora_A.weight`)"
    module = modules.get(name)
    if not isinstance(module, torch.nn.Linear):
        return f"the model has no linear layer {name}"
    axis, size = (1, module.in_features) if side in {"A", "down"} else (0, module.out_features)
    if len(shape) != 2 or shape[axis] != size:
        return f"{key} has shape {shape} where the model needs {size} on axis {axis}"
    return None
