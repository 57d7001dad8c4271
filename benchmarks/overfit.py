"""Four clips learned by heart: how far the loss falls.

    python -m benchmarks.overfit                            # the same noise in every step
    python -m benchmarks.overfit --new-noise --steps 8000   # noise of its own in every step

The first has one batch to learn, four clips each with a timestep and noise: a sound loop drives its
loss down by 10x or more. With `--new-noise` the loss is measured on 64 draws that were not trained
on, and has further to go. The clips are those of `make train-demo`. A minute on a GPU.
"""

import argparse
import json

import torch

from scripts.demo_clips import demo_scenes
from vidgen_ray.config import load_config
from vidgen_ray.encoding.shards import EncodedClip
from vidgen_ray.model.checkpoint import Checkpoint, open_checkpoint
from vidgen_ray.model.device import choose_device
from vidgen_ray.model.encoders import PromptEncoder, VideoEncoder, latent_scales
from vidgen_ray.model.lora import LoraTransformer
from vidgen_ray.training.loop import make_optimizer
from vidgen_ray.training.loss import velocity_loss
from vidgen_ray.training.samples import Sample, SampleBuilder, stack

NUM_CLIPS = 4
FIRST_HELD_OUT = 10**6  # steps from here are drawn for measuring alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="training/lora_nano")
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rank", type=int, default=48)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--new-noise", action="store_true", help="in every step")
    parser.add_argument("--num-draws", type=int, default=16, help="of each clip, to measure on")
    a = parser.parse_args()
    settings = {
        "model.checkpoint": a.checkpoint,
        "training.rank": a.rank,
        "training.learning_rate": a.learning_rate,
        "training.max_trainable_fraction": 1.0,
        "training.weight_decay": 0.0,
    }
    config = load_config(a.config, settings)
    device = choose_device(config.model.device)
    checkpoint = open_checkpoint(config.model)
    four, empty = encoded_clips(checkpoint, device)
    model = LoraTransformer(checkpoint, config.model.dtype, config.training).to(device)
    scales = latent_scales(checkpoint)
    builder = SampleBuilder(config.training, len(model.alphas_cumprod), *scales, empty)

    def batch(step: int) -> Sample:
        made = [builder.build(clip, step, slot, NUM_CLIPS) for slot, clip in enumerate(four)]
        return stack(made, device)

    @torch.no_grad()
    def measured() -> float:
        draws = range(FIRST_HELD_OUT, FIRST_HELD_OUT + a.num_draws) if a.new_noise else [0]
        losses = [velocity_loss(model, batch(draw), model.alphas_cumprod).item() for draw in draws]
        return sum(losses) / len(losses)

    before = measured()
    weights = list(model.adapter_weights().values())
    optimizer = make_optimizer(weights, config.training)
    learned = batch(0)
    for step in range(a.steps):
        sample = batch(step) if a.new_noise else learned
        for group in optimizer.param_groups:
            group["lr"] = a.learning_rate * min(1.0, (step + 1) / 20) * (1 - step / a.steps)
        velocity_loss(model, sample, model.alphas_cumprod).backward()
        torch.nn.utils.clip_grad_norm_(weights, config.training.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % 100 == 0:
            print(json.dumps({"step": step + 1, "loss": measured()}), flush=True)
    after = measured()
    print(json.dumps({"before": before, "after": after, "factor": before / after}))


def encoded_clips(
    checkpoint: Checkpoint, device: torch.device
) -> tuple[list[EncodedClip], torch.Tensor]:
    """The first clips of the demo, and the embeddings of the empty prompt."""
    vae = VideoEncoder(checkpoint, "float32", device, tiling=False)
    scenes = list(demo_scenes(NUM_CLIPS))
    text = PromptEncoder(checkpoint, "float32", device)
    embeds, _ = text.encode([*(prompt for prompt, _ in scenes), ""])
    clips = [
        EncodedClip(vae.encode_video(frames), vae.encode_image(frames[0], 0, 0), embeds[index])
        for index, (_, frames) in enumerate(scenes)
    ]
    return clips, embeds[-1]


if __name__ == "__main__":
    main()
