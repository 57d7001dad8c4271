"""The count of work and memory, against figures that were counted by hand or by torch."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vidgen_ray.config import ModelConfig, TrainingConfig
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.checkpoint import open_checkpoint
from vidgen_ray.model.lora import LoraTransformer, architecture_of
from vidgen_ray.training.estimate import (
    DeviceFacts,
    TransformerShape,
    estimate_step,
    refuse_too_large,
    step_flop,
)

FULL_SIZE = TransformerShape(
    num_layers=42,
    width=3072,
    num_tokens=226 + 13 * 30 * 45,
    num_base_parameters=5_570_000_000,
    num_adapter_parameters=132_120_576,
)
H200 = DeviceFacts("H200", 139 * 2**30, 790e12, "bfloat16")


def test_the_full_size_needs_1240_tflop_a_sample_with_full_checkpointing() -> None:
    linear, attention = step_flop(FULL_SIZE, TrainingConfig(gradient_checkpointing="full"))
    assert (linear + attention) / 1e12 == pytest.approx(1240 + 19, rel=0.02)  # 19 of the adapter
    selective = sum(step_flop(FULL_SIZE, TrainingConfig(gradient_checkpointing="selective")))
    assert selective < linear + attention


def test_torch_counts_as_much_for_the_linear_layers(tiny_folder) -> None:  # type: ignore[no-untyped-def]
    checkpoint = open_checkpoint(ModelConfig(checkpoint=str(tiny_folder)))
    training = TrainingConfig(rank=4, gradient_checkpointing="none")
    sizes = architecture_of(checkpoint, training, 3, 8, 12)
    model = LoraTransformer(checkpoint, "float32", training)
    weights = sum(weight.numel() for weight in model.adapter_weights().values())
    assert sizes["num_adapter_parameters"] == weights
    assert sizes["num_base_parameters"] == model.num_base_parameters
    inputs = (torch.randn(1, 3, 16, 8, 12), torch.randn(1, 3, 16, 8, 12), torch.randn(1, 226, 32))
    with FlopCounterMode(display=False) as counter:
        model(*inputs, torch.tensor([500])).sum().backward()
    linear, _ = step_flop(TransformerShape(**sizes), training)
    counted = sum(
        flop
        for operation, flop in counter.get_flop_counts()["Global"].items()
        if "attention" not in str(operation)
    )
    # Torch also counts modulation and patches, and nothing backward of the first adapted layer.
    assert counted == pytest.approx(linear, rel=0.1)


def test_a_device_that_is_too_small_is_refused_with_what_to_change() -> None:
    training = TrainingConfig(batch_size=2)
    needed = estimate_step(FULL_SIZE, training, H200, 1)
    assert 20 < needed.memory_gb < 60
    refuse_too_large(needed, H200, training)
    small = DeviceFacts("RTX 3060", 12 * 2**30, 50e12, "bfloat16")
    with pytest.raises(ConfigError, match=r"needs about .* GB .*batch_size=1.*adamw8bit"):
        refuse_too_large(estimate_step(FULL_SIZE, training, small, 1), small, training)


def test_less_is_estimated_for_what_needs_less() -> None:
    def memory(**training: object) -> float:
        return estimate_step(FULL_SIZE, TrainingConfig(**training), H200, 1).memory_gb  # type: ignore[arg-type]

    assert memory(gradient_checkpointing="full") < memory() < memory(gradient_checkpointing="none")
    assert memory(optimizer="adamw8bit") < memory() < memory(ema_decay=0.99)
    assert memory() < memory(batch_size=2)
