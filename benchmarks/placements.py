"""Seconds and VRAM of every placement of a full-size checkpoint, behind `offload: auto`.

python -m vidgen_ray.model.untrained cogvideox_5b_i2v CHECKPOINT --device cuda
python benchmarks/placements.py CHECKPOINT IMAGE
"""

import argparse
import json
import time

import torch

from vidgen_ray.config import load_config
from vidgen_ray.errors import VidgenError
from vidgen_ray.generation.engine import Engine
from vidgen_ray.schema import resolve_request

PLACEMENTS = [
    ("none", False),
    ("none", True),
    ("model", False),
    ("model", True),
    ("group", True),
    ("sequential", True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("image")
    parser.add_argument("--num-inference-steps", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[offload for offload, _ in PLACEMENTS])
    arguments = parser.parse_args()
    for offload, vae_tiling in PLACEMENTS:
        if offload not in arguments.only:
            continue
        config = load_config(
            "cogvideox_5b_i2v",
            {
                "model.checkpoint": arguments.checkpoint,
                "model.offload": offload,
                "model.vae_tiling": vae_tiling,
                "generation.num_inference_steps": arguments.num_inference_steps,
            },
        )
        fields = {"id": "a", "image": arguments.image, "prompt": "slow push in"}
        start = time.perf_counter()
        engine = Engine(config)
        line: dict[str, object] = {"offload": offload, "vae_tiling": vae_tiling}
        try:
            made = engine.generate(resolve_request(fields, config))
            line |= {"peak_vram_gb": round(made.peak_vram_gb or 0, 2), "dtype": made.model.dtype}
            stages = made.stages.model_dump(exclude_none=True)
            line |= {name: round(seconds, 2) for name, seconds in stages.items()}
        except VidgenError as error:
            line["error"] = str(error)
        line["total_s"] = round(time.perf_counter() - start, 1)
        print(json.dumps(line), flush=True)
        del engine
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
