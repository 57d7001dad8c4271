"""The transformer with a LoRA adapter in training: forward pass, checkpointing, export.

The base weights are frozen in their dtype. The adapter's are float32, so that small updates are not
lost, and are cast for each product, so that the products run at the base's speed.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import CogVideoXImageToVideoPipeline
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from vidgen_ray.addresses import one_line
from vidgen_ray.config import Dtype, TrainingConfig
from vidgen_ray.errors import ConfigError
from vidgen_ray.model.adapters import skeleton
from vidgen_ray.model.checkpoint import Checkpoint, assemble_pipeline, load_part
from vidgen_ray.model.lora_file import WEIGHTS_NAME

Checkpointing = Literal["none", "full", "selective"]

_ADAPTER_NAME = "default"
_OFS = 2.0  # the offset that the pipeline gives to checkpoints with an embedding for it

# What selective checkpointing keeps: attention is half of a block's work, and its output small.
_ATTENTION = [
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]


class LoraTransformer(nn.Module):
    """The transformer of a checkpoint; parameters that require a gradient are the adapter's.

    `alphas_cumprod` is the noise schedule, float32 [num_train_timesteps].
    """

    alphas_cumprod: Tensor

    def __init__(self, checkpoint: Checkpoint, dtype: Dtype, training: TrainingConfig) -> None:
        """Load the transformer and add an adapter that does nothing yet, drawn from the seed.

        Raises ConfigError, also where more than `max_trainable_fraction` would be trainable.
        """
        super().__init__()
        self._pipeline = _load(checkpoint, dtype)
        self.transformer = self._pipeline.transformer.requires_grad_(False)
        schedule = self._pipeline.scheduler.alphas_cumprod.float().clone()
        self.register_buffer("alphas_cumprod", schedule, persistent=False)
        self.alpha = float(training.alpha or training.rank)
        self.num_base_parameters = sum(weight.numel() for weight in self.transformer.parameters())
        self._add_adapter(training)
        wanted = training.compile_blocks
        compiled = torch.cuda.is_available() if wanted == "auto" else wanted
        self._set_checkpointing(training.gradient_checkpointing, compiled)
        self.train()

    def forward(
        self, noisy: Tensor, condition: Tensor, prompt_embeds: Tensor, timesteps: Tensor
    ) -> Tensor:
        """The velocity that the transformer predicts, float32 [batch, T, channels, h, w].

        `noisy` and `condition` are [batch, T, channels, h, w], `prompt_embeds` [batch, tokens,
        width], `timesteps` int64 [batch].
        """
        transformer = self.transformer
        config = transformer.config
        ofs = None if config.ofs_embed_dim is None else noisy.new_full((1,), _OFS)
        rotary = None
        if config.use_rotary_positional_embeddings:
            # The pipeline's own positions, so that training and generation cannot differ.
            _, num_latent_frames, _, height, width = noisy.shape
            stride = self._pipeline.vae_scale_factor_spatial
            rotary = self._pipeline._prepare_rotary_positional_embeddings(
                height * stride, width * stride, num_latent_frames, noisy.device
            )
        velocity: Tensor = transformer(
            hidden_states=torch.cat([noisy, condition], dim=2).to(transformer.dtype),
            encoder_hidden_states=prompt_embeds.to(transformer.dtype),
            timestep=timesteps,
            ofs=ofs,
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return velocity.float()

    def adapter_weights(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by their names in the transformer."""
        return {
            name: weight
            for name, weight in self.transformer.named_parameters()
            if weight.requires_grad
        }

    def export(self, folder: Path, dtype: Dtype) -> Path:
        """Write the adapter as safetensors in the form that diffusers loads; the file.

        Rank and alpha go into the file's metadata, from where diffusers takes the scale.
        """
        state = get_peft_model_state_dict(self.transformer, adapter_name=_ADAPTER_NAME)
        CogVideoXImageToVideoPipeline.save_lora_weights(
            folder,
            transformer_lora_layers={
                name: weight.detach().to("cpu", getattr(torch, dtype)).contiguous()
                for name, weight in state.items()
            },
            transformer_lora_adapter_metadata=self._lora_config(),
        )
        return folder / WEIGHTS_NAME

    def _lora_config(self) -> dict[str, Any]:
        config = self.transformer.peft_config[_ADAPTER_NAME].to_dict()
        return {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in config.items()
        }

    def _add_adapter(self, training: TrainingConfig) -> None:
        config = LoraConfig(
            r=training.rank, lora_alpha=self.alpha, target_modules=list(training.targets)
        )
        with torch.random.fork_rng():
            torch.manual_seed(training.seed)
            try:
                self.transformer.add_adapter(config, adapter_name=_ADAPTER_NAME)
            except ValueError as error:  # PEFT found none of the targets, or one that is no layer
                raise ConfigError(
                    f"training.targets: must name linear layers of the transformer, got "
                    f"{training.targets}: {one_line(error)}; use to_q, to_k, to_v, "
                    "to_out.0"
                ) from None
        for layer in list(self.transformer.modules()):
            if isinstance(layer, LoraLayer):
                _keep_in_float32(layer)
        num_trainable = sum(weight.numel() for weight in self.adapter_weights().values())
        _refuse_too_many(num_trainable, self.num_base_parameters, training)

    def _set_checkpointing(self, mode: Checkpointing, compiled: bool) -> None:
        if mode == "none":
            if compiled:
                for block in self.transformer.transformer_blocks:
                    block.compile()
            return
        # The checkpoint is inside of what is compiled, so that the compiler sees what to keep.
        runners: dict[int, Callable[..., Any]] = {}
        for block in self.transformer.transformer_blocks:
            run = partial(_run_checkpointed, block, _context(mode))
            runners[id(block)] = torch.compile(run) if compiled else run
        self.transformer.enable_gradient_checkpointing(
            lambda block, *inputs: runners[id(block)](*inputs)
        )


def architecture_of(
    checkpoint: Checkpoint,
    training: TrainingConfig,
    num_latent_frames: int,
    height: int,
    width: int,
) -> dict[str, int]:
    """The sizes that decide what training on latents of this shape costs; loads no weights.

    Raises ConfigError where more than `max_trainable_fraction` would be trainable.
    """
    transformer = skeleton(checkpoint)
    config = transformer.config
    num_base = sum(weight.numel() for weight in transformer.parameters())
    ends = tuple(f".{target}" for target in training.targets)
    adapted = [
        module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(ends)
    ]
    sides = sum(module.in_features + module.out_features for module in adapted)
    _refuse_too_many(training.rank * sides, num_base, training)
    patches = (height // config.patch_size) * (width // config.patch_size)
    return {
        "num_layers": config.num_layers,
        "width": config.num_attention_heads * config.attention_head_dim,
        "num_tokens": config.max_text_seq_length + num_latent_frames * patches,
        "num_base_parameters": num_base,
        "num_adapter_parameters": training.rank * sides,
    }


def _refuse_too_many(num_trainable: int, num_base: int, training: TrainingConfig) -> None:
    if num_trainable > training.max_trainable_fraction * num_base:
        raise ConfigError(
            f"training.rank: at most {training.max_trainable_fraction:.0%} of the parameters may "
            f"be trainable, got {num_trainable / num_base:.1%} ({num_trainable:,}) with rank "
            f"{training.rank} on {training.targets}; use a lower rank or fewer targets"
        )


def _run_checkpointed(block: nn.Module, contexts: Callable[[], Any] | None, *inputs: Any) -> Any:
    options: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}
    return checkpoint(block, *inputs, use_reentrant=False, **options)


def _context(mode: Checkpointing) -> Callable[[], Any] | None:
    if mode == "full":
        return None
    return partial(create_selective_checkpoint_contexts, _keep_attention)


def _keep_attention(_context: Any, operation: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    kept = operation in _ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


class _CastLinear(nn.Linear):
    """A linear layer that computes in the dtype of its input, whatever its own is."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype))


def _keep_in_float32(layer: LoraLayer) -> None:
    layer.cast_input_dtype_enabled = False
    for side in (layer.lora_A, layer.lora_B):
        before = side[_ADAPTER_NAME]
        cast = _CastLinear(before.in_features, before.out_features, bias=False, device="meta")
        cast.weight = nn.Parameter(before.weight.detach().float())
        side[_ADAPTER_NAME] = cast


def _load(checkpoint: Checkpoint, dtype: Dtype) -> CogVideoXImageToVideoPipeline:
    """The pipeline without VAE and text encoder."""
    if dtype == "float16":
        raise ConfigError(
            "model.dtype: must be bfloat16 or float32 for training, got float16, whose gradients "
            "underflow; set model.dtype=bfloat16"
        )
    transformer = load_part(checkpoint, "transformer", dtype)
    pipeline = assemble_pipeline(
        checkpoint, transformer=transformer, vae=None, text_encoder=None, tokenizer=None
    )
    config = pipeline.transformer.config
    kind = pipeline.scheduler.config.prediction_type
    if config.patch_size_t is not None or kind != "v_prediction":
        raise ConfigError(
            f"model.checkpoint: training is for CogVideoX 1.0 (patch_size_t none, v_prediction), "
            f"got patch_size_t {config.patch_size_t}, {kind}; use CogVideoX-5B-I2V"
        )
    return pipeline
