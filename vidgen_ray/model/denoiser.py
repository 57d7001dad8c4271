"""The forward pass of the CogVideoX transformer in `mode: optimized`."""

from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from vidgen_ray.errors import ConfigError
from vidgen_ray.model.attention import JointAttention, joint_rotary
from vidgen_ray.model.attention_kernels import EffectiveAttention
from vidgen_ray.model.parallel import RankMesh, RotaryTables
from vidgen_ray.model.step_cache import StepCache


class Denoiser:
    """The forward pass of one transformer, with its per-clip state.

    It replaces `CogVideoXTransformer3DModel.forward` and calls the same modules, which allows a
    step cache between the blocks, CFG and sequence parallelism around them, and block-wise
    compilation.

    `num_computed` counts the steps of the clip that ran all blocks.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        attention: EffectiveAttention,
        step_cache: float | None = None,
        mesh: RankMesh | None = None,
    ) -> None:
        """Replace the forward pass of `transformer`. Raises ConfigError for CogVideoX 1.5."""
        config = transformer.config
        if config.patch_size_t is not None or config.ofs_embed_dim is not None:
            raise ConfigError(
                "mode: optimized supports CogVideoX 1.0 image-to-video only, and this checkpoint "
                "is of another version; use mode: baseline"
            )
        if mesh:
            mesh.check_heads(config.num_attention_heads)
        self._transformer = transformer
        self._mesh = mesh
        all_reduce = mesh.all_reduce_sum if mesh else None
        self.cache = StepCache(step_cache, all_reduce) if step_cache else None
        self.num_computed = 0
        ulysses = mesh.ulysses if mesh and mesh.ulysses.size > 1 else None
        transformer.set_attn_processor(JointAttention(attention, ulysses))
        transformer.forward = self.forward
        # diffusers calls this at the end of every clip, also after an exception.
        transformer._reset_stateful_cache = self._reset_cache

    def begin(self) -> None:
        """Reset the counter and the step cache for a new clip."""
        self.num_computed = 0
        self._reset_cache()

    def _reset_cache(self, *_: Any) -> None:
        if self.cache:
            self.cache.reset()

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        ofs: torch.Tensor | None = None,
        image_rotary_emb: RotaryTables | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor] | Transformer2DModelOutput:
        """Predicted velocity [B, F, C', h, w] from latents [B, F, C, h, w] and text [B, T, D]."""
        if self._mesh is None:
            output = self._forward(hidden_states, encoder_hidden_states, timestep, image_rotary_emb)
        else:
            shard = self._mesh.cfg.shard
            output = self._forward(
                shard(hidden_states),
                shard(encoder_hidden_states),
                shard(timestep),
                image_rotary_emb,
            )
            output = self._mesh.cfg.gather(output, len(hidden_states))
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _forward(
        self,
        latents: torch.Tensor,
        text: torch.Tensor,
        timestep: torch.Tensor,
        rotary: RotaryTables | None,
    ) -> torch.Tensor:
        """`forward` on the part of the batch that this rank computes."""
        transformer = self._transformer
        batch, num_frames, _, height, width = latents.shape
        time = transformer.time_proj(timestep).to(latents.dtype)
        time = transformer.time_embedding(time, None)
        num_text = text.shape[1]
        tokens = transformer.patch_embed(text, latents)
        text, video = tokens[:, :num_text], tokens[:, num_text:]
        num_video = video.shape[1]
        if self._mesh:
            text, video, rotary = self._mesh.ulysses.shard(text, video, rotary)
        video = self._run_blocks(text, video, time, joint_rotary(rotary, text.shape[1]))
        video = transformer.norm_out(transformer.norm_final(video), temb=time)
        video = transformer.proj_out(video)
        if self._mesh:
            video = self._mesh.ulysses.gather(video, num_video)
        patch = transformer.config.patch_size
        grid = (batch, num_frames, height // patch, width // patch, -1, patch, patch)
        velocity: torch.Tensor = (
            video.reshape(grid).permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
        )
        return velocity

    def _run_blocks(
        self,
        text: torch.Tensor,
        video: torch.Tensor,
        time: torch.Tensor,
        rotary: RotaryTables | None,
    ) -> torch.Tensor:
        """Video tokens [B, S, D] after all blocks, or after the first plus the cached residual.

        Takes text [B, T, D], video [B, S, D], time embedding [B, E] and rotary tables of T + S
        tokens.
        """
        blocks = self._transformer.transformer_blocks
        after_first: torch.Tensor
        if self.cache is None:
            self.num_computed += 1
            for block in blocks:
                video, text = block(video, text, time, rotary)
            return video
        before = video
        after_first, text = blocks[0](video, text, time, rotary)
        first = after_first - before
        rest = self.cache.lookup(first)
        if rest is None:
            self.num_computed += 1
            video = after_first
            for block in blocks[1:]:
                video, text = block(video, text, time, rotary)
            rest = video - after_first
            self.cache.store(first, rest)
        return after_first + rest
