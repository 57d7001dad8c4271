"""LoRA adapters: checked against the model before any step runs, loaded or fused, and removed."""

import hashlib
import math
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXTransformer3DModel
from peft.tuners.lora import LoraLayer

from vidgen_ray.config import LoRA
from vidgen_ray.errors import RequestError
from vidgen_ray.model.checkpoint import Checkpoint
from vidgen_ray.model.lora_file import (
    LoraDelta,
    find_config,
    find_lora,
    open_tensors,
    read_deltas,
)
from vidgen_ray.model.quantization import EightBitLinear
from vidgen_ray.model.weights import hash_file

_PREFIX = "transformer"
_ADAPTER_NAME = "adapter"
_NUM_KEPT = 64  # adapters whose check is remembered; no weights are

_opened: dict[object, "Adapter"] = {}
_opening = threading.Lock()


@dataclass(frozen=True)
class Adapter:
    """A checked adapter: its file, what it adds to each layer by name, and a SHA-256.

    The hash is that of the file; with PEFT's adapter_config.json, that of both files' hashes.
    """

    file: Path
    sha256: str
    deltas: Mapping[str, LoraDelta] = field(compare=False, repr=False)


def open_adapter(lora: LoRA, checkpoint: Checkpoint) -> Adapter:
    """Find the adapter of `lora` and check that every tensor acts on `checkpoint`'s transformer.

    Checked once in a process for as long as file and checkpoint stay the same; any thread may call.
    Raises RequestError.
    """
    file = find_lora(Path(lora.path).expanduser())
    config = find_config(file)
    transformer = _transformer_config(checkpoint)
    key = (_version(file), config and _version(config), _version(transformer), checkpoint.source)
    adapter = _opened.get(key)
    if adapter is None:
        with _opening:
            adapter = _opened.get(key) or _read(file, config, checkpoint)
            _opened[key] = adapter
            while len(_opened) > _NUM_KEPT:
                _opened.pop(next(iter(_opened)))
    return adapter


def load_lora(pipeline: CogVideoXImageToVideoPipeline, adapter: Adapter, scale: float) -> None:
    """Load the adapter into a pipeline that has none, at `scale`. Raises RequestError."""
    tensors: dict[str, torch.Tensor] = {}
    for layer, a, b in _read_pairs(adapter):
        tensors[f"{_PREFIX}.{layer}.lora_A.weight"] = a
        tensors[f"{_PREFIX}.{layer}.lora_B.weight"] = b
    rank, rank_pattern = _common({name: delta.rank for name, delta in adapter.deltas.items()})
    alpha, alpha_pattern = _common({name: delta.alpha for name, delta in adapter.deltas.items()})
    settings = {
        "r": rank,
        "rank_pattern": rank_pattern,
        "lora_alpha": alpha,
        "alpha_pattern": alpha_pattern,
        "target_modules": list(adapter.deltas),
    }
    pipeline.load_lora_into_transformer(
        tensors,
        pipeline.transformer,
        adapter_name=_ADAPTER_NAME,
        metadata={f"{_PREFIX}.{name}": value for name, value in settings.items()},
        _pipeline=pipeline,
        low_cpu_mem_usage=True,
    )
    pipeline.set_adapters([_ADAPTER_NAME], [scale])
    _check_loaded(pipeline, adapter, scale)


def unload_lora(pipeline: CogVideoXImageToVideoPipeline) -> None:
    """Remove every adapter; the weights are then the checkpoint's own, bit for bit."""
    pipeline.unload_lora_weights()


def fuse_lora(
    pipeline: CogVideoXImageToVideoPipeline, adapter: Adapter, scale: float, checkpoint: Checkpoint
) -> None:
    """Add the adapter to the weights themselves, which must be the checkpoint's own.

    Modules stay what they are, so that nothing is recompiled; 8-bit layers are rounded once, after
    the sum. Raises RequestError.
    """
    for layer, a, b in _read_pairs(adapter):
        device = pipeline.transformer.get_submodule(layer).weight.device
        a, b = (tensor.to(device, torch.float32) for tensor in (a, b))
        _set_weight(pipeline, checkpoint, layer, scale * adapter.deltas[layer].scale * (b @ a))


def unfuse_lora(
    pipeline: CogVideoXImageToVideoPipeline, adapter: Adapter, checkpoint: Checkpoint
) -> None:
    """Restore the checkpoint's own weights where `fuse_lora` added, bit for bit."""
    for layer in adapter.deltas:
        _set_weight(pipeline, checkpoint, layer, None)


def skeleton(checkpoint: Checkpoint) -> CogVideoXTransformer3DModel:
    """The transformer of a checkpoint without its weights; shared, so leave it as it is."""
    return _skeleton(_version(_transformer_config(checkpoint)))


@lru_cache(4)
def _skeleton(config: tuple[str, ...]) -> CogVideoXTransformer3DModel:
    settings = CogVideoXTransformer3DModel.load_config(Path(config[0]).parent)
    with torch.device("meta"):
        return CogVideoXTransformer3DModel.from_config(settings)


def _transformer_config(checkpoint: Checkpoint) -> Path:
    return checkpoint.folder / "transformer" / "config.json"


def _version(file: Path) -> tuple[str, ...]:
    """What changes when a file is written, replaced or moved."""
    try:
        stat = file.stat()
    except OSError as error:
        raise RequestError(f"lora: {file} cannot be read: {error}; check the path") from None
    facts = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return (str(file), *(str(fact) for fact in facts))


def _read(file: Path, config: Path | None, checkpoint: Checkpoint) -> Adapter:
    layers = {
        name: (module.in_features, module.out_features)
        for name, module in skeleton(checkpoint).named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    deltas = read_deltas(file, config, layers, checkpoint.source)
    sha256 = hash_file(file)
    if config:
        sha256 = hashlib.sha256(f"{sha256} {hash_file(config)}".encode()).hexdigest()
    return Adapter(file, sha256, deltas)


def _read_pairs(adapter: Adapter) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Layer, A [rank, in] and B [out, rank] of each update."""
    with open_tensors(adapter.file) as tensors:
        for layer, delta in adapter.deltas.items():
            yield layer, tensors.get_tensor(delta.a_key), tensors.get_tensor(delta.b_key)


def _common(values: dict[str, float]) -> tuple[float, dict[str, float]]:
    """The most frequent value, and the others as PEFT's patterns that match one layer each."""
    ((common, _),) = Counter(values.values()).most_common(1)
    others = {f"^{re.escape(name)}": value for name, value in values.items() if value != common}
    return common, others


def _check_loaded(pipeline: CogVideoXImageToVideoPipeline, adapter: Adapter, scale: float) -> None:
    """Refuse a pipeline in which the adapter does not act as it was read."""
    expected = {layer: scale * delta.scale for layer, delta in adapter.deltas.items()}
    modules = dict(pipeline.transformer.named_modules())
    loaded = {
        name: module.scaling[_ADAPTER_NAME]
        for name, module in modules.items()
        if isinstance(module, LoraLayer) and _ADAPTER_NAME in module.lora_A
    }
    wrong = sorted(loaded.keys() ^ expected.keys())
    wrong += [name for name in loaded if not math.isclose(loaded[name], expected.get(name, 0.0))]
    # Offloading one layer at a time keeps weights on meta, with a hook that brings them.
    wrong += [
        name
        for name, module in modules.items()
        if not hasattr(module, "_hf_hook")
        and any(weight.is_meta for weight in module.parameters(recurse=False))
    ]
    if wrong:
        raise RequestError(
            f"lora: {adapter.file} was not loaded as it stands in {len(wrong)} layers, such as "
            f"{wrong[0]}; export the adapter with diffusers' save_lora_weights"
        )


def _set_weight(
    pipeline: CogVideoXImageToVideoPipeline,
    checkpoint: Checkpoint,
    name: str,
    delta: torch.Tensor | None,
) -> None:
    """The checkpoint's weight of a layer [out, in], plus `delta` [out, in]."""
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
