"""The transformer in training: what it predicts, what it trains, what it exports."""

from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline
from torch.utils._python_dispatch import TorchDispatchMode

from vidgen_ray.config import LoRA, ModelConfig, TrainingConfig
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.adapters import open_adapter
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.lora import LoraTransformer

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def checkpoint(tiny_folder: Path) -> Checkpoint:
    return open_checkpoint(ModelConfig(checkpoint=str(tiny_folder)))


def _inputs() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    noisy, condition = torch.randn(2, 2, 3, 16, 8, 12, generator=generator)
    embeds = torch.randn(2, 226, 32, generator=generator)
    return noisy, condition, embeds, torch.tensor([999, 300])


def _model(checkpoint: Checkpoint, **training: object) -> LoraTransformer:
    return LoraTransformer(checkpoint, "float32", TrainingConfig(rank=4, **training))  # type: ignore[arg-type]


def _shake(model: LoraTransformer) -> None:
    """Give every weight of the adapter a value, as if it were trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.adapter_weights().values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)


def _pipeline_predicts(pipeline: CogVideoXImageToVideoPipeline, inputs: Inputs) -> torch.Tensor:
    noisy, condition, embeds, timesteps = inputs
    rotary = pipeline._prepare_rotary_positional_embeddings(64, 96, 3, torch.device("cpu"))
    with torch.no_grad():
        return pipeline.transformer(
            hidden_states=torch.cat([noisy, condition], dim=2),
            encoder_hidden_states=embeds,
            timestep=timesteps,
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]


def test_a_fresh_adapter_changes_nothing(checkpoint: Checkpoint) -> None:
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(checkpoint.folder, dtype=torch.float32)
    with torch.no_grad():
        predicted = _model(checkpoint)(*_inputs())
    assert torch.equal(predicted, _pipeline_predicts(pipeline, _inputs()))


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_plain_diffusers_loads_the_export_and_predicts_the_same(
    checkpoint: Checkpoint, tmp_path: Path, alpha: float | None
) -> None:
    model = _model(checkpoint, alpha=alpha)
    _shake(model)
    with torch.no_grad():
        trained = model(*_inputs())
    file = model.export(tmp_path, "float32")
    assert file.name == "pytorch_lora_weights.safetensors"
    open_adapter(LoRA(path=str(tmp_path)), checkpoint)
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(checkpoint.folder, dtype=torch.float32)
    plain = _pipeline_predicts(pipeline, _inputs())
    pipeline.load_lora_weights(str(tmp_path))
    loaded = _pipeline_predicts(pipeline, _inputs())
    torch.testing.assert_close(loaded, trained, atol=1e-5, rtol=1e-5)
    assert (loaded - plain).abs().max() > 0.01


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_the_gradient_through_checkpointing_equals_the_one_without(
    checkpoint: Checkpoint, mode: str
) -> None:
    gradients = {}
    for name in ("none", mode):
        model = _model(checkpoint, gradient_checkpointing=name)
        _shake(model)
        model(*_inputs()).square().mean().backward()
        gradients[name] = {key: weight.grad for key, weight in model.adapter_weights().items()}
    assert gradients["none"]
    for key, expected in gradients["none"].items():
        assert expected is not None
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradients[mode][key], expected, atol=1e-7, rtol=1e-5)


def test_selective_checkpointing_does_not_repeat_attention(checkpoint: Checkpoint) -> None:
    class Counter(TorchDispatchMode):
        """Counts forward calls of attention."""

        calls = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = str(func)
            self.calls += "scaled_dot_product" in name and "backward" not in name
            return func(*args, **(kwargs or {}))

    def calls(mode: str) -> int:
        model = _model(checkpoint, gradient_checkpointing=mode)
        with Counter() as counter:
            model(*_inputs()).sum().backward()
        return counter.calls

    num_layers = 2
    assert [calls(mode) for mode in ("none", "full", "selective")] == [
        num_layers,
        2 * num_layers,
        num_layers,
    ]


def test_the_adapter_is_float32_on_a_bfloat16_base(checkpoint: Checkpoint) -> None:
    model = LoraTransformer(checkpoint, "bfloat16", TrainingConfig(rank=4))
    assert {weight.dtype for weight in model.adapter_weights().values()} == {torch.float32}
    model(*_inputs()).square().mean().backward()
    for weight in model.adapter_weights().values():
        assert weight.grad is not None
        assert weight.grad.dtype == torch.float32
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    assert {weight.dtype for weight in frozen} == {torch.bfloat16}


def test_the_same_seed_draws_the_same_adapter(checkpoint: Checkpoint) -> None:
    first, again, other = (_model(checkpoint, seed=seed).adapter_weights() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"targets": ["to_z"]}, r"training\.targets: must name linear layers"),
        ({"rank": 64}, r"training\.rank: at most 10% .* use a lower rank"),
    ],
)
def test_a_wrong_adapter_is_refused(
    checkpoint: Checkpoint, training: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LoraTransformer(checkpoint, "float32", TrainingConfig(**{"rank": 4, **training}))  # type: ignore[arg-type]


def test_half_precision_is_refused_for_training(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match=r"model\.dtype: must be bfloat16 or float32"):
        LoraTransformer(checkpoint, "float16", TrainingConfig(rank=4))
