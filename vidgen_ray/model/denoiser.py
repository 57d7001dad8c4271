"""The transformer's forward pass of the profiles: the same sums as diffusers', open to shortcuts.

It takes the place of `CogVideoXTransformer3DModel.forward`, whose modules it calls. That makes room
for a step cache between the blocks, for several ranks around them, and for blocks that torch
compiles one by one.
"""

from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from vidgen_ray.errors import ConfigError
from vidgen_ray.model.attention import EffectiveAttention, JointAttention, Rotary, joint_rotary
from vidgen_ray.model.parallel import Ranks
from vidgen_ray.model.step_cache import StepCache


class Denoiser:
    """The forward pass of one transformer, and what it counts over a clip."""

    def __init__(
        self,
        transformer: CogVideoXTransformer3DModel,
        attention: EffectiveAttention,
        step_cache: float | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Take over `transformer`. Raises ConfigError for CogVideoX 1.5, which is another pass."""
        config = transformer.config
        if config.patch_size_t is not None or config.ofs_embed_dim is not None:
            raise ConfigError(
                "mode: optimized is for CogVideoX 1.0 image-to-video, and this checkpoint is of "
                "another version; use mode: baseline"
            )
        if ranks:
            ranks.check_heads(config.num_attention_heads)
        self._transformer = transformer
        self._ranks = ranks
        agree = ranks.agree if ranks else None
        self.cache = StepCache(step_cache, agree) if step_cache else None
        self.num_computed = 0
        sequence = ranks.sequence if ranks and ranks.sequence.size > 1 else None
        transformer.set_attn_processor(JointAttention(attention, sequence))
        transformer.forward = self.forward
        # diffusers calls it at the end of every clip, however that ended.
        transformer._reset_stateful_cache = self._forget

    def begin(self) -> None:
        """Begin a clip: counts and caches are those of this one alone."""
        self.num_computed = 0
        self._forget()

    def _forget(self, *_: Any) -> None:
        if self.cache:
            self.cache.reset()

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        timestep_cond: torch.Tensor | None = None,
        ofs: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> tuple[torch.Tensor] | Transformer2DModelOutput:
        """Latents [B, F, C, h, w] and text [B, T, D] to the predicted velocity [B, F, C', h, w]."""
        if self._ranks is None:
            output = self._forward(hidden_states, encoder_hidden_states, timestep, image_rotary_emb)
        else:
            mine = self._ranks.guidance.mine
            output = self._forward(
                mine(hidden_states), mine(encoder_hidden_states), mine(timestep), image_rotary_emb
            )
            output = self._ranks.guidance.gather(output, len(hidden_states))
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)

    def _forward(
        self,
        latents: torch.Tensor,
        text: torch.Tensor,
        timestep: torch.Tensor,
        rotary: Rotary | None,
    ) -> torch.Tensor:
        transformer = self._transformer
        batch, num_frames, _, height, width = latents.shape
        time = transformer.time_proj(timestep).to(latents.dtype)
        time = transformer.time_embedding(time, None)
        num_text = text.shape[1]
        tokens = transformer.patch_embed(text, latents)
        text, video = tokens[:, :num_text], tokens[:, num_text:]
        if self._ranks is None:
            video = self._blocks(text, video, time, joint_rotary(rotary, num_text))
            video = self._project(video, time)
        else:
            sequence, num_video = self._ranks.sequence, video.shape[1]
            shares = sequence.split(text, video, rotary)
            video = self._project(
                self._blocks(shares.text, shares.video, time, shares.rotary), time
            )
            video = sequence.gather(video, num_video)
        patch = transformer.config.patch_size
        grid = (batch, num_frames, height // patch, width // patch, -1, patch, patch)
        velocity: torch.Tensor = (
            video.reshape(grid).permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)
        )
        return velocity

    def _blocks(
        self, text: torch.Tensor, video: torch.Tensor, time: torch.Tensor, rotary: Rotary | None
    ) -> torch.Tensor:
        blocks = self._transformer.transformer_blocks
        after: torch.Tensor
        if self.cache is None:
            self.num_computed += 1
            for block in blocks:
                video, text = block(video, text, time, rotary)
            return video
        before = video
        after, text = blocks[0](video, text, time, rotary)
        first = after - before
        rest = self.cache.lookup(first)
        if rest is None:
            self.num_computed += 1
            video = after
            for block in blocks[1:]:
                video, text = block(video, text, time, rotary)
            rest = video - after
            self.cache.store(first, rest)
        return after + rest

    def _project(self, video: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        transformer = self._transformer
        video = transformer.norm_out(transformer.norm_final(video), temb=time)
        projected: torch.Tensor = transformer.proj_out(video)
        return projected
