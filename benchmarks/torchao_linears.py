"""Our 8-bit linear layers beside torchao's row-wise ones, in one guided step of the transformer.

    python benchmarks/torchao_linears.py --output OUT [--only "bf16,int8,torchao int8"] [--tiny]

Random weights of the full size are made on the device. All variants share weights, inputs and
attention kernel, and compile block by block as the profiles do.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from torch._dynamo.utils import counters

from vidgen_ray.model.attention_kernels import choose_attention
from vidgen_ray.model.compilation import compile_blocks
from vidgen_ray.model.denoiser import Denoiser
from vidgen_ray.model.quantization import QUANTIZED_LAYERS, quantize_linears
from vidgen_ray.model.untrained import ARCHITECTURES

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SYNCHRONIZE = torch.cuda.synchronize if DEVICE.type == "cuda" else (lambda: None)
DTYPE = torch.bfloat16


def torchao_linears(linears: str, *, fuse: bool = False) -> Callable[[Any], None]:
    """torchao's layers; `fuse` asks inductor to scale int8 products in the matmul's epilogue."""

    def quantize(transformer: CogVideoXTransformer3DModel) -> None:
        from torchao.quantization import (
            Float8DynamicActivationFloat8WeightConfig,
            Int8DynamicActivationInt8WeightConfig,
            PerRow,
            quantize_,
        )

        config = {
            "int8": Int8DynamicActivationInt8WeightConfig,
            "fp8": Float8DynamicActivationFloat8WeightConfig,
        }[linears](granularity=PerRow(), set_inductor_config=False)
        torch._inductor.config.force_fuse_int_mm_with_mul = fuse
        quantize_(transformer.transformer_blocks, config, _is_quantized)

    return quantize


def _is_quantized(module: torch.nn.Module, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and name.endswith(QUANTIZED_LAYERS)


VARIANTS: dict[str, Callable[[Any], None]] = {
    "bf16": lambda transformer: None,
    "int8": lambda transformer: quantize_linears(transformer, "int8"),
    "torchao int8": torchao_linears("int8"),
    "torchao int8 fused": torchao_linears("int8", fuse=True),
    "fp8": lambda transformer: quantize_linears(transformer, "fp8"),
    "torchao fp8": torchao_linears("fp8"),
}


def make_inputs(shape: dict[str, Any]) -> dict[str, Any]:
    """Inputs of one guided step: latents [2, F, C, h, w], text [2, T, D] and rotary tables."""
    num_frames = (shape["sample_frames"] - 1) // 4 + 1
    height, width = shape["sample_height"], shape["sample_width"]
    num_video, num_angles = num_frames * height * width // 4, shape["attention_head_dim"] // 2
    torch.manual_seed(1)
    text_shape = (2, shape["max_text_seq_length"], shape["text_embed_dim"])
    angles = 6 * torch.rand(num_video, num_angles, device=DEVICE).repeat_interleave(2, dim=1)
    latents_shape = (2, num_frames, shape["in_channels"], height, width)
    return {
        "hidden_states": torch.randn(latents_shape, device=DEVICE, dtype=DTYPE),
        "encoder_hidden_states": torch.randn(text_shape, device=DEVICE, dtype=DTYPE),
        "timestep": torch.full((2,), 500, device=DEVICE),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }


def measure(
    shape: dict[str, Any], quantize: Callable[[Any], None], repeats: int
) -> tuple[dict[str, Any], torch.Tensor]:
    """Figures of one variant, and its output [2, F, C, h, w] in float32 on the CPU."""
    counters.clear()
    torch.manual_seed(0)
    torch.set_default_dtype(DTYPE)
    with DEVICE:
        transformer = CogVideoXTransformer3DModel(**shape).eval()
    torch.set_default_dtype(torch.float32)
    Denoiser(transformer, choose_attention("auto", DEVICE, "bfloat16")[0])
    quantize(transformer)
    compile_blocks(transformer, fullgraph=True)
    inputs = make_inputs(shape)
    begun = time.perf_counter()
    output = transformer(**inputs).sample.float().cpu()
    first_call_s = time.perf_counter() - begun
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        transformer(**inputs)
        SYNCHRONIZE()
        times.append(1e3 * (time.perf_counter() - begun))
    figures = {
        "step_ms": statistics.median(times),
        "all_step_ms": times,
        "first_call_s": first_call_s,
        "graphs": counters["stats"]["unique_graphs"],
        "peak_vram_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    return figures, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", default=",".join(VARIANTS), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try this on a CPU")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    shape = ARCHITECTURES["tiny" if arguments.tiny else "cogvideox_5b_i2v"].transformer
    rows: dict[str, Any] = {}
    expected = None
    for name in arguments.only.split(","):
        try:
            with torch.no_grad():
                rows[name], output = measure(shape, VARIANTS[name], arguments.repeats)
        except Exception as error:  # one variant that cannot run here must not hide the others
            rows[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        else:
            expected = output if expected is None else expected
            rows[name]["relative_error"] = float((output - expected).norm() / expected.norm())
        torch.compiler.reset()  # drops references to the compiled blocks
        gc.collect()
        torch.cuda.empty_cache()
        print(name, json.dumps(rows[name]), flush=True)
        text = json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n"
        (arguments.output / "torchao_linears.json").write_text(text)


if __name__ == "__main__":
    main()
