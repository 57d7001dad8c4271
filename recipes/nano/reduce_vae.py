"""Reduce a VAE's latents to their principal components, optionally aligned with another VAE's."""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor

from recipes.nano.camera import any_path, render
from recipes.nano.config import DEFAULT, RecipeConfig, load_recipe
from recipes.nano.fast_vae import make_fast
from recipes.nano.photos import load_crops

NUM_CLIPS = 64  # whose latents are compared
NUM_FRAMES = 9
CLIPS_AT_ONCE = 4


def main() -> None:
    """Parse the command line and reduce."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("vae", "photos", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument("--like", type=Path, help="VAE folder whose latents to resemble")
    a = parser.parse_args()
    reduce_vae(a.vae, a.photos, a.output, load_recipe(a.config), a.like)


def reduce_vae(
    vae: Path, photos: Path, output: Path, recipe: RecipeConfig, like: Path | None = None
) -> None:
    """Write OUTPUT/vae with `kept_channels` latent channels.

    Aligned with the VAE `like` of a checkpoint, its latents suit that checkpoint's transformer,
    which can be trained on. Raises ValueError if `vae` has fewer channels.
    """
    model = AutoencoderKLCogVideoX.from_pretrained(vae).float()
    means, log_variances = latents_of(model, photos, recipe)
    basis = components(means, recipe.vae.kept_channels)
    if like:
        known = AutoencoderKLCogVideoX.from_pretrained(like).float()
        basis = basis @ rotation(means @ basis, latents_of(known, photos, recipe)[0])
    smaller = reduced(model, basis, log_variances.exp().mean(0))
    smaller.register_to_config(scaling_factor=round(1 / (means @ basis).std().item(), 6))
    smaller.save_pretrained(output / "vae")


@torch.no_grad()
def latents_of(
    vae: AutoencoderKLCogVideoX, photos: Path, recipe: RecipeConfig
) -> tuple[Tensor, Tensor]:
    """Means and log-variances, [places, channels], of the latents of a fixed set of short clips."""
    torch.manual_seed(recipe.seed)
    make_fast(vae)
    size = (recipe.photos.height, recipe.photos.width)
    crops = load_crops(photos / "train", size, 1, recipe.seed)
    found = []
    for some in crops[torch.randperm(len(crops))[:NUM_CLIPS]].split(CLIPS_AT_ONCE):
        times = torch.arange(NUM_FRAMES).expand(len(some), -1) / (recipe.num_frames - 1)
        clips = render(some, any_path(len(some), times), (recipe.height, recipe.width))
        found.append(vae._encode(clips).movedim(1, -1).flatten(0, -2))
    means, log_variances = torch.cat(found).chunk(2, dim=1)
    return means, log_variances


def components(latents: Tensor, kept: int) -> Tensor:
    """The orthonormal basis [channels, kept] with most of the energy of `latents` [places,
    channels].

    Energy, not variance: a decoder pads its input with zeros, so zero must map to zero. Raises
    ValueError if there are fewer channels.
    """
    if kept > latents.shape[1]:
        raise ValueError(f"{kept} latent channels cannot be kept of {latents.shape[1]}")
    vectors: Tensor = torch.linalg.eigh(latents.T @ latents).eigenvectors
    return vectors.flip(1)[:, :kept]


def rotation(latents: Tensor, wanted: Tensor) -> Tensor:
    """The rotation that brings `latents` closest to `wanted`, both [places, channels].

    Orthogonal Procrustes (Schönemann 1966).
    """
    left, _, right = torch.linalg.svd(latents.T @ wanted)
    turned: Tensor = left @ right
    return turned


def reduced(
    model: AutoencoderKLCogVideoX, basis: Tensor, variance: Tensor
) -> AutoencoderKLCogVideoX:
    """The VAE whose latents are those of `model` in `basis` [channels, kept].

    The posterior's variance cannot be rotated; it is set to the average of `variance` [channels].
    """
    kept = basis.shape[1]
    smaller = AutoencoderKLCogVideoX.from_config(model.config, latent_channels=kept)
    state = model.state_dict()
    for name, value in state.items():
        if name.startswith("decoder.") and value.ndim == 5 and _sees_latents(name):
            state[name] = torch.einsum("oc...,ck->ok...", value, basis)
    weight, bias = "encoder.conv_out.conv.weight", "encoder.conv_out.conv.bias"
    means = torch.einsum("c...,ck->k...", state[weight].chunk(2)[0], basis)
    state[weight] = torch.cat([means, torch.zeros_like(means)])
    log_variance = ((basis**2).T @ variance).log()
    state[bias] = torch.cat([state[bias].chunk(2)[0] @ basis, log_variance])
    smaller.load_state_dict(state)
    return smaller


def _sees_latents(name: str) -> bool:
    return name.startswith("decoder.conv_in.") or ".conv_y." in name or ".conv_b." in name


if __name__ == "__main__":
    main()
