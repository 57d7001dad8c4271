"""Fit the decoder of a checkpoint to latents that its transformer generates."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXImageToVideoPipeline
from torch import Tensor
from torch.nn import functional as F

from recipes.nano.config import RecipeConfig, VaeConfig, load_recipe
from recipes.nano.fast_vae import make_fast
from recipes.nano.master_weights import MasterWeights
from recipes.nano.photos import training_crops
from recipes.nano.train_transformer import Prompts, render_clips
from recipes.nano.train_vae import Stage, fine_energy, psnr, reconstruction_loss, report_on
from recipes.nano.training_run import Ranks, TrainingRun, cosine, stage_parser

LATENTS_AT_ONCE = 5  # latent frames decoded, in chunks of three and two like a clip's first ones
LATENTS_TO_FIT = 2  # the last of them are fitted; the others are context
COLOUR_SIZE = 4  # pixels across and down over which colours are compared
RECONSTRUCTION = 0.25  # weight of the pixel error: not all detail can be predicted
MADE_AT_ONCE = 16


def main() -> None:
    """Parse the command line and fit."""
    a = stage_parser(__doc__, "photos", "checkpoint", "text", "output").parse_args()
    fit(a.photos, a.checkpoint, a.text, a.output, load_recipe(a.config), a.limit_s)


def fit(
    photos: Path,
    checkpoint: Path,
    text: Path,
    output: Path,
    recipe: RecipeConfig,
    limit_s: float = math.inf,
) -> bool:
    """Fit until done or `limit_s`; returns whether it is done, and then OUTPUT/vae is written.

    A transformer does not predict all detail, and a decoder trained only on the encoder's latents
    renders generated ones too smooth. Half of the steps are those of `train_vae`, which keeps first
    frames as they are; the others decode generated latents and match the true clip's colours and
    amount of texture. The result is interpolated between the old and the fitted decoder by
    `share_of_way` (Wortsman et al. 2022, arXiv:2109.01903), because the fitted one shows a mesh in
    rich texture. The encoder and the latents' scale do not change. Resumes from OUTPUT/state.pt.
    """
    ranks = Ranks.join()
    config = recipe.decoder
    torch.manual_seed(recipe.seed)
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(checkpoint, dtype=ranks.dtype)
    pipeline.to(ranks.device)
    vae = make_fast(pipeline.vae)
    vae.encoder.requires_grad_(False)
    crops = training_crops(photos, recipe, ranks.device)
    made = _generate_clips(pipeline, crops, Prompts(text, ranks.device, dropout=0.0), recipe)
    weights = MasterWeights(
        {f"decoder.{name}": weight for name, weight in vae.decoder.named_parameters()},
        learning_rate=config.learning_rate,
    )
    run = TrainingRun(output, weights, ranks, config.num_steps, recipe.seed, limit_s)
    stage = Stage(vae, crops, recipe.model_copy(update={"vae": _as_in_the_end(recipe)}))
    for step in run.steps():
        if step % 2:
            loss, error = stage.loss(step // 2)
            kind = stage.kind(step // 2)
        else:
            loss, error = made.loss(vae, config.batch, config.texture)
            kind = "made"
        loss.backward()
        rate = min(1.0, (step + 1) / config.warm_up_steps) * cosine(step / config.num_steps)
        norm = weights.step(rate)
        run.log(norm=norm, **{f"{kind}_loss": loss, f"{kind}_psnr": psnr(error)})
    if run.finished and ranks.first:
        _finish(checkpoint, weights.averages, recipe, photos, output, ranks.device)
    return run.finished


def _as_in_the_end(recipe: RecipeConfig) -> VaeConfig:
    """The VAE's configuration of its last training steps."""
    return recipe.vae.model_copy(
        update={"still_steps": 0, "whole_frames_from": 0.0, "texture_from": 0.0}
    )


@dataclass(frozen=True)
class GeneratedClips:
    """Generated latents with the true clips."""

    latents: Tensor  # [num_clips, channels, latent_frames, h, w], as the decoder takes them
    pixels: Tensor  # uint8 [num_clips, 3, num_frames, height, width]

    def loss(
        self, vae: AutoencoderKLCogVideoX, count: int, texture: float
    ) -> tuple[Tensor, Tensor]:
        """The loss and the mean squared error of `count` random parts with preceding frames."""
        length = min(LATENTS_AT_ONCE, self.latents.shape[2])
        chosen = torch.randint(len(self.latents), (count,), device=self.latents.device)
        start = 2 * int(torch.randint((self.latents.shape[2] - length) // 2 + 1, ()))
        past = 4 * (length - LATENTS_TO_FIT) - 3
        latents = self.latents[chosen, :, start : start + length]
        frames = self.pixels[chosen, :, 4 * start + past : 4 * (start + length) - 3]
        wanted = frames.float() / 127.5 - 1
        decoded = vae._decode(latents.to(vae.dtype)).sample.float()[:, :, past:]
        loss = F.l1_loss(_colours(decoded), _colours(wanted))
        loss = loss + RECONSTRUCTION * reconstruction_loss(decoded, wanted, 0.0, 0.0)
        energy, wanted_energy = (fine_energy(clip.flatten(0, 1)) for clip in (decoded, wanted))
        loss = loss + texture * F.l1_loss(energy, wanted_energy)
        return loss, F.mse_loss(decoded.detach().clamp(-1, 1), wanted)


def _colours(clip: Tensor) -> Tensor:
    return F.avg_pool3d(clip, (1, COLOUR_SIZE, COLOUR_SIZE))


@torch.no_grad()
def _generate_clips(
    pipeline: CogVideoXImageToVideoPipeline, crops: Tensor, prompts: Prompts, recipe: RecipeConfig
) -> GeneratedClips:
    pipeline.set_progress_bar_config(disable=True)
    latents, pixels = [], []
    for start in range(0, recipe.decoder.clips, MADE_AT_ONCE):
        count = min(MADE_AT_ONCE, recipe.decoder.clips - start)
        clips, labels = render_clips(crops, count, recipe)
        made = pipeline(
            image=(clips[:, :, 0] + 1) / 2,
            prompt_embeds=pipeline.text_encoder(prompts.sample(labels))[0],
            height=recipe.height,
            width=recipe.width,
            num_frames=recipe.num_frames,
            num_inference_steps=recipe.decoder.num_inference_steps,
            guidance_scale=1.0,
            output_type="latent",
        ).frames
        latents.append(made.transpose(1, 2) / pipeline.vae.config.scaling_factor)
        pixels.append(((clips + 1) * 127.5).round().to(torch.uint8))
    return GeneratedClips(torch.cat(latents), torch.cat(pixels))


def _finish(
    checkpoint: Path,
    decoder: dict[str, Tensor],
    recipe: RecipeConfig,
    photos: Path,
    output: Path,
    device: torch.device,
) -> None:
    """Write OUTPUT/vae with the new decoder, and OUTPUT/vae.json with its measurements."""
    vae = AutoencoderKLCogVideoX.from_pretrained(checkpoint / "vae").float().to(device)
    before = vae.state_dict()
    way = {n: before[n].lerp(w, recipe.decoder.share_of_way) for n, w in decoder.items()}
    vae.load_state_dict(before | way)
    vae.save_pretrained(output / "vae")
    report_on(vae, recipe, photos, output)


if __name__ == "__main__":
    main()
