"""Resamples learned positional embeddings for a shape that the checkpoint was not trained for.

diffusers rejects another frame size, and for another number of frames silently replaces the learned
table with sinusoids. The resampled table is cropped in time and interpolated in space; the model
was not trained with it, and the record says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import CogVideoXTransformer3DModel
from torch.nn import functional

from vidgen_ray.model.checkpoint import Checkpoint

_TABLE = "patch_embed.pos_embedding"


@contextmanager
def positions_for(
    transformer: CogVideoXTransformer3DModel,
    checkpoint: Checkpoint,
    num_frames: int,
    height: int,
    width: int,
) -> Iterator[None]:
    """Within the context the transformer accepts clips of this shape, in frames and pixels."""
    trained = (checkpoint.num_frames, checkpoint.height, checkpoint.width)
    embed = transformer.patch_embed
    if (num_frames, height, width) == trained or not embed.use_learned_positional_embeddings:
        yield
        return
    table = _resample(
        checkpoint.read_weight("transformer", _TABLE),
        transformer,
        num_frames,
        height // 16,
        width // 16,
    )

    def resampled(*_shape: int, device: torch.device) -> torch.Tensor:
        return table.to(device)

    # diffusers calls this method for every shape but the trained one.
    embed._get_positional_embeddings = resampled
    embed.use_learned_positional_embeddings = False
    was_fixed, embed.use_positional_embeddings = embed.use_positional_embeddings, True
    try:
        yield
    finally:
        embed.use_positional_embeddings = was_fixed
        embed.use_learned_positional_embeddings = True
        del embed._get_positional_embeddings


def _resample(
    table: torch.Tensor,
    transformer: CogVideoXTransformer3DModel,
    num_frames: int,
    rows: int,
    columns: int,
) -> torch.Tensor:
    """Table [1, text + T*H*W, D] of the trained shape -> [1, text + t*rows*columns, D]."""
    config = transformer.config
    trained_rows = config.sample_height // config.patch_size
    trained_columns = config.sample_width // config.patch_size
    text, video = table.float().tensor_split([config.max_text_seq_length], dim=1)
    grid = video.reshape(1, -1, trained_rows, trained_columns, video.shape[-1])
    num_latent_frames = (num_frames - 1) // config.temporal_compression_ratio + 1
    kept = grid[:, :num_latent_frames].permute(0, 4, 1, 2, 3)
    size = (num_latent_frames, rows, columns)
    resampled = functional.interpolate(kept, size, mode="trilinear", align_corners=False)
    video = resampled.permute(0, 2, 3, 4, 1).flatten(1, 3)
    return torch.cat([text, video], dim=1).to(table.dtype)
