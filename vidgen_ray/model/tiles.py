"""Tiled VAE decoding in parallel: each of diffusers' tiles is decoded by one rank."""

from collections.abc import Callable
from functools import partial

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.vae import DecoderOutput

from vidgen_ray.model.parallel import RankMesh


def parallelize_tiled_decode(vae: AutoencoderKLCogVideoX, mesh: RankMesh) -> None:
    """Distribute the tiles of `vae` over the ranks, with the same frames as on one rank."""

    def tiled_decode(z: torch.Tensor, return_dict: bool = True) -> object:
        corners = _corners(vae, z)
        tasks: list[Callable[[], torch.Tensor]] = [
            partial(_decode_tile, vae, z, row, column) for row, column in corners
        ]
        tiles = dict(zip(corners, mesh.distribute(tasks), strict=True))
        frames = _blend(vae, tiles)
        return DecoderOutput(sample=frames) if return_dict else (frames,)

    vae.tiled_decode = tiled_decode


def _strides(vae: AutoencoderKLCogVideoX) -> tuple[int, int]:
    return (
        int(vae.tile_latent_min_height * (1 - vae.tile_overlap_factor_height)),
        int(vae.tile_latent_min_width * (1 - vae.tile_overlap_factor_width)),
    )


def _corners(vae: AutoencoderKLCogVideoX, z: torch.Tensor) -> list[tuple[int, int]]:
    """Row and column of each tile's top left corner in latents z [B, c, f, h, w]."""
    down, across = _strides(vae)
    height, width = z.shape[-2:]
    return [(row, column) for row in range(0, height, down) for column in range(0, width, across)]


def _decode_tile(
    vae: AutoencoderKLCogVideoX, z: torch.Tensor, row: int, column: int
) -> torch.Tensor:
    """Frames [B, C, F, H, W] of the tile of z [B, c, f, h, w] with this top left corner."""
    tile = z[
        ..., row : row + vae.tile_latent_min_height, column : column + vae.tile_latent_min_width
    ]
    # `_decode` does not tile again: a tile is below its size limit.
    frames: torch.Tensor = vae._decode(tile, return_dict=False)[0]
    return frames


def _blend(vae: AutoencoderKLCogVideoX, tiles: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    """One video [B, C, F, H, W] of tiles keyed by their corner in the latents, blended as in
    diffusers."""
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
