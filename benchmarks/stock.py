"""The engine beside a direct diffusers call on one checkpoint: seconds, and equal frames.

    python benchmarks/stock.py CHECKPOINT IMAGE [--num-inference-steps 8] [--repeat 2]

Needs a GPU with room for the weights twice. Runs take turns, so that a slow spell meets both.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXImageToVideoPipeline
from PIL import Image

from vidgen_ray.config import load_config
from vidgen_ray.generation.engine import Engine
from vidgen_ray.image_io import read_image
from vidgen_ray.schema import GenerationRequest, resolve_request


def call_stock(
    pipeline: CogVideoXImageToVideoPipeline, request: GenerationRequest, device: str
) -> np.ndarray:
    """Frames of a plain call, uint8 [F, H, W, 3]; the noise comes from a generator on `device`."""
    image = read_image(request.image, height=request.height, width=request.width)
    frames = pipeline(
        image=Image.fromarray(image.pixels),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        generator=torch.Generator(device).manual_seed(request.seed),
    ).frames[0]
    return np.stack([np.asarray(frame) for frame in frames])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("image")
    parser.add_argument("--num-inference-steps", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=2)
    arguments = parser.parse_args()
    config = load_config(
        "cogvideox_5b_i2v",
        {
            "model.checkpoint": arguments.checkpoint,
            "model.offload": "none",
            "generation.num_inference_steps": arguments.num_inference_steps,
        },
    )
    fields = {"id": "a", "image": arguments.image, "prompt": "slow push in"}
    request = resolve_request(fields, config)
    engine = Engine(config)
    engine.load()
    stock = CogVideoXImageToVideoPipeline.from_pretrained(
        arguments.checkpoint, dtype=torch.float16
    ).to("cuda")
    stock.scheduler = CogVideoXDPMScheduler.from_config(
        stock.scheduler.config, timestep_spacing="trailing"
    )
    stock.set_progress_bar_config(disable=True)
    runs = {
        "engine": lambda: engine.generate(request).video.frames,
        "stock, CPU generator": lambda: call_stock(stock, request, "cpu"),
        "stock, CUDA generator": lambda: call_stock(stock, request, "cuda"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    frames = {}
    for name, run in runs.items():
        frames[name] = run()  # warms up
    for _ in range(arguments.repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, values in seconds.items():
        ratio = statistics.median(values) / statistics.median(seconds["engine"])
        listed = ", ".join(f"{value:.2f}" for value in values)
        print(f"{name}: {listed} s, {ratio:.3f} of the engine's", flush=True)
    same = np.array_equal(frames["engine"], frames["stock, CPU generator"])
    print("frames of engine and stock with the same generator are equal:", same)


if __name__ == "__main__":
    main()
