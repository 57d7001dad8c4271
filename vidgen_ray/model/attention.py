"""The joint text-video attention processor of CogVideoX blocks, written to fuse when compiled."""

from typing import Any

import torch

from vidgen_ray.model.attention_kernels import EffectiveAttention, attention_kernel
from vidgen_ray.model.parallel import RotaryTables, UlyssesGroup


class JointAttention:
    """Attention processor of a CogVideoX block; text tokens precede video tokens.

    diffusers' own processor rotates a slice of the sequence in place, which torch.compile cannot
    fuse. Here `image_rotary_emb` is the result of `joint_rotary`, which gives the text tokens an
    identity rotation, so that norm, rotary embedding and layout change compile to one kernel.

    With `group`, each rank has a shard of the tokens before and after attention and a shard of the
    heads during it (DeepSpeed-Ulysses, arXiv:2309.14509).
    """

    def __init__(self, name: EffectiveAttention, group: UlyssesGroup | None = None) -> None:
        self._kernel = attention_kernel(name)
        self._group = group

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: RotaryTables | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video [B, S, D] and text [B, T, D] to the same shapes."""
        num_text = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        heads = (attn.heads, -1)
        scatter = self._group.start_scatter_heads if self._group else _identity
        # Each all-to-all is in flight while the next projection is computed.
        value = scatter(attn.to_v(tokens).unflatten(2, heads))
        query = scatter(
            _rotate(attn.norm_q(attn.to_q(tokens).unflatten(2, heads)), image_rotary_emb)
        )
        key = scatter(_rotate(attn.norm_k(attn.to_k(tokens).unflatten(2, heads)), image_rotary_emb))
        if self._group is None:
            attended = self._kernel(query, key, value)
        else:
            attended = self._group.attend(self._kernel, query, key, value, num_text)
        tokens = attn.to_out[0](attended.flatten(2))
        return tokens[:, num_text:], tokens[:, :num_text]


def joint_rotary(video: RotaryTables | None, num_text: int) -> RotaryTables | None:
    """Rotary tables [S, head_dim] of video tokens, extended to [num_text + S, head_dim] by an
    identity rotation (cos 1, sin 0) of the text tokens."""
    if video is None:
        return None
    cos, sin = video
    shape = (num_text, cos.shape[1])
    return torch.cat([cos.new_ones(shape), cos]), torch.cat([sin.new_zeros(shape), sin])


def _identity(tokens: torch.Tensor) -> torch.Tensor:
    return tokens


def _rotate(tokens: torch.Tensor, rotary: RotaryTables | None) -> torch.Tensor:
    """Apply rotary embeddings to tokens [B, S, H, D], in float32 and on adjacent pairs of channels
    as diffusers does."""
    if rotary is None:
        return tokens
    cos, sin = (table[None, :, None, :] for table in rotary)
    real, imaginary = tokens.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    return (tokens.float() * cos + rotated.float() * sin).to(tokens.dtype)
