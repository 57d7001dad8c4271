"""Keep the principal components of a VAE's latents, turned to lie as those of another VAE do.

    python -m recipes.nano.reduce_vae VAE PHOTOS LIKE OUTPUT

LIKE is the VAE of a trained transformer: with OUTPUT/vae that transformer goes on learning where
it stands. OUTPUT/vae has as many latent channels as LIKE, and fewer than VAE.
"""

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
    for name in ("vae", "photos", "like", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    a = parser.parse_args()
    reduce_vae(a.vae, a.photos, a.like, a.output, load_recipe(a.config))


def reduce_vae(vae: Path, photos: Path, like: Path, output: Path, recipe: RecipeConfig) -> None:
    """Write OUTPUT/vae. Raises ValueError when LIKE has more latent channels than VAE."""
    model = AutoencoderKLCogVideoX.from_pretrained(vae).float()
    known = AutoencoderKLCogVideoX.from_pretrained(like).float()
    means, log_variances, wanted = latents_of(model, known, photos, recipe)
    basis = aligned_components(means, wanted)
    smaller = reduced(model, basis, log_variances.exp().mean(0))
    smaller.register_to_config(scaling_factor=round(1 / (means @ basis).std().item(), 6))
    smaller.save_pretrained(output / "vae")


@torch.no_grad()
def latents_of(
    model: AutoencoderKLCogVideoX,
    known: AutoencoderKLCogVideoX,
    photos: Path,
    recipe: RecipeConfig,
) -> tuple[Tensor, Tensor, Tensor]:
    """Means and log variances of `model`, [places, channels], and means of `known`."""
    torch.manual_seed(recipe.seed)
    make_fast(model)
    make_fast(known)
    size = (recipe.photos.height, recipe.photos.width)
    crops = load_crops(photos / "train", size, 1, recipe.seed)
    crops = crops[torch.randperm(len(crops))[:NUM_CLIPS]]
    found: list[tuple[Tensor, ...]] = []
    for some in crops.split(CLIPS_AT_ONCE):
        times = torch.arange(NUM_FRAMES).expand(len(some), -1) / (recipe.num_frames - 1)
        clips = render(some, any_path(len(some), times), (recipe.height, recipe.width))
        moments = [_channels_last(vae._encode(clips)) for vae in (model, known)]
        found.append((*moments[0].chunk(2, dim=1), moments[1].chunk(2, dim=1)[0]))
    means, log_variances, wanted = (torch.cat(parts) for parts in zip(*found, strict=True))
    return means, log_variances, wanted


def aligned_components(latents: Tensor, wanted: Tensor) -> Tensor:
    """An orthonormal basis [channels, kept] of the most energy in `latents` [places, channels].

    Turned so that the latents in it come nearest to `wanted` [places, kept] (orthogonal Procrustes,
    Schönemann 1966). Raises ValueError when `wanted` has more channels.
    """
    kept = wanted.shape[1]
    if kept > latents.shape[1]:
        raise ValueError(f"{kept} latent channels cannot be kept of {latents.shape[1]}")
    _, vectors = torch.linalg.eigh(latents.T @ latents)
    components = vectors.flip(1)[:, :kept]
    left, _, right = torch.linalg.svd((latents @ components).T @ wanted)
    turned: Tensor = components @ left @ right
    return turned


def reduced(
    model: AutoencoderKLCogVideoX, basis: Tensor, variance: Tensor
) -> AutoencoderKLCogVideoX:
    """The VAE whose latents are those of `model` in `basis` [channels, kept].

    The posterior's variance does not turn with the latents; it becomes the average, from the
    `variance` [channels] of `model`.
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


def _channels_last(moments: Tensor) -> Tensor:
    return moments.movedim(1, -1).flatten(0, -2)


if __name__ == "__main__":
    main()
