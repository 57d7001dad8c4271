"""Tiled decoding shared out among ranks: diffusers' own tiles, each decoded once by one rank."""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.vae import DecoderOutput

from vidgen_ray.model.parallel import Ranks


def share_tiles(vae: AutoencoderKLCogVideoX, ranks: Ranks) -> None:
    """Let the ranks decode `vae`'s tiles together; the frames are those of one rank alone."""

    def tiled_decode(z: torch.Tensor, return_dict: bool = True) -> object:
        corners = _corners(vae, z)
        works: list[Callable[[], torch.Tensor]] = [
            partial(_decode_tile, vae, z, row, column) for row, column in corners
        ]
        tiles = dict(zip(corners, ranks.share_out(works), strict=True))
        frames = _blend(vae, tiles)
        return DecoderOutput(sample=frames) if return_dict else (frames,)

    vae.tiled_decode = tiled_decode


def _strides(vae: AutoencoderKLCogVideoX) -> tuple[int, int]:
    return (
        int(vae.tile_latent_min_height * (1 - vae.tile_overlap_factor_height)),
        int(vae.tile_latent_min_width * (1 - vae.tile_overlap_factor_width)),
    )


def _corners(vae: AutoencoderKLCogVideoX, z: torch.Tensor) -> list[tuple[int, int]]:
    down, across = _strides(vae)
    height, width = z.shape[-2:]
    return [(row, column) for row in range(0, height, down) for column in range(0, width, across)]


def _decode_tile(
    vae: AutoencoderKLCogVideoX, z: torch.Tensor, row: int, column: int
) -> torch.Tensor:
    tile = z[
        ..., row : row + vae.tile_latent_min_height, column : column + vae.tile_latent_min_width
    ]
    # A tile is no larger than what is decoded whole.
    frames: torch.Tensor = vae._decode(tile, return_dict=False)[0]
    return frames


def _blend(vae: AutoencoderKLCogVideoX, tiles: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    """Tiles by their corner in latents to one video [B, C, F, H, W], as diffusers blends them."""
    down, across = _strides(vae)
    blend_down = int(vae.tile_sample_min_height * vae.tile_overlap_factor_height)
    blend_across = int(vae.tile_sample_min_width * vae.tile_overlap_factor_width)
    height = vae.tile_sample_min_height - blend_down
    width = vae.tile_sample_min_width - blend_across
    rows: dict[int, list[torch.Tensor]] = {}
    for (row, column), tile in tiles.items():
        if row:
            tile = vae.blend_v(tiles[row - down, column], tile, blend_down)
        if column:
            tile = vae.blend_h(tiles[row, column - across], tile, blend_across)
        rows.setdefault(row, []).append(tile[..., :height, :width])
    return torch.cat([torch.cat(row, dim=4) for row in rows.values()], dim=3)
