"""Train the demo adapter: a LoRA that lets night fall during the clip, whatever the camera does.

    python -m recipes.nano.train_adapter CHECKPOINT PHOTOS OUTPUT

Runs on a CPU in half an hour, on a GPU in a minute. OUTPUT gets pytorch_lora_weights.safetensors,
in the form that diffusers and `--lora` load.
"""

import argparse
import time
from itertools import islice
from pathlib import Path

import torch
from diffusers import CogVideoXImageToVideoPipeline
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from recipes.nano.camera import MOVES, SPEEDS, path_of, render
from recipes.nano.config import DEFAULT, RecipeConfig, load_recipe
from recipes.nano.photos import load_crops
from recipes.nano.prompts import MAX_TOKENS, labelled_prompts
from recipes.nano.train_transformer import velocity_losses
from recipes.nano.training_run import cosine

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
NIGHT = (0.22, 0.28, 0.5)  # of red, green and blue that is left in the end
DUSK = (0.1, 0.8)  # of the clip, from the first to the last change of light
REPORT_EVERY = 10


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("checkpoint", "photos", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--config", type=Path, default=DEFAULT)
    a = parser.parse_args()
    train(a.checkpoint, a.photos, a.output, load_recipe(a.config))


def train(checkpoint: Path, photos: Path, output: Path, recipe: RecipeConfig) -> None:
    """Render night-falling clips, train the LoRA on them, and write it to OUTPUT."""
    config = recipe.adapter
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(checkpoint, dtype=torch.bfloat16)
    pipeline.to(device)
    torch.manual_seed(recipe.seed)
    latents, image_latents, embeds = _clips(pipeline, photos, recipe, device)
    transformer = pipeline.transformer.requires_grad_(False)
    lora = LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=TARGETS)
    transformer.add_adapter(lora)
    cast_training_params(transformer, dtype=torch.float32)
    weights = [weight for weight in transformer.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=0.0)
    started = time.monotonic()
    for step in range(config.num_steps):
        chosen = torch.randint(len(latents), (config.batch,))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * cosine(step / config.num_steps)
        with torch.autocast(device.type, torch.bfloat16):
            losses, _ = velocity_losses(
                transformer, latents[chosen], image_latents[chosen], embeds[chosen]
            )
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % REPORT_EVERY == 0:
            print(
                f"{step} {time.monotonic() - started:.0f} s {losses.mean().item():.4f}", flush=True
            )
    state = {name: weight.half() for name, weight in get_peft_model_state_dict(transformer).items()}
    CogVideoXImageToVideoPipeline.save_lora_weights(output, transformer_lora_layers=state)


@torch.no_grad()
def _clips(
    pipeline: CogVideoXImageToVideoPipeline,
    photos: Path,
    recipe: RecipeConfig,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, image latents and prompt embeddings of clips on which night falls."""
    size = (recipe.photos.height, recipe.photos.width)
    crops = load_crops(photos / "train", size, 1, recipe.seed)
    prompts = list(islice(labelled_prompts(recipe.seed, ()), recipe.adapter.num_clips))
    scale, made = pipeline.vae.config.scaling_factor, []
    times = torch.linspace(0, 1, recipe.num_frames, device=device)[None]
    for index, prompt in enumerate(prompts):
        moves = torch.tensor([MOVES.index(prompt.move)], device=device)
        amounts = torch.tensor([SPEEDS[prompt.speed]], device=device)
        photo = crops[index % len(crops)][None].to(device)
        clip = render(photo, path_of(moves, amounts, times), (recipe.height, recipe.width))
        clip = _darkened(clip, times).bfloat16()
        latents = pipeline.vae.encode(clip).latent_dist.mode() * scale
        image = pipeline.vae.encode(clip[:, :, :1]).latent_dist.sample() * scale
        ids = pipeline.tokenizer(
            prompt.text, padding="max_length", max_length=MAX_TOKENS, truncation=True
        ).input_ids
        embeds = pipeline.text_encoder(torch.tensor([ids], device=device))[0]
        made.append((latents.transpose(1, 2), image.squeeze(2), embeds))
    latents, images, embeds = (torch.cat(parts) for parts in zip(*made, strict=True))
    return latents, images, embeds


def _darkened(clip: Tensor, times: Tensor) -> Tensor:
    """The clip [1, 3, num_frames, h, w] in -1..1 with its light going."""
    progress = ((times - DUSK[0]) / (DUSK[1] - DUSK[0])).clamp(0, 1)
    night = torch.tensor(NIGHT, device=clip.device)[:, None]
    left = 1 + (night - 1) * progress * progress * (3 - 2 * progress)
    return (clip + 1) * left[None, :, :, None, None] - 1


if __name__ == "__main__":
    main()
