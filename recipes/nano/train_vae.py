"""Train the VAE on stills, then on short clips of every motion."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX
from torch import Tensor
from torch.nn import functional as F

from recipes.nano.camera import Path as CameraPath
from recipes.nano.camera import any_path, render
from recipes.nano.config import RecipeConfig, load_recipe
from recipes.nano.fast_vae import make_fast
from recipes.nano.growing import grown
from recipes.nano.master_weights import MasterWeights
from recipes.nano.photos import load_crops, training_crops
from recipes.nano.training_run import Ranks, TrainingRun, cosine, stage_parser

CYCLE = ("clip", "still", "long", "still")
WINDOW = (96, 160)  # of clips, before whole frames
KL_WEIGHT = 2e-4
STILL_LATENT_WEIGHT = 0.05  # frames that do not change should have latents that do not
WARPED_SHARE = 0.2  # of the clips: a warped latent must decode to the warped picture
MAX_LATENT_NOISE = 0.1
CLOSE_UPS = 0.5  # share of the stills that stay as near as their photos
FURTHEST = 0.6  # log scale of the others: their small detail is what costs a codec most
MOMENTS = ("encoder.conv_out.conv.weight", "encoder.conv_out.conv.bias")  # means, log variances
NEW_LOG_VARIANCE = -4.0  # of latent channels that a smaller VAE did not have


def main() -> None:
    """Parse the command line and train."""
    parser = stage_parser(__doc__, "photos", "output")
    parser.add_argument("--begin-with", type=Path, help="a VAE folder to initialise from")
    a = parser.parse_args()
    train(a.photos, a.output, load_recipe(a.config), a.limit_s, a.begin_with)


def train(
    photos: Path,
    output: Path,
    recipe: RecipeConfig,
    limit_s: float = math.inf,
    start: Path | None = None,
) -> bool:
    """Train until done or `limit_s`; returns whether it is done, and then OUTPUT/vae is written.

    Resumes from OUTPUT/state.pt.
    """
    ranks = Ranks.join()
    torch.manual_seed(recipe.seed)
    vae = make_vae(recipe)
    if start:
        begin_with(vae, start)
    make_fast(vae).to(ranks.device, ranks.dtype)
    crops = training_crops(photos, recipe, ranks.device)
    weights = MasterWeights(
        dict(vae.named_parameters()),
        learning_rate=recipe.vae.learning_rate,
        muon_learning_rate=recipe.vae.muon_learning_rate,
        by_muon=lambda name, weight: recipe.vae.muon_learning_rate > 0 and _is_inner_kernel(weight),
    )
    run = TrainingRun(output, weights, ranks, recipe.vae.num_steps, recipe.seed, limit_s)
    stage = Stage(vae, crops, recipe)
    for step in run.steps():
        loss, error = stage.loss(step)
        loss.backward()
        norm = weights.step(stage.rate(step))
        kind = stage.kind(step)
        run.log(loss=loss, norm=norm, **{f"{kind}_psnr": psnr(error)})
    if run.finished and ranks.first:
        vae.float()
        weights.put_averages()
        finish(vae.state_dict(), recipe, photos, output, ranks.device)
    return run.finished


def make_vae(recipe: RecipeConfig) -> AutoencoderKLCogVideoX:
    """The VAE with random weights."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        temporal_compression_ratio=4,
        sample_height=recipe.height,
        sample_width=recipe.width,
        scaling_factor=1.0,
        **recipe.vae.architecture,
    )


def begin_with(vae: AutoencoderKLCogVideoX, start: Path) -> None:
    """Load the VAE of `start`, which may have fewer latent channels; new ones start random."""
    fresh = {name: value.clone() for name, value in vae.state_dict().items()}
    old = AutoencoderKLCogVideoX.from_pretrained(start)
    vae.load_state_dict(grown(old.state_dict(), fresh, MOMENTS))
    known, channels = old.config.latent_channels, vae.config.latent_channels
    with torch.no_grad():
        moments = vae.encoder.conv_out.conv
        moments.weight[known:channels] = fresh[MOMENTS[0]][known:channels]
        moments.bias[channels + known :] = NEW_LOG_VARIANCE


@dataclass
class Stage:
    """The batch and the loss of each step."""

    vae: AutoencoderKLCogVideoX
    crops: Tensor
    recipe: RecipeConfig

    def kind(self, step: int) -> str:
        return "still" if step < self.recipe.vae.still_steps else CYCLE[step % len(CYCLE)]

    def rate(self, step: int) -> float:
        config = self.recipe.vae
        return min(1.0, (step + 1) / config.warm_up_steps) * cosine(step / config.num_steps)

    def loss(self, step: int) -> tuple[Tensor, Tensor]:
        """The loss and the mean squared error of the step's batch."""
        progress = step / self.recipe.vae.num_steps
        kind, whole = self.kind(step), progress >= self.recipe.vae.whole_frames_from
        pixels = self._batch(kind, whole)
        texture = self.recipe.vae.texture if progress >= self.recipe.vae.texture_from else 0.0
        return _objective(self.vae, pixels, texture, self.recipe.vae.first_frame_error)

    def _batch(self, kind: str, whole: bool) -> Tensor:
        config, device = self.recipe.vae, self.crops.device
        count, num_frames = {
            "still": (config.still_batch, 1),
            "clip": (config.clip_batch, 9),
            "long": (config.long_clip_batch, 17),
        }[kind]
        stride = torch.randint(1, 4, (count, 1), device=device)
        stride[-1] = 0
        times = stride * torch.arange(num_frames, device=device) / (self.recipe.num_frames - 1)
        photos = self.crops[torch.randint(len(self.crops), (count,), device=device)]
        photos = torch.where(_coin(count, 0.5, device), photos.flip(3), photos)
        whole_size = (self.recipe.height, self.recipe.width)
        size = whole_size if whole or kind == "still" else WINDOW
        window = _window(count, size, whole_size, device)
        path = from_further(count, device) if kind == "still" else any_path(count, times)
        return _relit(render(photos, path, size, window))


def _is_inner_kernel(weight: Tensor) -> bool:
    """Whether a weight is the kernel of a convolution between hidden layers, whose matrix has no
    small side.
    """
    return weight.ndim == 5 and min(weight.shape[:2]) > 3 and weight.shape[2] == 3


def from_further(count: int, device: torch.device) -> CameraPath:
    """Camera distances for stills: some show the photo as it is, others more of it and smaller,
    mirrored.
    """
    draw = torch.rand(count, 1, device=device)
    at_photo = torch.zeros_like(draw)
    log_scale = FURTHEST * (draw - CLOSE_UPS).clamp(min=0) / (1 - CLOSE_UPS)
    return CameraPath(log_scale, at_photo, at_photo, at_photo, at_photo)


def _objective(
    vae: AutoencoderKLCogVideoX, pixels: Tensor, texture: float, first_frame_error: float
) -> tuple[Tensor, Tensor]:
    """The loss and the mean squared error per value in -1..1, of [count, 3, frames, h, w]."""
    mean, log_variance = vae._encode(pixels.to(vae.dtype)).float().chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    strength = MAX_LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, 1, device=latents.device)
    latents = latents + strength * torch.randn_like(latents)
    latents, target = _some_warped(latents, pixels)
    decoded = vae._decode(latents.to(vae.dtype)).sample.float()
    loss = reconstruction_loss(decoded, target, texture, first_frame_error)
    loss = loss + KL_WEIGHT * 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    if mean.shape[2] > 1:  # the last clip of a batch stands still
        loss = loss + STILL_LATENT_WEIGHT * mean[-1:].diff(dim=2).square().mean()
    return loss, F.mse_loss(decoded.detach().clamp(-1, 1), target)


def _window(
    count: int, size: tuple[int, int], whole: tuple[int, int], device: torch.device
) -> Tensor:
    """Left, top, width and height of a random part of each frame, in fractions."""
    high, wide = size[0] / whole[0], size[1] / whole[1]
    corner = torch.rand(count, 2, device=device) * torch.tensor([1 - wide, 1 - high], device=device)
    extent = torch.tensor([wide, high], device=device).expand(count, 2)
    return torch.cat([corner, extent], dim=1)


def _relit(pixels: Tensor) -> Tensor:
    """Change exposure and tint of a quarter of the clips."""
    count, device = len(pixels), pixels.device
    gain = 0.6 + 0.6 * torch.rand(count, 1, 1, 1, 1, device=device)
    tint = 0.25 * (2 * torch.rand(count, 3, 1, 1, 1, device=device) - 1)
    chosen = _coin(count, 0.25, device)[..., None]
    return torch.where(chosen, (pixels * gain + tint).clamp(-1, 1), pixels)


def _coin(count: int, probability: float, device: torch.device) -> Tensor:
    return torch.rand(count, 1, 1, 1, device=device) < probability


def _some_warped(latents: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Crop and enlarge a share of the clips, so that latents transform as images do."""
    count, device = math.ceil(WARPED_SHARE * len(latents)), latents.device
    scale = 0.8 + 0.2 * torch.rand(count, device=device)
    shift = (1 - scale)[:, None] * (2 * torch.rand(count, 2, device=device) - 1)
    theta = torch.cat([torch.diag_embed(scale[:, None].expand(-1, 2)), shift[..., None]], dim=2)

    def warp(values: Tensor) -> Tensor:
        part = values[:count]
        grid = F.affine_grid(theta, [count, 1, *part.shape[3:]], align_corners=False)
        flat = F.grid_sample(part.flatten(1, 2), grid, align_corners=False, padding_mode="border")
        return torch.cat([flat.unflatten(1, part.shape[1:3]), values[count:]])

    return warp(latents), warp(pixels)


def reconstruction_loss(
    decoded: Tensor, target: Tensor, texture: float, first_frame_error: float
) -> Tensor:
    """L1, L2, edges at two scales, SSIM and change over time.

    `first_frame_error` weights the L2 of the first frame, which viewers compare with the photo;
    `texture` weights the amount of texture in later frames. Both clips are [num_clips, 3,
    num_frames, height, width] in -1..1.
    """
    loss = F.l1_loss(decoded, target) + F.mse_loss(decoded, target)
    loss = loss + first_frame_error * F.mse_loss(decoded[:, :, 0], target[:, :, 0])
    if decoded.shape[2] > 1:
        loss = loss + 0.4 * F.l1_loss(decoded.diff(dim=2), target.diff(dim=2))
    made, wanted = (clip.transpose(1, 2).flatten(0, 1) for clip in (decoded, target))
    loss = loss + 0.5 * _edge_loss(made, wanted) + 0.15 * (1 - _ssim(made, wanted))
    loss = loss + 0.5 * _edge_loss(F.avg_pool2d(made, 2), F.avg_pool2d(wanted, 2))
    if texture and decoded.shape[2] > 1:
        later = decoded[:, :, 1:].flatten(0, 1), target[:, :, 1:].flatten(0, 1)
        loss = loss + texture * F.l1_loss(fine_energy(later[0]), fine_energy(later[1]))
    return loss


def _edge_loss(made: Tensor, wanted: Tensor) -> Tensor:
    across = F.l1_loss(made.diff(dim=-1), wanted.diff(dim=-1))
    return across + F.l1_loss(made.diff(dim=-2), wanted.diff(dim=-2))


def _ssim(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean structural similarity (Wang et al. 2004) over 7x7 boxes, for values in -1..1."""
    mean_made, mean_wanted = F.avg_pool2d(made, 7, 1), F.avg_pool2d(wanted, 7, 1)
    variance_made = F.avg_pool2d(made * made, 7, 1) - mean_made**2
    variance_wanted = F.avg_pool2d(wanted * wanted, 7, 1) - mean_wanted**2
    covariance = F.avg_pool2d(made * wanted, 7, 1) - mean_made * mean_wanted
    light = (2 * mean_made * mean_wanted + 4e-4) / (mean_made**2 + mean_wanted**2 + 4e-4)
    contrast = (2 * covariance + 3.6e-3) / (variance_made + variance_wanted + 3.6e-3)
    return (light * contrast).mean()


def fine_energy(pictures: Tensor) -> Tensor:
    """Root mean square of the detail that a 3x3 blur removes, over 8x8 boxes."""
    fine = pictures - F.avg_pool2d(pictures, 3, 1, padding=1, count_include_pad=False)
    return (F.avg_pool2d(fine**2, 8) + 1e-5).sqrt()


def finish(
    state: dict[str, Tensor],
    recipe: RecipeConfig,
    photos: Path,
    output: Path,
    device: torch.device,
) -> None:
    """Write OUTPUT/vae with the weights `state`, and OUTPUT/vae.json with its measurements."""
    vae = make_vae(recipe)
    vae.load_state_dict(state)
    report = report_on(vae.to(device), recipe, photos, output)
    vae.register_to_config(scaling_factor=round(1 / report["latent_std"], 6))
    vae.save_pretrained(output / "vae")


def report_on(
    vae: AutoencoderKLCogVideoX, recipe: RecipeConfig, photos: Path, output: Path
) -> dict[str, float]:
    """Measure the held-out photos; the result is printed and written to OUTPUT/vae.json."""
    size = (recipe.photos.height, recipe.photos.width)
    held_out = load_crops(photos / "held_out", size, 1).to(vae.device)
    report = measure(vae.eval(), held_out, recipe)
    (output / "vae.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report), flush=True)
    return report


@torch.no_grad()
def measure(
    vae: AutoencoderKLCogVideoX, held_out: Tensor, recipe: RecipeConfig
) -> dict[str, float]:
    """PSNR of stills and whole clips [dB], sharpness, and the latents' standard deviation."""
    torch.manual_seed(recipe.seed)
    stills: list[Tensor] = []
    clips: list[Tensor] = []
    sharpness, latents = [], []
    for photo in held_out.split(1):
        for num_frames, errors in ((1, stills), (recipe.num_frames, clips)):
            times = torch.linspace(0, 1, num_frames, device=photo.device)[None]
            pixels = render(photo, any_path(1, times), (recipe.height, recipe.width))
            latent = vae.encode(pixels).latent_dist.mode()
            decoded = vae.decode(latent).sample.clamp(-1, 1)
            errors.append(psnr(F.mse_loss(decoded, pixels)))
            if num_frames == 1:
                sharpness.append(_laplacian_variance(decoded) / _laplacian_variance(pixels))
            else:
                latents.append(latent)
    return {
        "still_psnr_db": torch.stack(stills).mean().item(),
        "least_still_psnr_db": torch.stack(stills).min().item(),
        "clip_psnr_db": torch.stack(clips).mean().item(),
        "still_sharpness": torch.stack(sharpness).median().item(),
        "latent_std": torch.cat(latents).std().item(),
    }


def psnr(mean_square_error: Tensor) -> Tensor:
    return 10 * torch.log10(4 / mean_square_error.clamp(min=1e-10))


def _laplacian_variance(clip: Tensor) -> Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=clip.device)
    grey = (clip * weights[:, None, None, None]).sum(1).transpose(0, 1)
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], device=clip.device)
    return F.conv2d(grey, kernel[None, None]).var()


if __name__ == "__main__":
    main()
