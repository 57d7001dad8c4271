"""Estimate the memory and time of a training step before the run starts."""

from dataclasses import dataclass

from vidgen_ray.config import Dtype, TrainingConfig
from vidgen_ray.errors import ConfigError

# Bytes per adapter parameter of the optimizer's moments.
_MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2.1}
# Activations of one block without checkpointing, in tensors of tokens x width: counted from the
# block's layers. A run prints the estimate beside the measured peak at its end.
_BLOCK_TENSORS = 34
_ATTENTION_SHARE, _LINEAR_SHARE = 0.55, 0.8  # of the FLOP/s of a large matrix product
_MARGIN = 1.1


@dataclass(frozen=True)
class TransformerShape:
    """The sizes that determine the cost; `num_tokens` counts text and latents together."""

    num_layers: int
    width: int
    num_tokens: int
    num_base_parameters: int
    num_adapter_parameters: int


@dataclass(frozen=True)
class DeviceFacts:
    """A device: its free memory, the run's dtype on it, and FLOP/s of a large product in that."""

    name: str
    free_bytes: int
    matmul_flops: float
    dtype: Dtype


@dataclass(frozen=True)
class StepEstimate:
    """The cost of a step on one worker: FLOP, seconds, and peak memory in 1e9 bytes by part."""

    step_flop: float
    step_s: float
    weights_gb: float
    adapter_gb: float
    activations_gb: float

    @property
    def memory_gb(self) -> float:
        """The estimated peak."""
        return self.weights_gb + self.adapter_gb + self.activations_gb


def step_flop(shape: TransformerShape, training: TrainingConfig) -> tuple[float, float]:
    """FLOP of a step on one worker, in linear layers and in attention.

    A block has 12 width^2 weights, and attention costs 4 tokens^2 width. Backward costs as much as
    forward in frozen linear layers, which need no weight gradient, and 2.5 times as much in
    attention, whose scores are recomputed (Dao, arXiv 2307.08691). Checkpointing repeats the
    forward pass; selective checkpointing does not repeat attention.
    """
    tokens, width, layers = shape.num_tokens, shape.width, shape.num_layers
    linear = 2 * 12 * width**2 * tokens * layers
    attention = 4 * tokens**2 * width * layers
    adapter = 2 * shape.num_adapter_parameters * tokens
    repeated = training.gradient_checkpointing != "none"
    attention_repeated = training.gradient_checkpointing == "full"
    samples = training.batch_size * training.gradient_accumulation_steps
    return (
        samples * (linear * (2 + repeated) + adapter * (3 + repeated)),
        samples * attention * (3.5 + attention_repeated),
    )


def estimate_step(
    shape: TransformerShape,
    training: TrainingConfig,
    device: DeviceFacts,
    num_workers: int,
) -> StepEstimate:
    """The cost of a step on one of `num_workers` such devices."""
    num_bytes = 4 if device.dtype == "float32" else 2
    copies = 4 + 4 + _MOMENT_BYTES[training.optimizer]
    copies += 4 * (training.ema_decay is not None) + 4 * (num_workers > 1)  # averages, DDP buckets
    kept = {"none": _BLOCK_TENSORS, "full": 1, "selective": 2}[training.gradient_checkpointing]
    tensor = training.batch_size * shape.num_tokens * shape.width * num_bytes
    activations = tensor * (kept * shape.num_layers + 2 * _BLOCK_TENSORS)
    linear, attention = step_flop(shape, training)
    rate = device.matmul_flops
    return StepEstimate(
        step_flop=linear + attention,
        step_s=linear / (_LINEAR_SHARE * rate) + attention / (_ATTENTION_SHARE * rate),
        weights_gb=shape.num_base_parameters * num_bytes / 1e9,
        adapter_gb=shape.num_adapter_parameters * copies / 1e9,
        activations_gb=activations / 1e9,
    )


def refuse_too_large(needed: StepEstimate, device: DeviceFacts, training: TrainingConfig) -> None:
    """Raise ConfigError with what to change if the estimate does not fit the device."""
    free_gb = device.free_bytes / 1e9
    if _MARGIN * needed.memory_gb <= free_gb:
        return
    advice = []
    if training.gradient_checkpointing != "full":
        advice.append("training.gradient_checkpointing=full")
    if training.batch_size > 1:
        advice.append("training.batch_size=1 with more gradient_accumulation_steps")
    if training.optimizer == "adamw":
        advice.append("training.optimizer=adamw8bit")
    if training.ema_decay is not None:
        advice.append("training.ema_decay=null")
    advice.append(f"a training.rank under {training.rank}")
    raise ConfigError(
        f"training: needs about {needed.memory_gb:.1f} GB on each worker (weights "
        f"{needed.weights_gb:.1f}, adapter and optimizer {needed.adapter_gb:.1f}, activations "
        f"{needed.activations_gb:.1f}), but {device.name} has {free_gb:.1f} GB free; use "
        f"{', or '.join(advice)}, or a larger device"
    )
